"""The page as a user sees it: request, looking, sizes, links; with tiny models."""

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
from r2id.demo.request import GenerateRequest, ViewRequest, from_dict, to_query
from r2id.demo.session import Session
from r2id.image import to_pil

pytest_plugins = "browser"

FINE = "pixels.*resampled in [0-9]+ ms"  # the image is there in full


def test_the_page_opens_with_a_image_and_asks_no_other_host(session, url):
    session.natural(256, 256)
    words = session.shows(FINE)
    assert "256 × 256 pixels" in words and "from 4 × 4 cells" in words
    assert "label 3, seed 0" in words and "diffused once, 4 steps" in words and "tiny on cpu" in words
    assert session.part("image").get_attribute("alt") == "label 3, 256 by 256 pixels"
    assert "spoilt cannot be used: " in session.page.inner_text("#faults")
    assert "the latent's 4 × 4 cells" in session.page.get_attribute("#cells img", "alt")
    assert session.hosts <= {url.split("/")[2], ""}, session.hosts  # "": data within the page


def test_a_tab_that_is_not_open_is_left_as_it_is(tiny):
    heard, session = [], Session()
    event = types.SimpleNamespace(label="History", select=lambda fn, *_, **__: heard.append(fn))
    event.change = event.select
    page = page_module.Page(None, None, None, event, None, [], [])
    page.watch(event, lambda session: session.tab, [], ["a single output"])
    opened, renewed = heard
    assert list(opened(session)) == [gr.skip()]  # there is no latent; in a list of its own this would be a value
    session.take(tiny, GenerateRequest("tiny", "3"), tiny.diffuse(["3"], seed=0))
    session.tab = "Models"
    assert list(renewed(session)) == [gr.skip()]
    session.tab = "History"
    assert list(renewed(session)) == list(opened(session)) == ["History"]


def test_one_diffusion_serves_every_size_and_the_last_one_wins(session):
    before = session.shows(FINE)
    session.slide("Resolution", "ArrowLeft", 20)
    session.natural(128, 128)
    after = session.shows(f"128 × 128 {FINE}")
    assert re.search("label.*", before)[0] == re.search("label.*", after)[0]
    number = session.page.get_by_label("Resolution, long side (pixels)", exact=True).first
    number.fill("")
    number.press_sequentially("120", delay=30)
    session.natural(120, 120)
    session.type("Image ratio (w : h)", "9:16")
    session.natural(68, 120)
    session.slide("Image ratio", "ArrowRight", 9)
    session.natural(76, 120)
    assert session.page.get_by_role("combobox", name="Image ratio").input_value() == "0.63"
    session.page.get_by_label("cover").check()
    session.type("Image ratio (w : h)", "7:1")
    session.page.get_by_text("aspect ratio 7:1: must be 1:4 … 4:1").wait_for()
    session.type("Image ratio (w : h)", "2")
    session.natural(120, 60)


def test_an_exact_size_can_be_typed_and_reset(session):
    session.shows(FINE)
    session.type("Width (pixels)", "150")
    session.natural(150, 256)
    session.type("Height (pixels)", "90")
    session.natural(150, 90)
    assert session.page.get_by_label("Resolution, long side (pixels)", exact=True).first.input_value() == "150"
    session.press("Reset")
    session.natural(256, 256)
    assert session.page.get_by_label("Width (pixels)").input_value() == "256"


def test_a_diffusion_is_shown_step_by_step_and_stopped_and_resampled(session):
    session.page.get_by_role("button", name="Advanced").click()  # first: what it holds gets its values as it opens
    session.shows(FINE)
    assert session.part("stop").is_hidden()
    session.type("number input for Steps (denoiser runs)", "100")
    session.type("number input for Images at once", "16")  # of which the steps take long enough to be stopped
    session.press("Diffuse")
    session.shows("Step [0-9]+ of 100, [0-9]+ s left", "said")
    assert "64 × 64 pixels preview" in session.shows("preview")
    session.press("Stop")
    stopped = session.shows(f"256 × 256 {FINE}.*stopped after step [0-9]+ of 100")
    assert session.part("stop").is_hidden()
    session.type("Resolution, long side (pixels)", "40")
    session.natural(40, 40)
    assert re.search("label.*", stopped)[0] == re.search("label.*", session.shows("40 × 40 pixels"))[0]
    about = session.parameters()
    assert about["steps"] == 100 and str(about["seed"]) == session.page.get_by_label("Seed", exact=True).input_value()


