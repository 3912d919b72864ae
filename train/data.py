"""Images and labels from a Hub id, a folder of parquet files or an image folder, on one path through `datasets`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PILImage
from torch import Tensor

from r2id.image import from_pil

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
VALIDATION = 5_000  # rows held out at the end of the training set; a tenth of a set of fewer than 50,000
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F")


@dataclass(frozen=True)
class ImageSet:
    """One split, in memory.

    images: float32 (N, C, size, size) in [-1, 1]; four bytes a value, so 246 MB for 60,000 grey images at 32x32.
    labels: int64 (N,), indices into `names`; -1 where a row has none.
    names: the class names in order, () for a set without labels.
    background: the colour of the border, per channel in [0, 1], where nearly all border pixels share one; else None.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    background: tuple[float, ...] | None

    def __len__(self) -> int:
        return len(self.images)


def load_images(
    data: str, split: str, *, size: int = 32, channels: int | None = None, limit: int | None = None
) -> ImageSet:
    """The first `limit` (or all) images of a split, as `size` x `size` pixels.

    data: a Hub id such as `ylecun/mnist`, a folder of `train-*.parquet` and `test-*.parquet` in the Hub's layout, or a
    folder of images whose sub-folders are the labels, below `train/` and `test/` where there is a test set.
    channels: 1 or 3; by default 1 if every image of the split is grey.
    Images that are not square are cropped at the centre; all are resized bicubically with antialiasing and clipped to
    the range. Transparency is laid on white.
    The validation split is the end of the training set (`VALIDATION`), the train split is the rest. A set stored class
    by class is first put into a fixed random order.
    Raises ValueError for an unknown split, data that cannot be found or read, and a split that is missing or empty.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels {channels}: must be 1 (grey), 3 (colour) or None (as the images are)")
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size {size}, limit {limit}: must be at least 1")
    splits = _open(data)
    stored = "test" if split == "test" else "train"
    if stored not in splits:
        raise ValueError(f"{data}: no {stored} split, only {', '.join(splits)}; add {stored}-*.parquet or {stored}/")
    rows = splits[stored]
    image_column = next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
    if image_column is None:
        raise ValueError(f"{data}: no image column among {', '.join(rows.features)}; store one as datasets.Image")
    labels_N, names = _labels(splits, stored)

    indices = np.arange(len(rows))
    classes = len(labels_N.unique())
    if classes > 1 and int((labels_N.diff() != 0).sum()) == classes - 1:
        indices = np.random.default_rng(0).permutation(indices)
    held_out = min(VALIDATION, max(1, len(rows) // 10))
    kept = {"train": indices[:-held_out], "validation": indices[-held_out:], "test": indices}[split][:limit]
    if len(kept) == 0:
        raise ValueError(f"{data}: the {split} split of {len(rows)} {stored} images is empty; add images")

    files = [row[image_column] for row in rows.cast_column(image_column, Image(decode=False)).select(kept)]
    if channels is None:
        channels = 1 if all(_read(file, _is_grey, data) for file in files) else 3
    images_NCHW = torch.empty(len(files), channels, size, size)
    for row, file in enumerate(files):
        images_NCHW[row] = _square(_read(file, lambda image: from_pil(image, channels, background=1.0), data), size)
    background = border_colour(images_NCHW)
    return ImageSet(images_NCHW.mul_(2).sub_(1), labels_N[kept], names, background)


def border_colour(images_NCHW: Tensor) -> tuple[float, ...] | None:
    """The colour in [0, 1], to 1/255, that at least 95% of the border pixels share to 2%; None if there is none."""
    sides = images_NCHW[:, :, (0, -1), :], images_NCHW[:, :, :, (0, -1)]
    border_CN = torch.cat([side.transpose(0, 1).flatten(1) for side in sides], dim=1)
    colour_C = (border_CN.median(dim=1).values * 255).round() / 255
    near = ((border_CN - colour_C[:, None]).abs() < 0.02).all(dim=0).float().mean()
    return tuple(colour_C.tolist()) if near >= 0.95 else None


def _open(data: str) -> DatasetDict:
    folder = Path(data).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data):
        raise ValueError(f"{data}: no such folder; give a folder of parquet files or images, or a Hub id (owner/name)")
    try:
        return load_dataset(str(folder) if folder.is_dir() else data)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = "folder without usable parquet files or images" if folder.is_dir() else "not a folder, nor on the Hub"
        raise ValueError(f"{data}: {kind}: {reason}") from error


def _labels(splits: DatasetDict, split: str) -> tuple[Tensor, tuple[str, ...]]:
    """The first ClassLabel column, else a column `label` whose sorted values in the training set are the names."""
    rows: Dataset = splits[split]
    column = next((name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)), None)
    if column is not None:
        labels = [-1 if label is None else label for label in rows[column]]
        return torch.tensor(labels), tuple(rows.features[column].names)
    if "label" not in rows.features:
        return torch.full((len(rows),), -1), ()
    values = sorted(set(splits.get("train", rows)["label"]) - {None})
    index = {value: number for number, value in enumerate(values)}
    return torch.tensor([index.get(value, -1) for value in rows["label"]]), tuple(str(value) for value in values)


def _read(file: dict, use: Callable[[PILImage.Image], T], data: str) -> T:
    """`use` of a row of an undecoded image column (the file's bytes, or its path); pixels are decoded only if used."""
    try:
        with PILImage.open(io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"]) as image:
            return use(image)
    except (OSError, ValueError, PILImage.DecompressionBombError) as error:
        raise ValueError(f"{data}: cannot read {file['path'] or 'an image'}: {error}; mend or remove it") from error


def _is_grey(image: PILImage.Image) -> bool:
    return image.mode in GREY_MODES


def _square(pixels_CHW: Tensor, size: int) -> Tensor:
    """The centre square, resized to (C, size, size) in [0, 1]."""
    height, width = pixels_CHW.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square_1CHW = pixels_CHW[None, :, top : top + side, left : left + side]
    return F.interpolate(square_1CHW, size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
