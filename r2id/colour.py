"""PIL images of every mode, bit depth and colour profile → L, LA, RGB, RGBA in sRGB, or F in [0, 1]."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
GREY_MODES = ("1", "L", "LA", "La", *DEEP_MODES)
# Mode → what it becomes without and with transparency. CMYK and LAB wait for `to_srgb`.
PLAIN_MODES = {
    **dict.fromkeys(("1", "L"), ("L", "LA")),
    **dict.fromkeys(("LA", "La"), ("LA", "LA")),
    **dict.fromkeys(("RGB", "P"), ("RGB", "RGBA")),
    **dict.fromkeys(("RGBA", "RGBa", "PA"), ("RGBA", "RGBA")),
    **dict.fromkeys(("RGBX", "YCbCr", "HSV"), ("RGB", "RGB")),
    "CMYK": ("CMYK", "CMYK"),
    "LAB": ("LAB", "LAB"),
}
BITS, PHOTOMETRIC, MAX_SAMPLE, FORMAT, S_MIN, S_MAX = 258, 262, 281, 339, 340, 341  # TIFF tags
SPACES = {"L": "GRAY", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # mode → colour space of its profile


def to_plain(pil: Image.Image) -> Image.Image:
    """Image of any mode → L, LA, RGB, RGBA, CMYK, LAB, or F in [0, 1] (see `value_range`; LA where one deep grey is
    transparent). Raises ValueError that names the mode where it cannot be read."""
    if pil.mode in DEEP_MODES:
        return _deep_grey(pil)
    if pil.mode not in PLAIN_MODES:
        raise ValueError(f"mode {pil.mode} cannot be read, convert it to RGB or L")
    stated = _stated_maximum(pil)
    if stated is not None and stated < 65535 and _tag(pil, BITS) == 16:
        # Pillow keeps the upper 8 of 16 bits of a colour.
        raise ValueError(f"{pil.mode} of 16 bits that only reaches {stated:g} cannot be read, save it with 8 bits")
    mode = PLAIN_MODES[pil.mode][pil.has_transparency_data]
    return pil if pil.mode == mode else pil.convert(mode)


def value_range(pil: Image.Image, highest: float) -> tuple[float, float]:
    """Black and white of a deep grey image (modes I, I;16*, F) whose highest value is `highest`.

    They are what the file states: the TIFF tags SMinSampleValue and SMaxSampleValue; else MaxSampleValue where it is
    the end of a range of 8…16 bits (4095 is 12 bits in 16; others are statistics); else BitsPerSample below 32. Else
    they are 0…1 in mode F, 0…65535 in I;16* and in PNG and PPM files. Mode I says nothing itself: its range is then the
    smallest of 8, 16 and 32 bits that holds the values, and 0…`highest` being below 1/256 of that is a ValueError.
    """
    signed = _tag(pil, FORMAT, 1 if hasattr(pil, "tag_v2") else 2) == 2
    if (high := _tag(pil, S_MAX)) is not None:
        return float(_tag(pil, S_MIN, 0)), float(high)
    if pil.mode == "F":
        return 0.0, 1.0
    if (stated := _stated_maximum(pil)) is not None:
        return 0.0, stated
    if (bits := _tag(pil, BITS, 32)) < 32:
        return 0.0, 2.0 ** (bits - signed) - 1
    if pil.mode != "I" or getattr(pil, "format", None) in ("PNG", "PPM"):
        return 0.0, 65535.0
    white = next((white for white in (255.0, 65535.0) if highest <= white), 2.0 ** (32 - signed) - 1)
    if white > 65535 and highest < white / 256:
        raise ValueError(f"mode I with values up to {highest:g} and no stated range, scale it to 0…65535")
    return 0.0, white


def to_srgb(pil: Image.Image, icc_profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Image from `to_plain` → L, LA, RGB, RGBA or F in sRGB, and a note where its profile is ignored: a broken one, or
    one for another kind of image. CMYK and LAB without a profile are taken as usual (LAB by white D50)."""
    note = None
    if icc_profile:
        try:
            return _through_profile(pil, icc_profile), None
        except Exception as error:  # LittleCMS raises what a broken profile leads it into.
            note = f"its colour profile is ignored ({' '.join(str(error).split())})"
    if pil.mode == "LAB":
        pil = ImageCms.applyTransform(pil, _transform(None, "LAB"))
    return pil.convert("RGB") if pil.mode == "CMYK" else pil, note


