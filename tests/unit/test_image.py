from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from r2id import image
from r2id.image import contact_sheet, from_pil, read_parameters, save_png, to_pil

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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_eight_bit_modes_are_read(mode, channels):
    white = Image.new("RGBA" if mode == "RGBa" else "RGB", (4, 3), "white").convert(mode)
    assert torch.allclose(from_pil(white, channels, 0.0), torch.ones(channels, 3, 4), atol=2 / 255)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(channels):
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
    expected = torch.from_numpy(values.astype(np.float32) / 65535).expand(channels, -1, -1)
    for pil in (
        reopened(Image.fromarray(values), "PNG"),
        Image.fromarray(values.astype(np.int32)),
        Image.fromarray(values.astype(np.float32) / np.float32(65535)),
    ):
        assert pil.mode in ("I;16", "I", "F")
        assert torch.equal(from_pil(pil, channels, 0.0), expected)


def test_a_transparent_sixteen_bit_grey_is_background():
    pil = reopened(Image.fromarray(np.array([[7, 65535]], dtype=np.uint16)), "PNG", transparency=7)
    assert from_pil(pil, 1, 0.5).tolist() == [[[0.5, 1.0]]]


@pytest.mark.parametrize("value", [-1.0, 2.0, float("nan")])
def test_floats_outside_the_range_are_refused(value):
    with pytest.raises(ValueError, match="mode F must have values in 0…1"):
        from_pil(Image.new("F", (2, 2), value), 1, 0.0)


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_orientation_is_applied(mode):
    values = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8 if mode == "L" else np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # rows run upwards along the left side: turn a quarter to the right
    pixels = from_pil(reopened(Image.fromarray(values), "PNG", exif=exif), 1, 0.0)
    assert (pixels[0] * (255 if mode == "L" else 65535)).round().tolist() == [[4, 1], [5, 2], [6, 3]]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    pil = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pil.seek(1)
    assert from_pil(pil, 3, 0.0)[:, 0, 0].tolist() == [1, 0, 0]


def test_large_and_empty_images_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 11)
    pil = reopened(to_pil(GREY), "PNG")
    monkeypatch.setattr(pil, "load", lambda: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="image of 3×4: must have 1…11 pixels"):
        from_pil(pil, 1, 0.0)
    with pytest.raises(ValueError, match="image of 0×5"):
        from_pil(Image.new("L", (5, 0)), 1, 0.0)


def test_a_truncated_file_is_a_value_error():
    buffer = io.BytesIO()
    to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))).save(buffer, "PNG")
    with pytest.raises(ValueError, match="^image cannot be decoded: .+$"):
        from_pil(Image.open(io.BytesIO(buffer.getvalue()[:2000])), 3, 0.0)


@pytest.mark.parametrize(("channels", "background"), [(2, 0.0), (3, [0.0, 1.0]), (1, 1.5), (1, float("nan")), (3, [])])
def test_bad_channels_and_backgrounds_are_refused(channels, background):
    with pytest.raises(ValueError, match="^(channels|background)"):
        from_pil(to_pil(GREY), channels, background)


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
