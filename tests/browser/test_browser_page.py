"""The page as a user sees it: generating, viewing, sizes, links; with tiny models."""

import re
import shutil

import numpy as np
import pytest
from conftest import until
from playwright import sync_api

from r2id import Latent
from r2id.demo.request import GenerateRequest, ViewRequest, from_dict, to_query
from r2id.demo.serving.generation import FIRST_SEED
from r2id.image import to_pil

FINE = "pixels.*decoded in [0-9]+ ms"  # the image is there in full


def test_the_page_opens_with_an_image_and_asks_no_other_host(user, url):
    user.natural(512, 512)
    words = user.shows(FINE)
    assert "512 × 512 pixels" in words and "from 4 × 4 cells" in words
    assert f"label 3, seed {FIRST_SEED}" in words and "generated in 4 steps" in words and "tiny on cpu" in words
    assert user.part("image").get_attribute("aria-label") == "label 3, 512 by 512 pixels"
    assert user.shows("4 × 4 cells × 3 numbers = 48 numbers", "numbers").endswith("numbers are 7 × 7 pixels")
    assert "spoilt cannot be used: " in user.page.inner_text("#faults")
    user.drawer("Latent")
    assert "the latent's 4 × 4 cells" in user.page.get_attribute("#cells img", "alt")
    assert user.hosts <= {url.split("/")[2], ""}, user.hosts  # "": data within the page


def test_one_diffusion_serves_every_size_and_the_last_one_wins(user):
    before = user.shows(FINE)
    user.drawer("Image")
    user.slide("Resolution", "ArrowLeft", 40)
    user.natural(128, 128)
    after = user.shows(f"128 × 128 {FINE}")
    assert re.search("label.*", before)[0] == re.search("label.*", after)[0]
    number = user.page.get_by_label("Resolution, long side (pixels)", exact=True).first
    number.fill("")
    number.press_sequentially("120", delay=30)
    user.natural(120, 120)
    user.type("Image ratio (w : h)", "9:16")
    user.natural(68, 120)
    user.slide("Image ratio", "ArrowRight", 9)
    user.natural(76, 120)
    assert user.page.get_by_role("combobox", name="Image ratio").input_value() == "0.63"
    user.page.get_by_label("cover").check()
    user.type("Image ratio (w : h)", "7:1")
    user.page.get_by_text("aspect ratio 7:1: must be 1:4 … 4:1").wait_for()
    user.type("Image ratio (w : h)", "2")
    user.natural(120, 60)


def test_an_exact_size_can_be_typed_and_reset(user):
    user.shows(FINE)
    user.drawer("Image")
    user.type("Width (pixels)", "150")
    user.natural(150, 512)
    user.type("Height (pixels)", "90")
    user.natural(150, 90)
    assert user.page.get_by_label("Resolution, long side (pixels)", exact=True).first.input_value() == "150"
    user.press("Reset")
    user.natural(512, 512)
    assert user.page.get_by_label("Width (pixels)").input_value() == "512"


def test_a_diffusion_is_shown_step_by_step_and_stopped_and_resampled(user):
    user.shows(FINE)
    user.drawer("Latent")
    assert user.part("stop").is_hidden()
    user.type("number input for Steps (denoiser runs)", "100")
    user.type("number input for Number of images", "16")  # so many cells that the steps take long enough to be stopped
    user.type("number input for Latent size, long side (cells)", "16")
    user.press("Generate")
    user.shows("Step [0-9]+ of 100, [0-9]+ s left", "said")
    assert "64 × 64 pixels preview" in user.shows("preview")
    user.press("Stop")
    stopped = user.shows(f"512 × 512 {FINE}.*stopped after step [0-9]+ of 100")
    assert user.part("stop").is_hidden()
    user.type("Resolution, long side (pixels)", "40")
    user.natural(40, 40)
    assert re.search("label.*", stopped)[0] == re.search("label.*", user.shows("40 × 40 pixels"))[0]
    about = user.parameters()
    assert about["steps"] == 100 and str(about["seed"]) == user.page.get_by_label("Seed", exact=True).input_value()


