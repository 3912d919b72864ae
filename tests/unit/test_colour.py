from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from r2id.image import from_pil, read_image

P3_D50 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))  # rows X, Y, Z
SRGB_CURVE = struct.pack(
    ">4s4xH2x5i", b"para", 3, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
GAMMA_2_2 = struct.pack(">4s4xIH", b"curv", 1, round(2.2 * 256))
LINEAR_CURVE = struct.pack(">4s4xI", b"curv", 0)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A minimal ICC profile of version 2, but for its parametric curves of version 4."""
    white = struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in (0.96420, 1.0, 0.82491)))
    tags = {b"wtpt": white, **tags}
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4x4s4s4s4s12x4s", 132 + len(table) - 4 + len(data), b"\4\x20\0\0", kind, space, pcs, b"acsp"
    )
    return header + bytes(68 - 40) + struct.pack(">3i", 63190, 65536, 54061) + bytes(128 - 80) + table + data


def display_p3(curve: bytes) -> bytes:
    columns = zip(*P3_D50, strict=True)
    tags = {}
    for channel, column in zip(b"rgb", columns, strict=True):
        tags[bytes([channel]) + b"XYZ"] = struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in column))
        tags[bytes([channel]) + b"TRC"] = curve
    return profile(b"RGB ", tags)


def grey_paper() -> bytes:
    """A CMYK profile by which every ink alone, and all together, are L* = 50, and bare paper is white."""
    ramp, lightness = bytes(range(256)), [255] + [128] * 15
    clut = b"".join(bytes([value, 128, 128]) for value in lightness)
    unit = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    lut = struct.pack(">4s4x4B", b"mft1", 4, 3, 2, 0) + unit + ramp * 4 + clut + ramp * 3
    return profile(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, pcs=b"Lab ", kind=b"prtr")


P3, LINEAR_GREY = display_p3(SRGB_CURVE), profile(b"GRAY", {b"kTRC": LINEAR_CURVE})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def reopened(pil: Image.Image, file_format: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    pil.save(buffer, file_format, **options)
    return Image.open(buffer)


def levels(pil: Image.Image, channels: int = 3, background: float = 0.0) -> list[int]:
    """The middle pixel, 0…255."""
    pixels_CHW = from_pil(pil, channels, background)
    return (pixels_CHW[:, pil.height // 2, pil.width // 2] * 255).round().int().tolist()


def close(a: list[int], b: tuple[int, ...], by: int = 1) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= by for x, y in zip(a, b, strict=True))


# Profiles


@pytest.mark.parametrize(
    ("curve", "expected"), [(SRGB_CURVE, (217, 42, 52)), (GAMMA_2_2, (219, 37, 49))], ids=["sRGB curve", "gamma 2.2"]
)
def test_display_p3_becomes_srgb(curve, expected):
    colour, profile = Image.new("RGB", (16, 16), (200, 60, 60)), display_p3(curve)
    jpeg = reopened(colour, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    assert close(levels(jpeg), expected) and close(levels(reopened(colour, "JPEG", quality=100)), (200, 60, 60))
    png = reopened(Image.new("RGBA", (2, 2), (200, 60, 60, 128)), "PNG", icc_profile=profile)
    assert close(levels(png, background=1.0), tuple(round(c + (255 - c) * 127 / 255) for c in expected))
    palette = reopened(Image.new("RGB", (2, 2), (200, 60, 60)).quantize(), "PNG", icc_profile=profile)
    assert palette.mode == "P" and close(levels(palette), expected)


def test_grey_follows_its_profile_at_its_own_depth():
    """Linear 55/255 is 128/255 in sRGB."""
    assert close(levels(reopened(Image.new("L", (2, 2), 55), "PNG", icc_profile=LINEAR_GREY), 1), (128,))
    transparent = reopened(Image.new("LA", (2, 2), (55, 255)), "PNG", icc_profile=LINEAR_GREY)
    assert close(levels(transparent, 1), (128,))
    deep = Image.fromarray(np.arange(14000, 14200, dtype=np.uint16)[None])
    pixels = from_pil(reopened(deep, "PNG", icc_profile=LINEAR_GREY), 1, 0.0)
    assert pixels.unique().numel() == 200 and close([round(255 * pixels.median().item())], (128,))
    assert close(levels(reopened(Image.new("L", (2, 2), 60), "PNG", icc_profile=P3), 1), (60,))


def test_cmyk_and_lab_follow_theirs():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert close(levels(reopened(cyan, "TIFF", icc_profile=grey_paper())), (119, 119, 119), by=2)
    assert close(levels(reopened(cyan, "TIFF")), (0, 255, 255))
    for options in ({}, {"icc_profile": LAB}):
        lab = reopened(Image.new("LAB", (2, 2), (138, 209, 198)), "TIFF", **options)
        assert lab.mode == "LAB" and close(levels(lab), (255, 0, 0), by=6)


def test_an_srgb_profile_changes_nothing():
    values = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    plain, tagged = (reopened(Image.fromarray(values), "PNG", **options) for options in ({}, {"icc_profile": SRGB}))
    assert tagged.info["icc_profile"] == SRGB and torch.equal(from_pil(plain, 3, 0.0), from_pil(tagged, 3, 0.0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "I;16"])
@pytest.mark.parametrize("broken", [b"x" * 200, P3[:200], LAB], ids=["no profile", "cut", "of another kind"])
def test_a_profile_that_cannot_be_used_is_ignored_with_a_note(mode, broken):
    pil = Image.new(mode, (2, 2), 77 if mode in ("L", "I;16") else (200, 60, 60, 255)[: len(mode)])
    plain, notes = read_image(pil, 3, 0.0)
    assert notes == ()
    pil.info["icc_profile"] = broken
    tagged, notes = read_image(pil, 3, 0.0)
    assert torch.equal(plain, tagged)
    assert len(notes) == 1 and notes[0].startswith("its colour profile is ignored (")
    with pytest.warns(UserWarning, match="^image: its colour profile is ignored"):
        from_pil(pil, 3, 0.0)
    assert pil.info == {"icc_profile": broken}


# Modes

WHITE = {
    "1": 1,
    "F": 1.0,
    "I": 65535,
    "La": (255, 255),
    "LAB": (255, 128, 128),
    "YCbCr": (255, 128, 128),
    "CMYK": (0, 0, 0, 0),
    "HSV": (0, 0, 255),
}


def white(mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (4, 3), b"\xff" * 24)
    if mode in ("P", "PA"):
        return Image.new("RGB", (4, 3), "white").convert("P").convert(mode)
    return Image.new(mode, (4, 3), WHITE[mode]) if mode in WHITE else Image.new(mode, (4, 3), "white")


@pytest.mark.parametrize("mode", [*Image.MODES, "I;16L", "I;16N"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_read(mode, channels):
    pil = white(mode)
    assert pil.mode == mode
    assert torch.allclose(from_pil(pil, channels, 0.0), torch.ones(channels, 3, 4), atol=2 / 255)


def test_a_mode_that_nobody_knows_is_named():
    pil = Image.new("L", (2, 2))
    pil._mode = "BGR;15"
    with pytest.raises(ValueError, match="^image: mode BGR;15 cannot be read, convert it to RGB or L$"):
        from_pil(pil, 3, 0.0)


# Bit depth


def tiff(values: np.ndarray, **tags) -> Image.Image:
    numbers = {"maximum": 281, "white_is_zero": 262, "s_min": 340, "s_max": 341}
    return reopened(Image.fromarray(values), "TIFF", tiffinfo={numbers[name]: value for name, value in tags.items()})


def raw_tiff(values: np.ndarray, bits: int, signed: bool = False, maximum: int = 0) -> Image.Image:
    """An uncompressed TIFF file written by hand, grey or RGB: Pillow writes neither 12 bits nor 16-bit colour."""
    height, width, channels = *values.shape[:2], values[0, 0].size
    if bits == 12:
        data = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in values.reshape(-1, 2).tolist())
    else:
        data = values.tobytes()
    entries = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, 1 if channels == 1 else 2), (273, 4, 16)]
    entries += [(277, 3, channels), (278, 4, height), (279, 4, len(data)), (339, 3, 1 + signed)]
    entries += [(281, 3, maximum)] if maximum else []
    rows = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries]
    rows.append(struct.pack("<HHII", 258, 3, channels, bits if channels == 1 else 8))  # RGB: they are at byte 8
    data = struct.pack("<4H", *[bits] * 4) + data + bytes(len(data) % 2)
    directory = struct.pack("<H", len(rows)) + b"".join(sorted(rows, key=lambda row: row[1::-1])) + bytes(4)
    return Image.open(io.BytesIO(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory))


SIXTEEN = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
TWELVE = np.array([[0, 1, 7, 2048, 4094, 4095]], dtype=np.uint16)
FULL = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
CASES = {
    "16 bits": (reopened(Image.fromarray(SIXTEEN), "PNG"), SIXTEEN / 65535),
    "16 bits, big end first": (Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()), SIXTEEN / 65535),
    "16 bits, none bright": (Image.fromarray(SIXTEEN // 1000), (SIXTEEN // 1000) / 65535),
    "I that holds 16 bits": (Image.fromarray(SIXTEEN.astype(np.int32)), SIXTEEN / 65535),
    "I that holds 8 bits": (Image.new("L", (2, 2), 51).convert("I"), np.full((2, 2), 0.2)),
    "I that holds 31 bits": (Image.fromarray(np.array([[0, 2**31 - 1]], dtype=np.int32)), np.array([[0.0, 1.0]])),
    "F": (Image.fromarray((SIXTEEN / 65535).astype(np.float32)), SIXTEEN / 65535),
    "12 bits": (raw_tiff(TWELVE, 12), TWELVE / 4095),
    "12 bits in 16": (tiff(TWELVE, maximum=4095), TWELVE / 4095),
    "16 bits, the highest stated": (tiff(TWELVE, maximum=4094), TWELVE / 65535),
    "signed 16 bits": (raw_tiff((TWELVE * 8).astype(np.int16), 16, signed=True), TWELVE * 8 / 32767),
    "unsigned 32 bits": (raw_tiff(FULL, 32), FULL / (2**32 - 1)),
    "a stated range": (
        tiff(np.array([[-50, 150]], dtype=np.float32), s_min=-50.0, s_max=350.0),
        np.array([[0.0, 0.5]]),
    ),
    "white is zero": (tiff(SIXTEEN, white_is_zero=0), 1 - SIXTEEN / 65535),
    "PGM": (Image.open(io.BytesIO(b"P5 3 1 65535\n" + SIXTEEN[:1].astype(">u2").tobytes())), SIXTEEN[:1] / 65535),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_keeps_its_range(case, channels):
    pil, expected = CASES[case]
    expected_CHW = torch.from_numpy(expected).float().expand(channels, -1, -1)
    torch.testing.assert_close(from_pil(pil, channels, 0.0), expected_CHW, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("pil", "fault"),
    [
        *(
            (Image.new("F", (2, 2), value), "mode F with values .* must be in 0…1")
            for value in (-1.0, 2.0, float("nan"))
        ),
        (Image.new("I", (2, 2), -1), "mode I with values -1…-1 must be in 0…255"),
        (Image.new("I", (2, 2), 70000), "mode I with values up to 70000 and no stated range"),
        (tiff(TWELVE, maximum=1023), "mode I;16 with values 0…4095 must be in 0…1023"),
        (tiff(np.ones((1, 2), np.float32), s_min=1.0, s_max=1.0), "mode F with values 1…1 must be in 1…1"),
    ],
)
def test_a_range_that_nothing_states_is_refused(pil, fault):
    with pytest.raises(ValueError, match=f"^image: {fault}"):
        from_pil(pil, 1, 0.0)


def test_colour_of_16_bits_keeps_its_range_and_of_12_in_16_is_refused():
    colour = np.array([[[65535, 32768, 0]]], dtype=np.uint16)
    for pil in (Image.open(io.BytesIO(b"P6 1 1 65535\n" + colour.astype(">u2").tobytes())), raw_tiff(colour, 16)):
        assert pil.mode == "RGB" and close(levels(pil), (255, 128, 0))
    with pytest.raises(
        ValueError, match="^image: RGB of 16 bits that only reaches 4095 cannot be read, save it with 8"
    ):
        from_pil(raw_tiff(colour // 16, 16, maximum=4095), 3, 0.0)
