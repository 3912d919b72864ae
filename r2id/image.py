"""Tensors in [0, 1] ↔ PIL images, and PNG files that carry the parameters they were made with."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from r2id.limits import MAX_BATCH, MAX_PIXELS

MAX_IMAGE_PIXELS = 2**26
TEXT_KEY = "r2id"
MODES = {1: "L", 3: "RGB"}


def to_pil(image_CHW: Tensor) -> Image.Image:
    """Image (1 or 3, H, W) → 8-bit PIL image. Values are clamped to [0, 1]; NaN and infinity raise ValueError."""
    if image_CHW.ndim != 3 or image_CHW.shape[0] not in MODES or image_CHW.numel() == 0:
        raise ValueError(f"image of shape {tuple(image_CHW.shape)}: must be (1 or 3, H, W), H and W at least 1")
    values_HWC = image_CHW.detach().float().cpu().permute(1, 2, 0)
    if not values_HWC.isfinite().all():
        raise ValueError("image: holds NaN or infinity")
    bytes_HWC = (values_HWC.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(bytes_HWC[..., 0] if bytes_HWC.shape[-1] == 1 else bytes_HWC)


def from_pil(pil: Image.Image, channels: int, background: float | Sequence[float]) -> Tensor:
    """PIL image of any mode → float32 (channels, H, W) in [0, 1], the right way up as its EXIF says.

    Transparency is laid on `background`, in [0, 1], one value or one a channel. Of an animation, the first frame.
    Raises ValueError for images that are empty, broken or above MAX_IMAGE_PIXELS.
    """
    if channels not in MODES:
        raise ValueError(f"channels {channels}: must be 1 or 3")
    background_C11 = torch.tensor(background, dtype=torch.float32).reshape(-1, 1, 1)
    if background_C11.numel() not in (1, channels) or not ((background_C11 >= 0) & (background_C11 <= 1)).all():
        raise ValueError(f"background {background}: must be 1 or {channels} values in [0, 1]")
    # Before anything is decoded: the size is read from the header.
    if not 0 < pil.width * pil.height <= MAX_IMAGE_PIXELS:
        raise ValueError(f"image of {pil.height}×{pil.width}: must have 1…{MAX_IMAGE_PIXELS:,} pixels, shrink it first")
    try:
        if getattr(pil, "is_animated", False):
            pil.seek(0)
        pil = ImageOps.exif_transpose(pil)
        if pil.mode in ("I", "F") or pil.mode.startswith("I;16"):
            grey_1HW, alpha_1HW = _deep_grey(pil)
            colour_CHW = grey_1HW.expand(channels, -1, -1)
        elif pil.has_transparency_data:
            pil = pil.convert("RGBA")
            colour_CHW, alpha_1HW = _from_bytes(pil.convert(MODES[channels])), _from_bytes(pil.getchannel("A"))
        else:
            colour_CHW, alpha_1HW = _from_bytes(pil.convert(MODES[channels])), torch.ones(1, 1, 1)
    except Exception as error:  # Decoders raise whatever a broken file leads them into.
        raise ValueError(f"image cannot be decoded: {' '.join(str(error).split())}") from error
    return background_C11.lerp(colour_CHW, alpha_1HW)


def as_images(image, channels: int, background: Sequence[float]) -> Tensor:
    """Float images (B, C, H, W) or (C, H, W) in [0, 1], or one or a list of PIL images of one size → (B, C, H, W).

    Raises ValueError for anything else, and beyond MAX_BATCH images or MAX_PIXELS of all together.
    """
    if isinstance(image, Image.Image):
        image = [image]
    if isinstance(image, (list, tuple)) and image and all(isinstance(i, Image.Image) for i in image):
        images = [from_pil(i, channels, background) for i in image[: MAX_BATCH + 1]]
        if len({i.shape for i in images}) > 1:
            raise ValueError("images of different sizes: encode them one by one, a batch shares one frame")
        image = torch.stack(images)
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim not in (3, 4):
        raise ValueError("image: must be a float tensor (B, C, H, W) in [0, 1], a PIL image or a list of them")
    image_BCHW = image.float() if image.ndim == 4 else image.float()[None]
    batch, *_, height, width = image_BCHW.shape
    if image_BCHW.shape[1] != channels or not 1 <= batch <= MAX_BATCH or not 1 <= height * width <= MAX_PIXELS:
        limits = f"(1…{MAX_BATCH}, {channels}, H, W) of at most {MAX_PIXELS:,} pixels"
        raise ValueError(f"image of shape {tuple(image.shape)}: must be {limits}")
    low, high = image_BCHW.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"image values {low:g}…{high:g}: must be in [0, 1]")
    return image_BCHW.clamp(0, 1)


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


def _from_bytes(pil: Image.Image) -> Tensor:
    """8-bit L or RGB → float32 (1 or 3, H, W) in [0, 1]."""
    bytes_HWC = torch.from_numpy(np.array(pil, dtype=np.uint8).reshape(pil.height, pil.width, -1))
    return bytes_HWC.permute(2, 0, 1).float().contiguous() / 255


def _deep_grey(pil: Image.Image) -> tuple[Tensor, Tensor]:
    """Mode I;16*, I (0…65535) or F (0…1) → float32 grey and alpha, (1, H, W). `convert` would clip, not scale."""
    values_HW = np.asarray(pil).astype(np.float32)
    limit = 1 if pil.mode == "F" else 65535
    if not ((values_HW >= 0) & (values_HW <= limit)).all():
        raise ValueError(f"mode {pil.mode} must have values in 0…{limit}")
    transparent_HW = values_HW == pil.info.get("transparency", -1)
    return torch.from_numpy(values_HW / np.float32(limit))[None], torch.from_numpy(~transparent_HW).float()[None]
