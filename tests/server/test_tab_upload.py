"""The functions behind the tab for the user's own image."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from r2id.demo.request import GenerateRequest
from r2id.demo.tabs.upload import (
    LONG_SIDE,
    Given,
    crop_value,
    cropped,
    encode,
    fit_request,
    kept_html,
    open_upload,
    reconstruction_html,
)


def file_of(image: Image.Image, form: str = "PNG", **options) -> io.BytesIO:
    image.save(file := io.BytesIO(), format=form, **options)
    return file


def halves(width: int, height: int, mode: str = "L") -> Image.Image:
    """White on the left, black on the right."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_images_of_every_kind_are_read(mode, tiny_pixels):
    form = {"CMYK": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    image = Image.new("I;16", (30, 20), 65535) if mode == "I;16" else halves(30, 20, mode.replace("F", "L"))
    image = Image.fromarray(np.asarray(image, np.float32) / 255) if mode == "F" else image
    given = Given(open_upload(file_of(image, form), "any"), "any", "any").image
    image_BCHW, latent = encode(tiny_pixels, given, fit_request(given, GenerateRequest("pixels", cells=8)))
    assert image_BCHW.shape == (1, 3, 8, 12) and latent.size == (5, 8) and latent.aspect == 1.5
    assert image_BCHW[0, :, :, 0].min() > 0.95


def test_images_are_turned_cut_down_and_still(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned = open_upload(file_of(halves(40, 20), "JPEG", exif=exif), "any", "turned").image
    assert turned.size == (20, 40) and np.asarray(turned)[:8].min() > 200 and np.asarray(turned)[-8:].max() < 50
    assert open_upload(file_of(halves(4000, 1000)), "any", "large").image.size == (LONG_SIDE, LONG_SIDE // 4)
    frames = [halves(20, 20), Image.new("L", (20, 20), 0)]
    moving = open_upload(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]), "any", "moving").image
    assert np.asarray(moving.convert("L"))[:, :8].min() == 255
    clear = open_upload(file_of(Image.new("RGBA", (8, 8), (255, 255, 255, 0))), "any", "clear").image
    assert clear.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("offset, psnr", [(0.1, "20.0 dB"), (0.01, "40.0 dB"), (0.0, "infinite")])
def test_the_error_is_that_of_the_reconstruction(tiny_pixels, monkeypatch, offset, psnr):
    """Of a black image and a reconstruction that is lighter everywhere."""
    monkeypatch.setattr(tiny_pixels, "resample", lambda _, *, size, fit: torch.full((1, 3, *size), offset))
    html = reconstruction_html(tiny_pixels, Given(Image.new("L", (32, 32)), "black"), GenerateRequest("any", cells=8))
    assert f"PSNR {psnr}" in html
    assert html.count("<img") == 3 and "8 × 8 cells" in html


def test_notes_on_the_image_are_shown_as_text(tiny_pixels):
    given = Given(Image.new("L", (32, 8)), "wide", ("it is <b>cropped",))
    assert "Note: it is &lt;b&gt;cropped." in reconstruction_html(tiny_pixels, given, GenerateRequest("any", cells=8))


def test_a_part_is_cropped_and_what_is_none_is_refused():
    given = Given(halves(400, 200), "any")
    assert np.asarray(cropped(given, (0.0, 0.0, 0.5, 1.0)).image).min() == 255
    assert cropped(given, (-1, 0.25, 2, 0.75)).image.size == (400, 100)
    for region in (None, "abcd", (0, 0, 1), (0.5, 0, 0.5, 1), (float("nan"), 0, 1, 1), ("a", 0, 1, 1)):
        with pytest.raises(ValueError, match="the part of your image did not arrive"):
            cropped(given, region)
    assert crop_value(given, "")["ratio"] == 2 and crop_value(given, "3:4")["ratio"] == 0.75
    assert crop_value(None, "") is None


def test_several_latents_stand_side_by_side_with_what_they_lose(tiny):
    html = kept_html(tiny, Given(halves(60, 40), "any"), GenerateRequest("tiny", cells=4))
    assert re.findall("<figcaption>(.*?), .*?: PSNR [0-9.]+ dB", html) == [
        "4 × 3 cells", "8 × 5 cells", "12 × 8 cells", "16 × 11 cells"
    ]  # fmt: skip
