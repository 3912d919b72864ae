"""The page as a visitor sees it: drawing, looking, sizes, links; with tiny models."""

import re
import shutil
import time
import types

import gradio as gr
import numpy as np
import pytest
from playwright import sync_api

from r2id import Latent
from r2id.demo import page as page_module
from r2id.demo.models import Models
from r2id.demo.record import Drawing, View, from_dict, to_query
from r2id.demo.session import Visit
from r2id.image import to_pil

pytest_plugins = "browser"

FINE = "pixels.*resampled in [0-9]+ ms"  # the picture is there in full


def test_the_page_opens_with_a_picture_and_asks_no_other_host(visit, url):
    visit.natural(256, 256)
    words = visit.shows(FINE)
    assert "256 × 256 pixels" in words and "from 4 × 4 cells" in words
    assert "label 3, seed 0" in words and "diffused once, 4 steps" in words and "tiny on cpu" in words
    assert visit.part("image").get_attribute("alt") == "label 3, 256 by 256 pixels"
    assert "spoilt cannot be used: " in visit.page.inner_text("#faults")
    assert "the latent's 4 × 4 cells" in visit.page.get_attribute("#cells img", "alt")
    assert visit.hosts <= {url.split("/")[2], ""}, visit.hosts  # "": data within the page


def test_a_tab_that_is_not_open_is_left_as_it_is(tiny):
    heard, visit = [], Visit()
    event = types.SimpleNamespace(label="History", select=lambda fn, *_, **__: heard.append(fn))
    event.change = event.select
    page = page_module.Page(None, None, None, event, None, [], [])
    page.watch(event, lambda visit: visit.tab, [], ["a single output"])
    opened, renewed = heard
    assert list(opened(visit)) == [gr.skip()]  # there is no latent; in a list of its own this would be a value
    visit.take(tiny, Drawing("tiny", "3"), tiny.diffuse(["3"], seed=0))
    visit.tab = "Models"
    assert list(renewed(visit)) == [gr.skip()]
    visit.tab = "History"
    assert list(renewed(visit)) == list(opened(visit)) == ["History"]


def test_one_diffusion_serves_every_size_and_the_last_one_wins(visit):
    before = visit.shows(FINE)
    visit.slide("Resolution", "ArrowLeft", 20)
    visit.natural(128, 128)
    after = visit.shows(f"128 × 128 {FINE}")
    assert re.search("label.*", before)[0] == re.search("label.*", after)[0]
    number = visit.page.get_by_label("Resolution, long side (pixels)", exact=True).first
    number.fill("")
    number.press_sequentially("120", delay=30)
    visit.natural(120, 120)
    visit.type("Picture ratio (w : h)", "9:16")
    visit.natural(68, 120)
    visit.slide("Picture ratio", "ArrowRight", 9)
    visit.natural(76, 120)
    assert visit.page.get_by_role("combobox", name="Picture ratio").input_value() == "0.63"
    visit.page.get_by_label("cover").check()
    visit.type("Picture ratio (w : h)", "7:1")
    visit.page.get_by_text("aspect ratio 7:1: must be 1:4 … 4:1").wait_for()
    visit.type("Picture ratio (w : h)", "2")
    visit.natural(120, 60)


def test_an_exact_size_can_be_typed_and_reset(visit):
    visit.shows(FINE)
    visit.type("Width (pixels)", "150")
    visit.natural(150, 256)
    visit.type("Height (pixels)", "90")
    visit.natural(150, 90)
    assert visit.page.get_by_label("Resolution, long side (pixels)", exact=True).first.input_value() == "150"
    visit.press("Reset")
    visit.natural(256, 256)
    assert visit.page.get_by_label("Width (pixels)").input_value() == "256"


def test_a_diffusion_is_shown_step_by_step_and_stopped_and_resampled(visit):
    visit.page.get_by_role("button", name="Advanced").click()  # first: what it holds gets its values as it opens
    visit.shows(FINE)
    assert visit.part("stop").is_hidden()
    visit.type("number input for Steps (denoiser runs)", "100")
    visit.type("number input for Pictures at once", "16")  # of which the steps take long enough to be stopped
    visit.press("Diffuse")
    visit.shows("Step [0-9]+ of 100, [0-9]+ s left", "said")
    assert "64 × 64 pixels preview" in visit.shows("preview")
    visit.press("Stop")
    stopped = visit.shows(f"256 × 256 {FINE}.*stopped after step [0-9]+ of 100")
    assert visit.part("stop").is_hidden()
    visit.type("Resolution, long side (pixels)", "40")
    visit.natural(40, 40)
    assert re.search("label.*", stopped)[0] == re.search("label.*", visit.shows("40 × 40 pixels"))[0]
    about = visit.parameters()
    assert about["steps"] == 100 and str(about["seed"]) == visit.page.get_by_label("Seed", exact=True).input_value()