def test_users_do_not_share_a_latent(user, open_page, url):
    user.shows(f"{FINE}.*seed {FIRST_SEED} ")
    other = open_page(url)
    other.shows(f"{FINE}.*seed {FIRST_SEED} ")
    other.press("Generate")
    other.shows(f"{FINE}.*seed [0-9]{{3}}")
    user.drawer("Image")
    user.page.get_by_label("stretch").check()
    assert f"seed {FIRST_SEED} " in user.shows(FINE)


def test_one_of_a_grid_is_looked_at_and_downloaded(user):
    user.shows(FINE)
    assert user.part("thumbs").is_hidden()
    user.drawer("Latent")
    user.type("Seed", "21")
    user.keep_seed()
    user.type("number input for Number of images", "5")
    user.press("Generate")
    user.shows(f"{FINE}.*seed 21 ")
    small = user.part("thumbs").locator("button")
    assert small.count() == 5 and small.nth(0).get_attribute("aria-pressed") == "true"
    first = user.file()
    small.nth(3).click()
    user.shows(f"{FINE}.*seed 24 ")
    assert small.nth(3).get_attribute("aria-pressed") == "true"
    third = user.file()
    assert first != third and user.parameters()["seed"] == 24
    small.nth(1).focus()
    user.page.keyboard.press("Enter")
    user.shows(f"{FINE}.*seed 22 ")