def test_users_do_not_share_a_latent(session, user, url):
    session.shows(f"{FINE}.*seed 0")
    other = user(url)
    other.shows(f"{FINE}.*seed 0")
    other.press("Diffuse")
    other.shows(f"{FINE}.*seed [1-9]")
    session.page.get_by_label("stretch").check()
    assert "seed 0 " in session.shows(FINE)


def test_one_of_a_grid_is_looked_at_and_downloaded(session):
    session.shows(FINE)
    assert session.part("thumbs").is_hidden()
    session.type("Seed", "11")
    session.page.get_by_label("keep this seed").check()
    session.type("number input for Images at once", "5")
    session.press("Diffuse")
    session.shows(f"{FINE}.*seed 11 ")
    small = session.part("thumbs").locator("button")
    assert small.count() == 5 and small.nth(0).get_attribute("aria-pressed") == "true"
    first = session.file()
    small.nth(3).click()
    session.shows(f"{FINE}.*seed 14 ")
    assert small.nth(3).get_attribute("aria-pressed") == "true"
    third = session.file()
    assert first != third and session.parameters()["seed"] == 14
    small.nth(1).focus()
    session.page.keyboard.press("Enter")
    session.shows(f"{FINE}.*seed 12 ")


def test_a_zoom_is_decoded_not_enlarged(session, tiny):
    session.shows(FINE)
    box = session.part("image").bounding_box()
    session.part("image").click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    session.shows("256 × 256 pixels at 2 ×.*resampled in")
    session.part("screen").focus()
    session.page.keyboard.press("+")
    session.shows("at 4 ×.*resampled in")
    request, view = from_dict(session.parameters())
    assert (view.x, view.y, view.zoom) == (pytest.approx(0.3, abs=0.01), pytest.approx(0.6, abs=0.01), 4)
    latent = tiny.diffuse(request.labels, latent_size=(4, 4), steps=4, guidance=request.guidance, seed=0)
    decoded = to_pil(tiny.resample(latent, size=(256, 256), region=view.region)[0])
    assert np.abs(np.asarray(decoded, int) - session.pixels()).max() <= 1
    session.page.mouse.move(box["x"] + 200, box["y"] + 200)
    session.page.mouse.down()
    session.page.mouse.move(box["x"] + 200 + box["width"] * 0.4, box["y"] + 200, steps=4)
    session.page.mouse.up()
    centre = session.page.get_by_label("number input for Centre, from the left (%)")
    sync_api.expect(centre).to_have_value(re.compile("^(19|20)"))


def test_large_images_show_progress_give_way_and_stop(session):
    session.shows(FINE)
    session.type("Resolution, long side (pixels)", "4096")
    session.shows("[0-9]+% resampled, [0-9]+ (s|min) left", "said")
    session.type("Resolution, long side (pixels)", "64")
    session.natural(64, 64)
    session.shows(f"64 × 64 {FINE}")
    session.type("Resolution, long side (pixels)", "4096")
    session.shows("4096 × 4096 pixels first look")
    session.press("Stop")
    session.part("stop").wait_for(state="hidden")
    session.type("Resolution, long side (pixels)", "64")
    session.shows(f"64 × 64 {FINE}")


def test_a_latent_that_the_controls_no_longer_describe_is_marked(session):
    before = session.shows(FINE)
    note = session.page.locator("#note .notice")
    session.slide("Latent size", "ArrowRight")
    note.get_by_text("made with latent size 4: press Generate").wait_for()
    session.slide("Latent size", "ArrowLeft")
    note.wait_for(state="detached")
    session.page.get_by_label("Model", exact=True).click()
    session.page.get_by_role("option", name="twin").click()
    note.get_by_text("made with model tiny").wait_for()
    session.type("Resolution, long side (pixels)", "64")
    assert re.search("label.*", before)[0] == re.search("label.*", session.shows(f"64 × 64 {FINE}"))[0]
    session.press("Diffuse")
    session.shows(f"{FINE}.*twin on cpu")
    note.wait_for(state="detached")