def _deep_grey(pil: Image.Image) -> Image.Image:
    values_HW = np.asarray(pil)
    if pil.mode == "I" and _tag(pil, BITS) == 32 and _tag(pil, FORMAT, 1) == 1:
        values_HW = values_HW.view(np.uint32)
    key = pil.info.get("transparency")
    opaque_HW = None if key is None else values_HW != key
    low, high = float(values_HW.min()), float(values_HW.max())
    values_HW = values_HW.astype(np.float32)
    black, white = value_range(pil, high)
    margin = 1e-3 * (white - black) if pil.mode == "F" else 0.0  # interpolation overshoots
    if not (white > black and black - margin <= low and high <= white + margin):  # NaN is not
        raise ValueError(f"mode {pil.mode} with values {low:g}…{high:g} must be in {black:g}…{white:g}, scale it")
    values_HW -= np.float32(black)
    values_HW /= np.float32(white - black)
    np.clip(values_HW, 0, 1, out=values_HW)
    if _tag(pil, PHOTOMETRIC) == 0:  # white is zero: Pillow inverts 8 bits and fewer only
        np.subtract(1, values_HW, out=values_HW)
    if opaque_HW is None:
        return Image.fromarray(values_HW)
    bytes_HW2 = np.stack([(values_HW * 255).round(), opaque_HW * 255.0], axis=-1).astype(np.uint8)
    return Image.fromarray(bytes_HW2)


def _tag(pil: Image.Image, tag: int, default=None):
    """A TIFF tag, one value for all channels (the largest), or the default."""
    value = getattr(pil, "tag_v2", {}).get(tag, default)
    return max(value, default=default) if isinstance(value, tuple) else value


def _stated_maximum(pil: Image.Image) -> float | None:
    """MaxSampleValue where it is the end of a range of 8…16 bits."""
    value = _tag(pil, MAX_SAMPLE, 0)
    return float(value) if value in {2**bits - 1 for bits in range(8, 17)} else None


def _through_profile(pil: Image.Image, icc_profile: bytes) -> Image.Image:
    if pil.mode not in ("L", "LA", "F"):
        transform = _transform(icc_profile, pil.mode)
        return pil if transform is None else ImageCms.applyTransform(pil, transform)
    curve = _grey_curve(icc_profile)
    if curve is None:
        return pil
    if pil.mode == "F":
        values_HW = np.interp(np.asarray(pil), np.linspace(0, 1, 256), np.array(curve) / 255)
        return Image.fromarray(values_HW.astype(np.float32))
    grey, *alpha = pil.split()
    return Image.merge(pil.mode, [grey.point(curve), *alpha])


@functools.lru_cache(maxsize=16)
def _transform(icc_profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """To RGB, or RGBA, in sRGB; None where that changes no colour by more than 1/255."""
    profile = ImageCms.createProfile("LAB") if icc_profile is None else _opened(icc_profile)
    if (space := _space(profile)) != SPACES[mode]:
        raise ValueError(f"it is one for {space} images, the image is {mode}")
    out_mode = "RGBA" if mode == "RGBA" else "RGB"
    transform = _built(profile, mode, out_mode)
    if mode in ("RGB", "RGBA"):
        steps = np.arange(0, 256, 51, dtype=np.uint8)
        probe_HWC = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(6, 36, 3)
        probe = Image.fromarray(probe_HWC).convert(mode)
        if _difference(probe, ImageCms.applyTransform(probe, transform)) <= 1:
            return None
    return transform


@functools.lru_cache(maxsize=16)
def _grey_curve(icc_profile: bytes) -> list[int] | None:
    """Grey 0…255 → grey in sRGB, by a profile for grey or RGB images; None where none differs by more than 1."""
    profile = _opened(icc_profile)
    if (space := _space(profile)) not in ("GRAY", "RGB"):
        raise ValueError(f"it is one for {space} images, the image is grey")
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    mode = "L" if space == "GRAY" else "RGB"
    through = ImageCms.applyTransform(ramp.convert(mode), _built(profile, mode, "RGB")).getchannel("G")
    return None if _difference(ramp, through) <= 1 else list(through.tobytes())


def _opened(icc_profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))


def _space(profile) -> str:
    return getattr(profile, "profile", profile).xcolor_space.strip()


def _built(profile, mode: str, out_mode: str) -> ImageCms.ImageCmsTransform:
    # A transform with a cache must not be used by two threads at once.
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, out_mode, intent, flags)


def _difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16)).max())