def test_a_zoom_is_decoded_not_enlarged(user, tiny):
    user.shows(FINE)
    box = user.part("image").bounding_box()
    user.part("image").dblclick(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    user.shows("512 × 512 pixels at 2 ×.*decoded in")
    user.part("screen").focus()
    user.page.keyboard.press("+")
    user.shows("at 4 ×.*decoded in")
    request, view = from_dict(user.parameters())
    assert (view.x, view.y, view.zoom) == (pytest.approx(0.4, abs=0.01), pytest.approx(0.55, abs=0.01), 4)
    latent = tiny.diffuse(request.labels, latent_size=(4, 4), steps=4, guidance=request.guidance, seed=FIRST_SEED)
    decoded = to_pil(tiny.resample(latent, size=(512, 512), region=view.region)[0])
    assert np.abs(np.asarray(decoded, int) - user.pixels()).max() <= 3  # the server may decode in bfloat16
    user.page.mouse.move(box["x"] + 200, box["y"] + 200)
    user.page.mouse.down()
    user.page.mouse.move(box["x"] + 200 + box["width"] * 0.4, box["y"] + 200, steps=4)
    user.page.wait_for_timeout(150)  # at rest when it is released, so that it does not glide on
    user.page.mouse.up()
    user.drawer("Image")
    centre = user.page.get_by_label("number input for Centre, from the left (%)")
    sync_api.expect(centre).to_have_value(re.compile("^(29.9|30)"))


def test_large_images_show_progress_give_way_and_stop(user):
    user.shows(FINE)
    user.type("Resolution, long side (pixels)", "4096")
    user.shows("[0-9]+% decoded, [0-9]+ (s|min) left", "said")
    user.type("Resolution, long side (pixels)", "64")
    user.natural(64, 64)
    user.shows(f"64 × 64 {FINE}")
    user.type("Resolution, long side (pixels)", "4096")
    user.shows("4096 × 4096 pixels preview")
    user.press("Stop")
    user.part("stop").wait_for(state="hidden")
    user.type("Resolution, long side (pixels)", "64")
    user.shows(f"64 × 64 {FINE}")


def test_a_latent_that_the_controls_no_longer_describe_is_marked(user):
    before = user.shows(FINE)
    user.drawer("Latent")
    note = user.page.locator("#note .notice")
    user.slide("Latent size", "ArrowRight")
    note.get_by_text("made with latent size 4: press Generate").wait_for()
    user.slide("Latent size", "ArrowLeft")
    note.wait_for(state="detached")
    user.page.get_by_label("Model", exact=True).click()
    user.page.get_by_role("option", name="twin").click()
    note.get_by_text("made with model tiny").wait_for()
    user.type("Resolution, long side (pixels)", "64")
    assert re.search("label.*", before)[0] == re.search("label.*", user.shows(f"64 × 64 {FINE}"))[0]
    user.press("Generate")
    user.shows(f"{FINE}.*twin on cpu")
    note.wait_for(state="detached")


def test_two_labels_blend_and_the_latent_can_follow_the_image(user):
    user.shows(FINE)
    user.drawer("Image")
    user.drawer("Latent")
    user.page.get_by_label("Blended with").click()
    user.page.get_by_role("option", name="7").click()
    user.type("number input for Share of the second label (%)", "25")
    user.page.get_by_label("follows the image's ratio").check()
    user.type("Image ratio (w : h)", "16:9")
    until(user.page, "/4 × 2 cells/.test(document.querySelector('#cells').innerText)")
    user.press("Generate")
    assert "from 4 × 2 cells 75 % label 3 and 25 % label 7" in user.shows(f"512 × 288 {FINE}.*seed [0-9]{{3}}")


def test_a_link_opens_the_page_as_it_was(open_page, url):
    request = GenerateRequest("twin", "5", count=2, cells=6, shape="3:2", steps=3, sampler="ddim", eta=0.5, seed=42)
    view = ViewRequest(side=90, ratio="2:1", fit="cover", x=0.25, y=0.5, zoom=2)
    user = open_page(f"{url}?{to_query(request, view)}")
    user.shows("90 × 45 pixels at 2 ×.*decoded in.*6 × 4 cells label 5, seed 42 .*3 steps.*twin")
    assert from_dict(user.parameters()) == (request.row(0), view)
    assert user.part("thumbs").locator("button").count() == 2
    user.page.goto(f"{url}?model=twin")  # by hand: the rest is the model's own
    user.shows(f"label 3, seed {FIRST_SEED} .*4 steps.*twin")
    user.page.goto(f"{url}?model=absent&label=3")
    user.page.get_by_text("this link cannot be followed: model 'absent'").wait_for()
    user.shows(f"{FINE}.*label 3, seed {FIRST_SEED} ")


def test_link_and_python_are_copied(open_page, url):
    user = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    user.shows(FINE)
    clipboard = "text => navigator.clipboard.readText().then(t => t.includes(text))"
    user.press("Copy link")
    until(user.page, clipboard, arg=f"{url}?model=tiny&label=3")
    user.part("python").click()
    until(user.page, clipboard, arg="pipe.diffuse(['3']")


def test_a_latent_goes_out_and_in(user, tmp_path):
    user.shows(FINE)
    user.drawer("Latent")
    with user.page.expect_download() as download:
        user.page.get_by_text("Save latent").click()
    download.value.save_as(file := tmp_path / "mine.safetensors")
    assert Latent.load(file).seeds == (FIRST_SEED,)
    before = user.pixels()
    user.press("Generate")
    user.shows(f"{FINE}.*seed [0-9]{{3}}")
    user.page.set_input_files("input[type=file][accept*=safetensors]", file)
    user.shows(f"{FINE}.*latent from mine.safetensors")
    assert (user.pixels() == before).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(phone, gallery, theme):
    user = phone(theme)
    user.shows(FINE)
    assert user.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = user.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 100")
    assert dark == (theme == "dark")
    seen = [user.part("image"), user.page.locator("#resolution"), user.page.locator("#generate")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 844 for box in (part.bounding_box() for part in seen))
    user.page.evaluate("scrollTo(0, 500)")  # the image stays in view while its sliders move
    assert user.part("image").bounding_box()["y"] >= 0
    user.page.screenshot(path=gallery / f"phone-{theme}.png")


def test_a_wide_page_is_seen_whole(open_page, url, gallery):
    user = open_page(f"{url}?__theme=dark")
    user.shows(FINE)
    seen = [user.part("image"), user.page.locator("#first-row"), user.page.locator("#drawers")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 900 for box in (part.bounding_box() for part in seen))
    user.page.screenshot(path=gallery / "wide-dark.png")


def test_weights_are_asked_for_and_found_when_the_page_is_reloaded(open_page, serve, tiny_weights, tmp_path):
    with serve(tmp_path) as url:
        user = open_page(url)
        user.page.get_by_text("python -m train.train_resampler").wait_for()
        assert user.page.get_by_role("button", name="Generate", exact=True).is_disabled()
        shutil.copytree(tiny_weights, tmp_path / "dropped")
        user.page.reload()
        user.shows(f"{FINE}.*dropped on cpu")
