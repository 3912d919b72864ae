from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from train.data.decode import Decoder, channels_of, is_grey
from train.data.sources import Row


def row(pil: Image.Image, name: str = "a", file_format: str = "PNG", **options) -> Row:
    buffer = io.BytesIO()
    pil.save(buffer, file_format, **options)
    return Row(name, buffer.getvalue(), 0)


def test_training_images_are_read_as_all_others():
    """The right way up, at their own depth, transparency on white."""
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.array([[0, 65535], [0, 65535]], dtype=np.uint16))
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    turned, white = Decoder("data", 1, 2)([row(deep, exif=exif), row(clear)])
    assert turned.tolist() == [[[0, 0], [1, 1]]] and white.tolist() == [[[1, 1], [1, 1]]]


def test_a_large_image_is_reduced_while_it_is_decoded():
    ramp = Image.fromarray(np.broadcast_to(np.linspace(0, 255, 640).astype(np.uint8), (320, 640)).copy())
    rows = [row(ramp, file_format=file_format) for file_format in ("PNG", "JPEG")]
    for max_aspect, size in ((None, (8, 8)), (4.0, (8, 16))):
        for image in Decoder("data", 1, 8, max_aspect)(rows):
            assert image.shape[1:] == size
            middle = image[0, :, size[1] // 2 - 1 : size[1] // 2 + 1]
            assert torch.allclose(middle.mean(), torch.tensor(0.5), atol=0.02)


def test_notes_are_told_once_each_and_the_image_is_kept():
    grey = Image.new("L", (2, 2), 255)
    rows = [row(grey, name, icc_profile=b"x" * 200) for name in "abcd"]
    decoder = Decoder("data", 1, 2)
    for _ in range(2):
        assert all(image.tolist() == [[[1, 1], [1, 1]]] for image in decoder(rows))
    match = r"^data: 4 notes on images: a \(its colour profile is ignored \(.*\)\), b .*, c .*, …$"
    with pytest.warns(UserWarning, match=match):
        decoder.report()
    decoder.report()


def test_grey_is_known_from_the_header():
    grey, colour = row(Image.new("LA", (2, 2))), row(Image.new("RGB", (2, 2)))
    cut = Row("cut", grey.file[:60], 0)
    assert is_grey(grey) and is_grey(cut) and not is_grey(colour)
    assert is_grey(Row("broken", b"nothing", 0)) and is_grey(Row("none", None, 0))
    assert channels_of([[grey], [cut]]) == 1 and channels_of([[grey], [colour]]) == 3