def test_visitors_do_not_share_a_latent(visit, visitor, url):
    visit.shows(f"{FINE}.*seed 0")
    other = visitor(url)
    other.shows(f"{FINE}.*seed 0")
    other.press("Diffuse")
    other.shows(f"{FINE}.*seed [1-9]")
    visit.page.get_by_label("stretch").check()
    assert "seed 0 " in visit.shows(FINE)


def test_one_of_a_grid_is_looked_at_and_downloaded(visit):
    visit.shows(FINE)
    assert visit.part("thumbs").is_hidden()
    visit.type("Seed", "11")
    visit.page.get_by_label("keep this seed").check()
    visit.type("number input for Pictures at once", "5")
    visit.press("Diffuse")
    visit.shows(f"{FINE}.*seed 11 ")
    small = visit.part("thumbs").locator("button")
    assert small.count() == 5 and small.nth(0).get_attribute("aria-pressed") == "true"
    first = visit.file()
    small.nth(3).click()
    visit.shows(f"{FINE}.*seed 14 ")
    assert small.nth(3).get_attribute("aria-pressed") == "true"
    third = visit.file()
    assert first != third and visit.parameters()["seed"] == 14
    small.nth(1).focus()
    visit.page.keyboard.press("Enter")
    visit.shows(f"{FINE}.*seed 12 ")


def test_a_zoom_is_decoded_not_enlarged(visit, tiny):
    visit.shows(FINE)
    box = visit.part("image").bounding_box()
    visit.part("image").click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    visit.shows("256 × 256 pixels at 2 ×.*resampled in")
    visit.part("screen").focus()
    visit.page.keyboard.press("+")
    visit.shows("at 4 ×.*resampled in")
    drawing, view = from_dict(visit.parameters())
    assert (view.x, view.y, view.zoom) == (pytest.approx(0.3, abs=0.01), pytest.approx(0.6, abs=0.01), 4)
    latent = tiny.diffuse(drawing.labels, latent_size=(4, 4), steps=4, guidance=drawing.guidance, seed=0)
    decoded = to_pil(tiny.resample(latent, size=(256, 256), region=view.region)[0])
    assert np.abs(np.asarray(decoded, int) - visit.pixels()).max() <= 1
    visit.page.mouse.move(box["x"] + 200, box["y"] + 200)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 200 + box["width"] * 0.4, box["y"] + 200, steps=4)
    visit.page.mouse.up()
    centre = visit.page.get_by_label("number input for Centre, from the left (%)")
    sync_api.expect(centre).to_have_value(re.compile("^(19|20)"))


def test_large_pictures_show_progress_give_way_and_stop(visit):
    visit.shows(FINE)
    visit.type("Resolution, long side (pixels)", "4096")
    visit.shows("[0-9]+% resampled, [0-9]+ (s|min) left", "said")
    visit.type("Resolution, long side (pixels)", "64")
    visit.natural(64, 64)
    visit.shows(f"64 × 64 {FINE}")
    visit.type("Resolution, long side (pixels)", "4096")
    visit.shows("4096 × 4096 pixels first look")
    visit.press("Stop")
    visit.part("stop").wait_for(state="hidden")
    visit.type("Resolution, long side (pixels)", "64")
    visit.shows(f"64 × 64 {FINE}")


def test_a_latent_that_the_controls_no_longer_describe_is_marked(visit):
    before = visit.shows(FINE)
    note = visit.page.locator("#note .notice")
    visit.slide("Latent size", "ArrowRight")
    note.get_by_text("made with latent size 4: press Diffuse").wait_for()
    visit.slide("Latent size", "ArrowLeft")
    note.wait_for(state="detached")
    visit.page.get_by_label("Model", exact=True).click()
    visit.page.get_by_role("option", name="twin").click()
    note.get_by_text("made with model tiny").wait_for()
    visit.type("Resolution, long side (pixels)", "64")
    assert re.search("label.*", before)[0] == re.search("label.*", visit.shows(f"64 × 64 {FINE}"))[0]
    visit.press("Diffuse")
    visit.shows(f"{FINE}.*twin on cpu")
    note.wait_for(state="detached")


