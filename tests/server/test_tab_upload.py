"""The functions behind the tab for the user's own image."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from r2id.demo.request import GenerateRequest
from r2id.demo.tabs.upload import MOST, Given, described, encoded, loss, opened


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
    given = Given(opened(file_of(image, form), "any"), "any")
    image_BCHW, latent = encoded(tiny_pixels, given, described(given, GenerateRequest("pixels", cells=8)))
    assert image_BCHW.shape == (1, 3, 8, 12) and latent.size == (5, 8) and latent.aspect == 1.5
    assert image_BCHW[0, :, :, 0].min() > 0.95


def test_images_are_turned_cut_down_and_still(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned = opened(file_of(halves(40, 20), "JPEG", exif=exif), "turned")
    assert turned.size == (20, 40) and np.asarray(turned)[:8].min() > 200 and np.asarray(turned)[-8:].max() < 50
    assert opened(file_of(halves(4000, 1000)), "large").size == (MOST, MOST // 4)
    frames = [halves(20, 20), Image.new("L", (20, 20), 0)]
    moving = opened(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]), "moving")
    assert np.asarray(moving.convert("L"))[:, :8].min() == 255
    clear = opened(file_of(Image.new("RGBA", (8, 8), (255, 255, 255, 0))), "clear")
    assert clear.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize(
    "file, words",
    [
        (io.BytesIO(b"not an image"), "thing: not an image that can be read"),
        (io.BytesIO(file_of(halves(60, 60)).getvalue()[:80]), "thing: not an image that can be read"),
        (file_of(Image.new("1", (9000, 8000))), "thing of 9000 × 8000 pixels: must have at most 67,108,864"),
    ],
    ids=["text", "cut off", "huge"],
)
def test_other_files_are_refused_in_a_line(file, words):
    with pytest.raises(ValueError, match=words) as caught:
        opened(file, "thing")
    assert "\n" not in str(caught.value)


def test_frames_beyond_the_limit_are_refused():
    with pytest.raises(ValueError, match="aspect ratio 5:1: must be 1:4 … 4:1"):
        described(Given(halves(50, 10), "wide"), GenerateRequest("tiny"))


def test_the_error_is_that_of_the_reconstruction(tiny, tiny_pixels):
    given = Given(halves(32, 32), "halves")
    for pipe in (tiny, tiny_pixels):
        image_BCHW, latent = encoded(pipe, given, GenerateRequest("any", cells=8))
        error = (pipe.resample(latent, size=(8, 8)) - image_BCHW).square().mean().item()
        words = loss(pipe, given, GenerateRequest("any", cells=8))
        psnr, mse = re.search(r"PSNR ([0-9.]+ dB|infinite).*error ([0-9.e-]+) of", words).groups()
        assert float(mse) == pytest.approx(error, rel=0.06)
        assert psnr == (f"{-10 * np.log10(error):.1f} dB" if error else "infinite")
    assert words.count("<img") == 3 and "8 × 8 cells" in words
