"""Files, PIL images and arrays ↔ tensors in [0, 1], and PNG files that carry the parameters they were made with."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from r2id.image_file import name_of, notes_of, open_image, standard
from r2id.limits import MAX_PIXELS, short_repr

TEXT_KEY = "r2id"
MODES = {1: "L", 3: "RGB"}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's
FILE = (str, os.PathLike, bytes, bytearray, memoryview)
SINGLE = (*FILE, Image.Image, Tensor, np.ndarray)


def to_pil(image_CHW: Tensor) -> Image.Image:
    """Image (1 or 3, H, W) → 8-bit PIL image. Values are clamped to [0, 1]; NaN and infinity raise ValueError."""
    if image_CHW.ndim != 3 or image_CHW.shape[0] not in MODES or image_CHW.numel() == 0:
        raise ValueError(f"image of shape {tuple(image_CHW.shape)}: must be (1 or 3, H, W), H and W at least 1")
    values_HWC = image_CHW.detach().float().cpu().permute(1, 2, 0)
    if not values_HWC.isfinite().all():
        raise ValueError("image: holds NaN or infinity")
    bytes_HWC = (values_HWC.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(bytes_HWC[..., 0] if bytes_HWC.shape[-1] == 1 else bytes_HWC)


def read_image(
    image, channels: int, background: float | Sequence[float], *, name: str | None = None, shortest: int | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """A PIL image, or a file as `open_image` takes it → float32 (channels, H, W) in [0, 1], and the notes on it.

    Transparency is laid on `background`, in [0, 1], one value or one a channel. Raises ImageError as `open_image` does.
    """
    background_C11 = _background(channels, background)
    if isinstance(image, Image.Image):
        pil, notes = standard(image, name or "image", shortest)
    else:
        pil = open_image(image, name=name, shortest=shortest)
        notes = notes_of(pil)
    alpha_1HW = _values(pil.getchannel("A")) if pil.mode in ("LA", "RGBA") else None
    colour_CHW = _values(pil if pil.mode == "F" else pil.convert(MODES[channels]))
    return _on(background_C11, colour_CHW, alpha_1HW), notes


def from_pil(pil: Image.Image, channels: int, background: float | Sequence[float]) -> Tensor:
    """`read_image` of a PIL image, whose notes become warnings: float32 (channels, H, W) in [0, 1]."""
    image_CHW, notes = read_image(pil, channels, background)
    for note in notes:
        warnings.warn(f"image: {note}", stacklevel=2)
    return image_CHW


def iter_images(image, channels: int, background: float | Sequence[float]) -> Iterator[Tensor]:
    """One image or any number of them → float32 (channels, H, W) in [0, 1] each, read when its turn comes.

    image: one, or a list or another iterable, of
    - paths, bytes, binary files, PIL images: see `read_image`; notes become warnings.
    - tensors (C, H, W) or (B, C, H, W), C = channels, float in [0, 1] or uint8.
    - numpy arrays (H, W), (H, W, C) or (B, H, W, C), C 1 (grey), 3 (RGB) or 4 (RGBA), float in [0, 1], uint8, uint16 or
      bool. An array (3, H, 3) can be read in two ways and is refused.
    Raises ValueError for anything else, and for an image of more than MAX_PIXELS.
    """
    several = isinstance(image, Iterable) and not isinstance(image, SINGLE) and not hasattr(image, "read")
    if several or (isinstance(image, (Tensor, np.ndarray)) and image.ndim == 4):
        for one in image:
            yield from iter_images(one, channels, background)
    elif isinstance(image, Tensor):
        yield _from_tensor(image, channels)
    elif isinstance(image, np.ndarray):
        yield _from_array(image, channels, _background(channels, background))
    elif isinstance(image, Image.Image):
        yield from_pil(image, channels, background)
    elif isinstance(image, FILE) or hasattr(image, "read"):
        image_CHW, notes = read_image(image, channels, background)
        for note in notes:
            warnings.warn(f"{name_of(image)}: {note}", stacklevel=2)
        yield image_CHW
    else:
        raise ValueError(
            f"image {short_repr(image)}: must be a path, a PIL image, a tensor (C, H, W), an array (H, W, C)"
        )


def as_images(image, channels: int, background: float | Sequence[float]) -> Tensor:
    """Images of one size, any that `iter_images` takes → float32 (B, C, H, W) in [0, 1]. Raises ValueError."""
    if isinstance(image, Tensor) and image.ndim == 4 and len(image):
        return _from_tensor(image, channels)
    images = list(iter_images(image, channels, background))
    if not images:
        raise ValueError("image: none given, give at least one")
    if len({one.shape for one in images}) > 1:
        raise ValueError("images of different sizes: encode them one by one, a batch shares one frame")
    return torch.stack(images)


def save_png(image_CHW: Tensor, file: str | Path | BinaryIO, parameters: dict[str, Any]) -> None:
    """Write a PNG whose text chunk "r2id" holds `parameters` as JSON. Raises ValueError for NaN and infinity."""
    text = PngImagePlugin.PngInfo()
    text.add_text(TEXT_KEY, json.dumps(parameters, allow_nan=False))
    to_pil(image_CHW).save(file, format="PNG", pnginfo=text)


def read_parameters(file: str | Path | BinaryIO) -> dict[str, Any]:
    """The parameters that `save_png` wrote. Raises ValueError if there are none; decodes no pixels."""
    try:
        with Image.open(file, formats=["PNG"]) as png:
            text = png.info.get(TEXT_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable PNG file: {' '.join(str(error).split())}") from error
    if text is None:
        raise ValueError(f"PNG file without a text chunk {TEXT_KEY!r}: it was not made here, or a program removed it")
    try:
        parameters = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"text chunk {TEXT_KEY!r} is not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise ValueError(f"text chunk {TEXT_KEY!r} must hold an object, not {type(parameters).__name__}")
    return parameters


def contact_sheet(images: Sequence[Tensor], columns: int, gap: int = 2) -> Image.Image:
    """Images (C, H, W), of any sizes, in reading order: each centred in a cell of the largest size, on mid-grey."""
    if not images or columns < 1 or gap < 0:
        raise ValueError(f"{len(images)} images, {columns} columns, gap {gap}: must be at least 1, 1 and 0")
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    rows = math.ceil(len(images) / columns)
    mode = MODES[max(image.shape[0] for image in images)]
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new(mode, size, "gray")
    for index, image_CHW in enumerate(images):
        row, column = divmod(index, columns)
        left = gap + column * (width + gap) + (width - image_CHW.shape[2]) // 2
        top = gap + row * (height + gap) + (height - image_CHW.shape[1]) // 2
        sheet.paste(to_pil(image_CHW), (left, top))
    return sheet


def _background(channels: int, background: float | Sequence[float]) -> Tensor:
    if channels not in MODES:
        raise ValueError(f"channels {channels}: must be 1 or 3")
    background_C11 = torch.tensor(background, dtype=torch.float32).reshape(-1, 1, 1)
    if background_C11.numel() not in (1, channels) or not ((background_C11 >= 0) & (background_C11 <= 1)).all():
        raise ValueError(f"background {background}: must be 1 or {channels} values in [0, 1]")
    return background_C11.expand(channels, 1, 1)


def _on(background_C11: Tensor, colour_CHW: Tensor, alpha_1HW: Tensor | None) -> Tensor:
    """Colour (1 or C, H, W) laid on the background → (C, H, W)."""
    if alpha_1HW is None:
        return colour_CHW.expand(len(background_C11), -1, -1).contiguous()
    return background_C11.lerp(colour_CHW, alpha_1HW)


def _values(pil: Image.Image) -> Tensor:
    """8-bit L or RGB, or F → float32 (1 or 3, H, W) in [0, 1]."""
    values_HWC = torch.from_numpy(np.array(pil).reshape(pil.height, pil.width, -1))
    values_CHW = values_HWC.permute(2, 0, 1).contiguous().float()
    return values_CHW if pil.mode == "F" else values_CHW.div_(255)


def _from_tensor(image: Tensor, channels: int) -> Tensor:
    """Float in [0, 1] or uint8 ((B,) C, H, W) → float32 of that shape in [0, 1]."""
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or shape[-3] != channels or not 1 <= shape[-2] * shape[-1] <= MAX_PIXELS:
        limits = f"(C, H, W) or (B, C, H, W) with C = {channels} and at most {MAX_PIXELS:,} pixels"
        raise ValueError(f"image of shape {shape}: a tensor must be {limits}")
    if image.dtype == torch.uint8:
        return image.float().div_(255)
    if not image.is_floating_point():
        raise ValueError(f"image of type {image.dtype}: must be float in [0, 1] or uint8")
    low, high = image.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        remedy = ", divide it by 255" if 0 <= low and 1 < high <= 255 else ""
        raise ValueError(f"image values {low:g}…{high:g}: must be in [0, 1]{remedy}")
    return image.float().clamp(0, 1)


def _from_array(image: np.ndarray, channels: int, background_C11: Tensor) -> Tensor:
    """Array (H, W) or (H, W, 1, 3 or 4) → float32 (C, H, W) in [0, 1]."""
    last = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if not last or (image.ndim == 3 and image.shape[0] in (1, 3, 4)):
        remedy = "must be (H, W) or (H, W, C) with C 1, 3 or 4; give one with its channels first as a tensor"
        raise ValueError(f"image of shape {image.shape}: an array {remedy}")
    if image.size == 0:
        raise ValueError(f"image of shape {image.shape}: must have at least one pixel")
    if image.dtype == bool:
        image = image.astype(np.float32)
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / np.float32(65535)
    elif image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(f"image of type {image.dtype}: must be float in [0, 1], uint8, uint16 or bool")
    values_HWC = torch.from_numpy(np.array(image, dtype=np.float32 if image.dtype.kind == "f" else None, order="C"))
    values_CHW = values_HWC.reshape(*image.shape[:2], -1).permute(2, 0, 1)
    values_CHW = _from_tensor(values_CHW, len(values_CHW))
    colour_CHW, alpha_1HW = (values_CHW[:3], values_CHW[3:]) if len(values_CHW) == 4 else (values_CHW, None)
    if channels == 1 and len(colour_CHW) == 3:
        colour_CHW = torch.tensor(LUMA).reshape(3, 1, 1).mul(colour_CHW).sum(dim=0, keepdim=True)
    return _on(background_C11, colour_CHW, alpha_1HW)