def test_two_labels_blend_and_the_latent_can_follow_the_picture(visit):
    visit.shows(FINE)
    visit.page.get_by_label("Blended with").click()
    visit.page.get_by_role("option", name="7").click()
    visit.type("number input for Share (%)", "25")
    visit.page.get_by_label("follows the picture's ratio").check()
    visit.type("Picture ratio (w : h)", "16:9")
    visit.page.wait_for_function("/4 × 2 cells/.test(document.querySelector('#cells').innerText)")
    visit.press("Diffuse")
    assert "from 4 × 2 cells 75 % label 3 and 25 % label 7" in visit.shows(f"256 × 144 {FINE}.*seed [1-9]")


def test_a_link_opens_the_page_as_it_was(visitor, url):
    drawing = Drawing("twin", "5", count=2, cells=6, shape="3:2", steps=3, sampler="ddim", eta=0.5, seed=42)
    view = View(side=90, ratio="2:1", fit="cover", x=0.25, y=0.5, zoom=2)
    visit = visitor(f"{url}?{to_query(drawing, view)}")
    visit.shows("90 × 45 pixels at 2 ×.*resampled in.*6 × 4 cells label 5, seed 42 .*3 steps.*twin")
    assert from_dict(visit.parameters()) == (drawing.row(0), view)
    assert visit.part("thumbs").locator("button").count() == 2
    visit.page.goto(f"{url}?model=twin")  # by hand: the rest is the model's own
    visit.shows("label 3, seed 0 .*4 steps.*twin")
    visit.page.goto(f"{url}?model=absent&label=3")
    visit.page.get_by_text("this link cannot be followed: model 'absent'").wait_for()
    visit.shows(f"{FINE}.*label 3, seed 0 ")


def test_link_and_python_are_copied(visitor, url):
    visit = visitor(url, permissions=["clipboard-read", "clipboard-write"])
    visit.shows(FINE)
    clipboard = "text => navigator.clipboard.readText().then(t => t.includes(text))"
    visit.press("Copy link")
    visit.page.wait_for_function(clipboard, arg=f"{url}?model=tiny&label=3")
    visit.part("python").click()
    visit.page.wait_for_function(clipboard, arg="pipe.diffuse(['3']")


def test_a_latent_goes_out_and_in(visit, tmp_path):
    visit.shows(FINE)
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Save latent").click()
    download.value.save_as(file := tmp_path / "mine.safetensors")
    assert Latent.load(file).seeds == (0,)
    before = visit.pixels()
    visit.press("Diffuse")
    visit.shows(f"{FINE}.*seed [1-9]")
    visit.page.set_input_files("input[type=file][accept*=safetensors]", file)
    visit.shows(f"{FINE}.*latent from mine.safetensors")
    assert (visit.pixels() == before).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(phone, gallery, theme):
    visit = phone(theme)
    visit.shows(FINE)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 100")
    assert dark == (theme == "dark")
    visit.page.evaluate("scrollTo(0, 500)")  # the picture stays in view while its sliders move
    assert visit.part("image").bounding_box()["y"] >= 0
    visit.page.screenshot(path=gallery / f"phone-{theme}.png")


def test_a_wide_page_is_seen_whole(visitor, url, gallery):
    visit = visitor(f"{url}?__theme=dark")
    visit.shows(FINE)
    bottoms = [visit.page.get_by_role("button", name=name, exact=True).bounding_box() for name in ("Diffuse", "Reset")]
    assert all(box["y"] + box["height"] < 900 for box in bottoms)
    visit.page.screenshot(path=gallery / "wide-dark.png")


def test_weights_are_asked_for_and_found_when_the_page_is_reloaded(visitor, serve, tiny_weights, tmp_path):
    with serve(tmp_path) as url:
        visit = visitor(url)
        visit.page.get_by_text("python -m train.train_resampler").wait_for()
        assert visit.page.get_by_role("button", name="Diffuse", exact=True).is_disabled()
        shutil.copytree(tiny_weights, tmp_path / "dropped")
        visit.page.reload()
        visit.shows(f"{FINE}.*dropped on cpu")


def test_an_idle_visit_is_dropped_and_the_page_says_what_to_do(visitor, tiny_weights, monkeypatch):
    monkeypatch.setattr(page_module, "LIFE", 4)
    page = page_module.build(Models(tiny_weights.parent), (), lambda studio: None)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        visit = visitor(url)
        visit.shows(FINE)
        time.sleep(8)  # Gradio looks every second
        visit.slide("Resolution", "ArrowLeft")
        visit.shows("there is no latent .* press Diffuse", "fault")
        visit.press("Diffuse")
        visit.part("fault").wait_for(state="hidden")
    finally:
        page.close()
