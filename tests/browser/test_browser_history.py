"""The tab History: what was made comes back, from the user and from a file; what can be taken along is complete."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import torch
from conftest import until
from PIL import Image

from r2id.demo.request import GenerateRequest, ViewRequest, to_dict
from r2id.demo.serving.generation import FIRST_SEED
from r2id.demo.session import png
from r2id.image import read_parameters

FINE = r"pixels.* decoded in [0-9]+ ms"
DROP = "#history-drop input[type=file]"
DRAWN = GenerateRequest("tiny", "3", cells=4, steps=4)


def file(request=None, **changes) -> bytes:
    """A PNG that says it was made so."""
    return png(torch.zeros(1, 8, 8), (to_dict(request, ViewRequest()) if request else {}) | changes)


def opened(user):
    """The page of a user who has opened the tab."""
    user.shows(FINE)
    user.tab("History")
    user.page.locator("#history button").first.wait_for()
    return user.page


def test_what_was_made_comes_back_pixel_for_pixel_without_diffusing(user):
    page = opened(user)
    user.shows(f"{FINE}.*seed {FIRST_SEED} ")
    first = user.pixels()
    user.press("Generate")
    user.shows(f"{FINE}.*seed [0-9]{{3}}")
    entries = page.locator("#history button")
    until(page, "document.querySelectorAll('#history button').length === 2")
    assert not np.array_equal(user.pixels(), first)
    assert [entries.nth(i).get_attribute("aria-pressed") for i in (0, 1)] == ["true", "false"]
    entries.nth(1).focus()
    page.keyboard.press("Enter")
    user.shows(f"{FINE}.*label 3, seed {FIRST_SEED} ")
    assert np.array_equal(user.pixels(), first)
    assert page.get_by_label("Seed", exact=True).input_value() == "11"
    page.locator("#history button:nth-child(2)[aria-pressed=true]:focus").wait_for()  # the keyboard is where it was
    assert entries.count() == 2  # nothing was diffused


def test_a_png_made_here_brings_its_parameters_back(user):
    page = opened(user)
    user.type("Resolution, long side (pixels)", "120")
    user.shows(f"120 × 120 {FINE}.*seed {FIRST_SEED} ")
    made, before = user.file(), user.pixels()
    user.type("Resolution, long side (pixels)", "64")
    user.press("Generate")
    user.shows(f"64 × 64 {FINE}.*seed [0-9]{{3}}")
    page.locator(DROP).set_input_files({"name": "3.png", "mimeType": "image/png", "buffer": made})
    page.get_by_text(f"label 3, seed {FIRST_SEED}: press Generate to make it again").wait_for()
    user.shows(f"120 × 120 {FINE}.*seed [0-9]{{3}}")  # the latent stays until then
    user.press("Generate")
    user.shows(f"120 × 120 {FINE}.*seed {FIRST_SEED} ")
    assert np.array_equal(user.pixels(), before)


def test_a_png_that_was_not_made_here_is_refused_in_a_line_and_nothing_is_lost(user):
    page = opened(user)
    words = user.shows(f"{FINE}.*seed {FIRST_SEED} ")
    Image.new("L", (8, 8)).save(plain := io.BytesIO(), format="PNG")
    forged = [
        (plain.getvalue(), "it was not made here"),
        (b"no image", "not a readable PNG file"),
        (file(replace(DRAWN, label="x")), "label 'x': tiny has 0, 1"),
        (file(replace(DRAWN, model="absent")), "model 'absent'"),
        (file(DRAWN, side="<b>wide"), "side '<b>wide'"),
        (file(origin="own image"), "was not generated"),
    ]
    for content, words_of_error in forged:
        page.locator(DROP).set_input_files({"name": "3.png", "mimeType": "image/png", "buffer": content})
        page.get_by_text(words_of_error).wait_for()
        page.get_by_test_id("toast-close").click()
        page.locator(DROP).wait_for(state="attached")
    assert user.shows(FINE) == words and page.locator("#history button").count() == 1


def test_the_grid_and_an_animation_can_be_taken_along(phone):
    user = phone("light")
    page = opened(user)
    user.drawer("Latent")
    user.type("number input for Number of images", "3")
    user.type("Resolution, long side (pixels)", "40")
    user.press("Generate")
    until(page, "/-seed[0-9]{3}.*40x40/.test(document.querySelector('[data-part=save]').download)")
    user.shows(f"40 × 40 {FINE}")
    seed = user.parameters()["seed"]
    user.press("Zip all images at this view")
    page.get_by_text("Download 3 images").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download 3 images").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        files = [io.BytesIO(archive.read(name)) for name in archive.namelist()]
    assert [read_parameters(each)["seed"] for each in files] == [(seed + i) % 2**32 for i in range(3)]
    images = [np.asarray(Image.open(each), int) for each in files]
    assert np.array_equal(images[0], user.pixels()) and not np.array_equal(images[0], images[1])
    user.press("Make the animation")  # of the resolution
    until(
        page,
        """() => { const stop = [...document.querySelectorAll('button')].find(
        button => button.innerText === 'Stop the animation'); return !stop.disabled && (stop.click(), true) }""",
    )
    page.get_by_role("button", name="Stop the animation", disabled=True).wait_for()
    page.locator(".making progress").wait_for(state="detached")
    assert page.locator(".movie").is_hidden()
    page.get_by_label("ratio, 9:16 to 16:9").check()
    for kind in ("GIF", "WebP"):
        page.get_by_role("radio", name=kind).locator("visible=true").check()
        user.press("Make the animation")
        with page.expect_download() as download:
            page.get_by_text(f"Download label 3 ({kind.upper()}").click()
        with Image.open(download.value.path()) as file:
            assert file.format == kind.upper() and file.is_animated and file.info["loop"] == 0
        page.get_by_alt_text("animation: label 3, its ratio goes up and down").wait_for()
    page.get_by_role("radio", name="MP4").locator("visible=true").check()
    user.press("Make the animation")
    video = page.get_by_label("animation: label 3, its ratio goes up and down")
    until(page, "document.querySelector('.movie video')?.videoWidth > 0")
    assert video.evaluate("video => video.loop && video.duration === 4")
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
