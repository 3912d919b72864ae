from __future__ import annotations

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from r2id import image_file
from r2id.image import from_pil
from r2id.image_file import MAX_DECODED_PIXELS, ImageError, open_image, peek_image

NOISE = torch.randint(0, 256, (64, 96, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
SMOOTH = np.broadcast_to(np.linspace(0, 255, 320).astype(np.uint8)[:, None, None], (320, 640, 3))


def file_of(pil: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    pil.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and ends there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


PNG, JPEG = (file_of(Image.fromarray(NOISE), file_format) for file_format in ("PNG", "JPEG"))


# Files


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF"])
def test_files_are_read_from_paths_bytes_and_files(tmp_path, file_format):
    data = file_of(Image.fromarray(SMOOTH[:64, :64]), file_format)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as file:
        images = [open_image(source) for source in (data, tmp_path / "a", str(tmp_path / "a"), io.BytesIO(data), file)]
    assert all(image.mode in ("RGB", "RGBA") and image.size == (64, 64) for image in images)
    assert all(image.tobytes() == images[0].tobytes() and image.info == {} for image in images)
    error = np.asarray(images[0].convert("RGB")).astype(int) - SMOOTH[:64, :64]
    assert abs(error).mean() < 4


BROKEN = {
    "text": b"no image at all",
    "nothing": b"",
    "cut in its header": PNG[:20],
    "cut PNG": PNG[:-2000],
    "cut JPEG": JPEG[:-2000],
    "damaged PNG": PNG[:60] + bytes(200) + PNG[260:],
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_image_is_told_in_the_same_words_everywhere(tmp_path, data):
    (tmp_path / "thing.png").write_bytes(data)
    faults = set()
    for source, name in ((data, "image"), (tmp_path / "thing.png", "thing.png"), (io.BytesIO(data), "image")):
        with pytest.raises(ImageError) as error:
            open_image(source)
        assert str(error.value) == f"{name}: {error.value.fault}" and "\n" not in error.value.fault
        faults.add(error.value.fault)
        with pytest.raises(ImageError, match="^mine: "):
            open_image(source, name="mine")
    fault = faults.pop()
    assert not faults and fault.startswith("not an image that can be read (") and fault.endswith("or GIF file")


def test_files_that_are_not_there_are_named(tmp_path):
    for file, fault in ((tmp_path / "none.png", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ImageError, match=f"^{file.name}: {fault}$"):
            open_image(file)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x20ftypheic", "HEIC"),
        (b"\0\0\0\x20ftypmif1", "HEIC"),
        (b"\xff\x0a12", "JPEG XL"),
        (b"<svg xmlns=", "SVG"),
        (b"%PDF-1.4", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(monkeypatch, data, kind):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_file._register_heif.cache_clear()
    remedy = "needs `pip install pillow-heif`, or save" if kind == "HEIC" else "cannot be read, save"
    with pytest.raises(ImageError, match=f"^image: {kind} {remedy} the image as"):
        open_image(data + bytes(20))


def test_heic_is_read_where_its_package_is_installed(monkeypatch):
    """Its opener is registered when it is first needed, once."""
    registered = []

    def register() -> None:
        registered.append("HEIF")
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
        opener = (lambda fp, _: Image.open(io.BytesIO(fp.read()[16:])), lambda prefix: prefix[4:12] == b"ftypheic")
        monkeypatch.setitem(Image.OPEN, "HEIF", opener)

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    image_file._register_heif.cache_clear()
    open_image(PNG)
    assert not registered
    for _ in range(2):
        assert open_image(b"\0\0\0\x20ftypheic\0\0\0\0" + PNG).tobytes() == NOISE.tobytes()
    assert registered == ["HEIF"]
    image_file._register_heif.cache_clear()


def test_a_header_is_read_without_the_pixels():
    with peek_image(png_header(20_000, 20_000)) as image:
        assert image.size == (20_000, 20_000) and image.mode == "RGB"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(file_format, orientation):
    upright = np.kron(np.array([[0, 80, 160], [240, 40, 120]], dtype=np.uint8), np.ones((16, 16), np.uint8))
    turns = {
        2: (0, 1),
        3: (2, 0),
        4: (2, 1),
        5: (3, 1),
        6: (1, 0),
        7: (1, 1),
        8: (3, 0),
    }  # quarters left, then mirrored
    quarters, mirrored = turns.get(orientation, (0, 0))
    stored = np.rot90(upright, quarters)
    stored = stored[:, ::-1] if mirrored else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=exif)
    image = open_image(data)
    assert image.size == (48, 32)
    assert abs(np.asarray(image.convert("L")).astype(int) - upright).mean() < 4
    assert torch.equal(from_pil(image, 1, 0.0), from_pil(Image.open(io.BytesIO(data)), 1, 0.0))


def test_broken_exif_data_are_ignored_with_a_note():
    image = open_image(file_of(Image.fromarray(NOISE), exif=b"Exif\0\0nothing"))
    assert image.tobytes() == NOISE.tobytes()
    assert [note.partition(" (")[0] for note in image.info["notes"]] == [
        "its EXIF data, and with it its orientation, are ignored"
    ]
    assert open_image(file_of(image)).info == {}


# Sizes


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("shortest", "least", "most"), [(320, 320, 320), (100, 100, 199), (16, 16, 31), (1000, 320, 320)]
)
def test_what_is_enough_is_left_of_a_larger_image(file_format, shortest, least, most):
    image = open_image(file_of(Image.fromarray(SMOOTH), file_format), shortest=shortest)
    assert least <= image.height <= most and image.width == 2 * image.height and image.info == {}
    expected = np.linspace(0, 255, 2 * image.height + 1)[1::2]
    assert abs(np.asarray(image)[:, :, 0].mean(axis=1) - expected).max() < 6


def test_a_jpeg_is_reduced_while_it_is_decoded(monkeypatch):
    seen = []
    decoded = image_file._decoded
    monkeypatch.setattr(
        image_file, "_decoded", lambda pil, *args, **kw: (seen.append(pil.size), decoded(pil, *args, **kw))[1]
    )
    open_image(file_of(Image.fromarray(SMOOTH), "JPEG"), shortest=40)
    assert seen == [(80, 40)]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "CMYK"])
def test_an_image_above_the_limit_is_reduced_and_that_is_noted(monkeypatch, mode):
    monkeypatch.setattr(image_file, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's guard is not what refuses, and it stays
    grey = Image.fromarray((NOISE[..., 0].astype(np.uint16)) * 257)
    image = open_image(file_of(grey if mode == "I;16" else Image.fromarray(NOISE).convert(mode), "TIFF"))
    assert image.size == (32, 22) and image.info["notes"] == ("it is reduced from 96 × 64 pixels, more than 1,000",)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert open_image(JPEG, shortest=16).size == (24, 16)


@pytest.mark.parametrize("data", [png_header(32_000, 32_000), png_header(2**31 - 1, 2**31 - 1)])
def test_a_claim_of_a_gigapixel_is_refused_before_anything_is_decoded(data):
    with pytest.raises(ImageError, match=rf"pixels, must have 1…{MAX_DECODED_PIXELS:,}, reduce it first$"):
        open_image(data)


def test_the_limit_counts_what_is_decoded(monkeypatch):
    """A baseline JPEG is decoded reduced; a progressive one is held whole."""
    monkeypatch.setattr(image_file, "MAX_DECODED_PIXELS", 3000)
    monkeypatch.setattr(image_file, "MAX_IMAGE_PIXELS", 3000)
    assert open_image(JPEG).size == (48, 32)
    for data in (PNG, file_of(Image.fromarray(NOISE), "JPEG", progressive=True)):
        with pytest.raises(ImageError, match="^image: 96 × 64 pixels, must have 1…3,000, reduce it first$"):
            open_image(data)
    with pytest.raises(ValueError, match="^image: 5 × 0 pixels"):
        from_pil(Image.new("L", (5, 0)), 1, 0.0)


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "PNG", "WEBP", "TIFF"):
        data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:])
        pil = Image.open(io.BytesIO(data))
        pil.seek(1)
        for image in (pil, open_image(data)):
            red = from_pil(image, 3, 0.0)[:, 0, 0]
            assert torch.allclose(red, torch.tensor([1.0, 0.0, 0.0]), atol=0.03)
