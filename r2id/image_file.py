"""Image files of every kind → PIL images of a few, the right way up and in sRGB: the one place that opens them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from r2id.colour import to_plain, to_srgb

MAX_DECODED_PIXELS = 2**28  # of a file, at 4 bytes each: 1 GiB
MAX_IMAGE_PIXELS = 2**26  # of an image that was read: larger ones are reduced, those that are decoded whole in turn
UNREADABLE = "not an image that can be read ({}); give a PNG, JPEG, WebP, TIFF or GIF file"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
KINDS = {b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "SVG"}

_LARGE, _GUARD = threading.Lock(), threading.Lock()
_lifted = []  # Pillow's limit, and an item for each that has lifted it


class ImageError(ValueError):
    """An image that cannot be read, on one line: "name: fault"."""

    def __init__(self, name: str, fault: str):
        super().__init__(f"{name}: {fault}")
        self.fault = fault


def open_image(file, *, name: str | None = None, shortest: int | None = None) -> Image.Image:
    """An image file (path, bytes or binary file) → PIL image: decoded, the right way up, in sRGB.

    Its mode is L, LA, RGB, RGBA, or F in [0, 1] for grey of more than 8 bits (see `r2id.colour`). Of several frames it
    is the first. `info["notes"]` holds what its user should know (a profile that was ignored), where there is any.
    name: what errors call it, by default the file's name, or "image". shortest: short side in pixels that is enough; a
    larger image is reduced by a whole factor while it is decoded (JPEG) or after. Beyond MAX_IMAGE_PIXELS it always is.
    Raises ImageError, the only error, for files that are missing, unknown, broken, or above MAX_DECODED_PIXELS.
    """
    name = name or name_of(file)
    with peek_image(file, name=name) as pil:
        pil, notes = standard(pil, name, shortest)
    pil.info = {"notes": notes} if notes else {}
    return pil


def peek_image(file, *, name: str | None = None) -> Image.Image:
    """An image file (path, bytes or binary file) → PIL image of which only the header is read; a context manager that
    closes the file. Raises ImageError as `open_image` does."""
    name = name or name_of(file)
    source = io.BytesIO(file) if isinstance(file, (bytes, bytearray, memoryview)) else file
    try:
        try:
            pil = _identify(source)
        except UnidentifiedImageError:
            kind = _kind_of(source)
            if kind == "HEIC" and _register_heif():
                pil = _identify(source)
            elif kind == "HEIC":
                raise ImageError(name, "HEIC needs `pip install pillow-heif`, or save the image as JPEG") from None
            elif kind:
                raise ImageError(name, f"{kind} cannot be read, save the image as PNG or JPEG") from None
            else:
                raise ImageError(name, UNREADABLE.format("its format is unknown")) from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Decoders raise whatever a broken file leads them into.
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(name, error.strerror.lower()) from error
        raise ImageError(name, UNREADABLE.format(_one_line(error))) from error
    if pil.format == "EPS":  # A program, which Ghostscript would run.
        pil.close()
        raise ImageError(name, "EPS cannot be read, save the image as PNG or JPEG")
    return pil


def name_of(file) -> str:
    """What errors call a file: its name, or "image" for bytes and open files."""
    return Path(file).name if isinstance(file, (str, os.PathLike)) and str(file) else "image"


def notes_of(pil: Image.Image) -> tuple[str, ...]:
    """What `open_image` noted of an image; empty for any other."""
    notes = pil.info.get("notes")
    return notes if isinstance(notes, tuple) else ()  # a PNG may have a text of this name


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _identify(source) -> Image.Image:
    with _unguarded():
        return Image.open(source)


@contextlib.contextmanager
def _unguarded():
    """Lifts Pillow's own limit, which is global and refuses a size before it is reduced: `standard` has one instead."""
    with _GUARD:
        if not _lifted:
            _lifted.append(Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _lifted.append(None)
    try:
        yield
    finally:
        with _GUARD:
            _lifted.pop()
            if len(_lifted) == 1:
                Image.MAX_IMAGE_PIXELS = _lifted.pop()


def _kind_of(source) -> str | None:
    """What a file that Pillow does not know seems to be."""
    if hasattr(source, "read"):
        source.seek(0)
        head = source.read(32)
        source.seek(0)
    else:
        with open(source, "rb") as file:
            head = file.read(32)
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(head[8:12], "HEIC" if head[8:12] in HEIC_BRANDS else None)
    return next((kind for start, kind in KINDS.items() if head.startswith(start)), None)


@functools.cache
def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def standard(pil: Image.Image, name: str, shortest: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    """PIL image → as `open_image` gives it, and notes. The same object where nothing has to change."""
    width, height = pil.size
    try:
        if pil.tell():
            pil.seek(0)
        if pil.format in ("JPEG", "MPO") and (factor := _factor(pil.size, shortest)) > 1:
            pil.draft(None, (-(-pil.width // factor), -(-pil.height // factor)))
        # A progressive JPEG is held whole, however small it is decoded.
        pixels = width * height if pil.info.get("progressive") else pil.width * pil.height
        if not 0 < pixels <= MAX_DECODED_PIXELS:
            limit = f"must have 1…{MAX_DECODED_PIXELS:,}, reduce it first"
            raise ImageError(name, f"{width} × {height} pixels, {limit}")
        if pixels <= MAX_IMAGE_PIXELS:
            return _decoded(pil, name, shortest, full=(width, height))
        with _LARGE, _unguarded():
            return _decoded(pil, name, shortest, full=(width, height))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Decoders raise whatever a broken file leads them into.
        raise ImageError(name, UNREADABLE.format(_one_line(error))) from error


def _decoded(
    pil: Image.Image, name: str, shortest: int | None, full: tuple[int, int]
) -> tuple[Image.Image, tuple[str, ...]]:
    pil.load()
    notes = list(notes_of(pil))
    icc_profile = pil.info.get("icc_profile")
    try:
        turned = pil.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception as error:
        turned = False
        notes.append(f"its EXIF data, and with it its orientation, are ignored ({_one_line(error)})")
    if turned:
        pil = ImageOps.exif_transpose(pil)
    try:
        pil = to_plain(pil)
    except ValueError as error:
        raise ImageError(name, str(error)) from error
    if (factor := _factor(pil.size, shortest)) > 1:
        pil = pil.resize([-(-side // factor) for side in pil.size], Image.Resampling.BOX)
    if full[0] * full[1] > MAX_IMAGE_PIXELS and shortest is None:
        notes.append(f"it is reduced from {full[0]} × {full[1]} pixels, more than {MAX_IMAGE_PIXELS:,}")
    pil, note = to_srgb(pil, icc_profile)
    notes += [note] if note else []
    return pil, tuple(dict.fromkeys(notes))


def _factor(size: tuple[int, int], shortest: int | None) -> int:
    """By which an image is reduced: the largest that leaves `shortest`, and enough for MAX_IMAGE_PIXELS."""
    width, height = size
    factor = max(1, min(size) // shortest) if shortest else 1
    while -(-width // factor) * -(-height // factor) > MAX_IMAGE_PIXELS:
        factor += 1
    return factor
