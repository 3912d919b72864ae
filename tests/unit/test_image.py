from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from r2id.image import (
    as_images,
    contact_sheet,
    from_pil,
    iter_images,
    read_image,
    read_parameters,
    save_png,
    to_pil,
)
from r2id.image_file import ImageError
from r2id.limits import MAX_PIXELS

GREY = torch.arange(12).reshape(1, 3, 4) * 20 / 255
COLOUR = torch.stack([GREY[0], GREY[0].flip(0), GREY[0].flip(1)])


def reopened(pil: Image.Image, file_format: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    pil.save(buffer, file_format, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("image_CHW", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bits_survive_both_ways(image_CHW):
    back_CHW = from_pil(to_pil(image_CHW), image_CHW.shape[0], 0.0)
    assert back_CHW.dtype == torch.float32 and back_CHW.is_contiguous()
    assert torch.equal(back_CHW, image_CHW)


def test_values_are_rounded_and_clamped():
    values = torch.tensor([[[-1.0, 0.4 / 255, 0.6 / 255, 2.0]]])
    assert np.asarray(to_pil(values)).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize(
    "bad", [torch.ones(2, 3, 3), torch.ones(3, 3), torch.ones(1, 0, 3), torch.full((1, 2, 2), torch.nan)]
)
def test_bad_tensors_are_refused(bad):
    with pytest.raises(ValueError, match="^image"):
        to_pil(bad)


def test_channels_convert():
    assert torch.equal(from_pil(to_pil(GREY), 3, 0.0), GREY.expand(3, -1, -1))
    assert from_pil(to_pil(COLOUR), 1, 0.0).shape == (1, 3, 4)


def test_cmyk_jpeg_keeps_its_colour():
    red = reopened(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG", quality=95)
    assert red.mode == "CMYK"
    assert torch.allclose(from_pil(red, 3, 0.0)[:, 4, 4], torch.tensor([1.0, 0.0, 0.0]), atol=0.05)


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_transparency_is_laid_on_the_background(alpha):
    pil = Image.new("RGBA", (2, 2), (255, 0, 0, alpha))
    part, background = alpha / 255, torch.tensor([0.2, 0.4, 0.6])
    expected = part * torch.tensor([1.0, 0.0, 0.0]) + (1 - part) * background
    assert torch.allclose(from_pil(pil, 3, background.tolist())[:, 0, 0], expected, atol=1e-6)
    grey = from_pil(Image.new("LA", (2, 2), (255, alpha)), 1, 0.5)
    assert torch.allclose(grey, torch.full((1, 2, 2), part + (1 - part) * 0.5))


def test_a_transparent_palette_entry_is_background():
    pil = Image.new("P", (2, 1))
    pil.putpalette([255, 0, 0, 0, 255, 0])
    pil.putdata([0, 1])
    pixels = from_pil(reopened(pil, "PNG", transparency=0), 3, 1.0)
    assert pixels[:, 0].T.tolist() == [[1, 1, 1], [0, 1, 0]]


def test_a_transparent_sixteen_bit_grey_is_background():
    pil = reopened(Image.fromarray(np.array([[7, 65535]], dtype=np.uint16)), "PNG", transparency=7)
    assert from_pil(pil, 1, 0.5).tolist() == [[[0.5, 1.0]]]


@pytest.mark.parametrize(("channels", "background"), [(2, 0.0), (3, [0.0, 1.0]), (1, 1.5), (1, float("nan")), (3, [])])
def test_bad_channels_and_backgrounds_are_refused(channels, background):
    with pytest.raises(ValueError, match="^(channels|background)"):
        from_pil(to_pil(GREY), channels, background)


def test_notes_come_with_the_image_and_errors_name_it(tmp_path):
    to_pil(COLOUR).save(tmp_path / "a.png", icc_profile=b"x" * 200)
    pixels, notes = read_image(tmp_path / "a.png", 3, 0.0)
    assert torch.equal(pixels, COLOUR) and len(notes) == 1 and "colour profile is ignored" in notes[0]
    with pytest.warns(UserWarning, match="^a.png: its colour profile is ignored"):
        as_images(tmp_path / "a.png", 3, 0.0)
    with pytest.raises(ImageError, match="^your image: not an image that can be read"):
        read_image(b"nothing", 3, 0.0, name="your image")


def test_parameters_travel_in_the_file(tmp_path):
    parameters = {"label": "sëven", "seed": 2**32 - 1, "guidance": 1.5, "size": [64, 40], "mixture": {"3": 0.25}}
    for file in (tmp_path / "a.png", io.BytesIO()):
        save_png(COLOUR, file, parameters)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        assert read_parameters(file) == parameters
    assert torch.equal(from_pil(Image.open(tmp_path / "a.png"), 3, 0.0), COLOUR)
    with pytest.raises(ValueError):
        save_png(COLOUR, io.BytesIO(), {"eta": float("nan")})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "without a text chunk 'r2id'"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "must hold an object, not list"),
    ],
)
def test_files_without_parameters_are_value_errors(text, match):
    info, buffer = PngInfo(), io.BytesIO()
    if text is not None:
        info.add_text("r2id", text)
    to_pil(GREY).save(buffer, "PNG", pnginfo=info)
    with pytest.raises(ValueError, match=match):
        read_parameters(buffer)


def test_other_files_are_value_errors(tmp_path):
    bomb, jpeg = io.BytesIO(), io.BytesIO()
    info = PngInfo()
    info.add_text("r2id", json.dumps({"a": "x" * 2**21}), zip=True)
    to_pil(GREY).save(bomb, "PNG", pnginfo=info)
    to_pil(GREY).save(jpeg, "JPEG")
    for file in (tmp_path / "none.png", io.BytesIO(b"text"), jpeg, bomb):
        with pytest.raises(ValueError, match="^not a readable PNG file: .+$"):
            read_parameters(file)


def test_sheet_keeps_every_image_whole_and_in_order():
    images = [torch.full((1, 2, 4), 0.2), torch.full((1, 4, 2), 0.4), torch.full((3, 4, 4), 0.6)]
    sheet = contact_sheet(images, columns=2, gap=1)
    assert sheet.mode == "RGB" and sheet.size == (11, 11)
    values = np.asarray(sheet)[..., 0]
    assert (values[2:4, 1:5] == 51).all() and (values == 51).sum() == 8
    assert (values[1:5, 7:9] == 102).all() and (values == 102).sum() == 8
    assert (values[6:10, 1:5] == 153).all() and (values == 153).sum() == 16
    assert contact_sheet([GREY], columns=1, gap=0).tobytes() == to_pil(GREY).tobytes()


@pytest.mark.parametrize(("count", "columns", "gap"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_bad_sheets_are_refused(count, columns, gap):
    with pytest.raises(ValueError, match=f"{count} images, {columns} columns, gap {gap}"):
        contact_sheet([GREY] * count, columns, gap)


# What `Pipeline.encode` takes


TALL = COLOUR.repeat(1, 2, 1)


def same(image, expected_BCHW: torch.Tensor, channels: int = 3, atol: float = 1e-6) -> None:
    given_BCHW = as_images(image, channels, 0.0)
    assert given_BCHW.dtype == torch.float32
    torch.testing.assert_close(given_BCHW, expected_BCHW, atol=atol, rtol=0)


def test_an_image_may_be_given_in_any_form(tmp_path):
    save_png(TALL, tmp_path / "a.png", {})
    data, array = (tmp_path / "a.png").read_bytes(), TALL.permute(1, 2, 0).numpy()
    whole = (array * 255).round().astype(np.uint8)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data), to_pil(TALL)]
    forms += [TALL, TALL.double(), (TALL * 255).round().byte(), array, array[::1].astype(np.float64), whole]
    for form in forms:
        same(form, TALL[None])
    forms[3].seek(0)
    same(forms, TALL.expand(len(forms), -1, -1, -1))
    same(iter([TALL] * 3), TALL.expand(3, -1, -1, -1))
    same(torch.stack([TALL, TALL]), TALL.expand(2, -1, -1, -1))
    same(np.stack([whole, whole]), TALL.expand(2, -1, -1, -1))


def test_arrays_become_the_channels_of_the_model():
    grey, alpha = TALL[0].numpy(), np.full((6, 4, 1), 0.25, dtype=np.float32)
    for form in (grey, grey[..., None], (grey * 65535).round().astype(np.uint16)):
        for channels in (1, 3):
            same(form[None] if form.ndim == 3 else form, TALL[:1].expand(1, channels, -1, -1), channels, atol=1e-5)
    same(grey > 0.5, (TALL[:1] > 0.5).float()[None], channels=1)
    rgba = np.concatenate([TALL.permute(1, 2, 0).numpy(), alpha], axis=2)
    assert torch.allclose(as_images(rgba, 3, [0.0, 1.0, 0.5])[0, 1], 0.25 * TALL[1] + 0.75)
    same(TALL.permute(1, 2, 0).numpy(), from_pil(to_pil(TALL), 1, 0.0)[None], channels=1, atol=1 / 255)


def test_any_number_of_images_is_read_each_in_its_turn():
    assert as_images([to_pil(GREY)] * 100, 1, 0.0).shape == (100, 1, 3, 4)
    turns = iter_images((to_pil(GREY) if i < 2 else pytest.fail("read too soon") for i in range(3)), 1, 0.0)
    assert torch.equal(next(turns), next(turns))


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (None, "must be a path, a PIL image, a tensor"),
        ([], "image: none given"),
        (torch.zeros(0, 1, 3, 4), "image: none given"),
        (torch.zeros(3, 4), r"image of shape \(3, 4\): a tensor must be \(C, H, W\)"),
        (torch.zeros(3, 4, 4), "a tensor must be .* with C = 1"),
        (torch.zeros(1, 0, 4), "a tensor must be"),
        (torch.zeros(1, 1, 1).expand(1, MAX_PIXELS, 2), f"at most {MAX_PIXELS:,} pixels"),
        (torch.zeros(1, 3, 4, dtype=torch.int32), "image of type torch.int32: must be float in .* or uint8"),
        (torch.full((1, 3, 4), 128.0), "image values 128…128: must be in .*, divide it by 255"),
        (torch.full((1, 3, 4), torch.nan), "image values nan…nan"),
        (
            np.zeros((3, 8, 3)),
            r"image of shape \(3, 8, 3\): an array must be .*; give one with its channels first as a",
        ),
        (np.zeros((3, 8, 8)), "channels first as a tensor"),
        (np.zeros((8, 8, 2)), "with C 1, 3 or 4"),
        (np.zeros(8), "with C 1, 3 or 4"),
        (np.zeros((8, 8), np.int64), "image of type int64: must be float in"),
        (np.full((8, 8), -0.1), "image values -0.1…-0.1"),
        (np.zeros((0, 8)), "at least one pixel"),
        ("none.png", "none.png: no such file or directory"),
        (b"no image", "image: not an image that can be read"),
        ([to_pil(GREY), torch.zeros(1, 8, 9)], "images of different sizes"),
    ],
)
def test_what_is_no_image_is_refused_with_the_remedy(image, fault):
    with pytest.raises(ValueError, match=fault) as error:
        as_images(image, 1, 0.0)
    assert "\n" not in str(error.value)