def test_two_labels_blend_and_the_latent_can_follow_the_image(session):
    session.shows(FINE)
    session.page.get_by_label("Blended with").click()
    session.page.get_by_role("option", name="7").click()
    session.type("number input for Share (%)", "25")
    session.page.get_by_label("follows the image's ratio").check()
    session.type("Image ratio (w : h)", "16:9")
    session.page.wait_for_function("/4 × 2 cells/.test(document.querySelector('#cells').innerText)")
    session.press("Diffuse")
    assert "from 4 × 2 cells 75 % label 3 and 25 % label 7" in session.shows(f"256 × 144 {FINE}.*seed [1-9]")


def test_a_link_opens_the_page_as_it_was(user, url):
    request = GenerateRequest("twin", "5", count=2, cells=6, shape="3:2", steps=3, sampler="ddim", eta=0.5, seed=42)
    view = ViewRequest(side=90, ratio="2:1", fit="cover", x=0.25, y=0.5, zoom=2)
    session = user(f"{url}?{to_query(request, view)}")
    session.shows("90 × 45 pixels at 2 ×.*resampled in.*6 × 4 cells label 5, seed 42 .*3 steps.*twin")
    assert from_dict(session.parameters()) == (request.row(0), view)
    assert session.part("thumbs").locator("button").count() == 2
    session.page.goto(f"{url}?model=twin")  # by hand: the rest is the model's own
    session.shows("label 3, seed 0 .*4 steps.*twin")
    session.page.goto(f"{url}?model=absent&label=3")
    session.page.get_by_text("this link cannot be followed: model 'absent'").wait_for()
    session.shows(f"{FINE}.*label 3, seed 0 ")


def test_link_and_python_are_copied(user, url):
    session = user(url, permissions=["clipboard-read", "clipboard-write"])
    session.shows(FINE)
    clipboard = "text => navigator.clipboard.readText().then(t => t.includes(text))"
    session.press("Copy link")
    session.page.wait_for_function(clipboard, arg=f"{url}?model=tiny&label=3")
    session.part("python").click()
    session.page.wait_for_function(clipboard, arg="pipe.diffuse(['3']")


def test_a_latent_goes_out_and_in(session, tmp_path):
    session.shows(FINE)
    with session.page.expect_download() as download:
        session.page.get_by_text("Save latent").click()
    download.value.save_as(file := tmp_path / "mine.safetensors")
    assert Latent.load(file).seeds == (0,)
    before = session.pixels()
    session.press("Diffuse")
    session.shows(f"{FINE}.*seed [1-9]")
    session.page.set_input_files("input[type=file][accept*=safetensors]", file)
    session.shows(f"{FINE}.*latent from mine.safetensors")
    assert (session.pixels() == before).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(phone, gallery, theme):
    session = phone(theme)
    session.shows(FINE)
    assert session.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = session.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 100")
    assert dark == (theme == "dark")
    session.page.evaluate("scrollTo(0, 500)")  # the image stays in view while its sliders move
    assert session.part("image").bounding_box()["y"] >= 0
    session.page.screenshot(path=gallery / f"phone-{theme}.png")


def test_a_wide_page_is_seen_whole(user, url, gallery):
    session = user(f"{url}?__theme=dark")
    session.shows(FINE)
    bottoms = [
        session.page.get_by_role("button", name=name, exact=True).bounding_box() for name in ("Diffuse", "Reset")
    ]
    assert all(box["y"] + box["height"] < 900 for box in bottoms)
    session.page.screenshot(path=gallery / "wide-dark.png")


def test_weights_are_asked_for_and_found_when_the_page_is_reloaded(user, serve, tiny_weights, tmp_path):
    with serve(tmp_path) as url:
        session = user(url)
        session.page.get_by_text("python -m train.train_resampler").wait_for()
        assert session.page.get_by_role("button", name="Diffuse", exact=True).is_disabled()
        shutil.copytree(tiny_weights, tmp_path / "dropped")
        session.page.reload()
        session.shows(f"{FINE}.*dropped on cpu")


def test_an_idle_visit_is_dropped_and_the_page_says_what_to_do(user, tiny_weights, monkeypatch):
    monkeypatch.setattr(page_module, "LIFE", 4)
    page = page_module.build(Models(tiny_weights.parent), (), lambda service: None)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        session = user(url)
        session.shows(FINE)
        time.sleep(8)  # Gradio looks every second
        session.slide("Resolution", "ArrowLeft")
        session.shows("there is no latent .* press Generate", "fault")
        session.press("Diffuse")
        session.part("fault").wait_for(state="hidden")
    finally:
        page.close()
