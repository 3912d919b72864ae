"""Images and labels of a data set: in memory where they fit, else decoded when a step asks for them, stored or
streamed."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Image
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from r2id.limits import check_choice
from train.data.decode import Batch, Decoded, Decoder, ImageList, border, border_colour, channels_of, shared_colour
from train.data.describe import MissingSplit, class_line, split_line
from train.data.files import Files, Row, some
from train.data.folders import holds_fonts
from train.data.fonts import CAPITALS, FontSet, load_fonts
from train.data.sources import Stored, Stream, cells_of, layout_of, open_stored, open_streamed, rows_of

SPLITS = ("train", "validation", "test")
VALIDATION = 5_000  # rows held out at the end of the training set; a tenth of a set of fewer than 50,000
IN_MEMORY = 2**30  # bytes of decoded images: a training set of more is decoded when a step asks for it
SAMPLE = 1_024  # images that stand for a set which is not in memory
CHUNK = 64  # rows read and decoded together
FEW = 2  # images of a data set that is validated on what it is trained on
LINES = 10  # of a description, at most

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSet:
    """One split: tensors in memory (four bytes a value, so 246 MB for 60,000 grey images at 32x32), or what is indexed
    like them.

    images: float32 (N, C, size, size) in [-1, 1]; or, indexed, lists of (C, H, W) where they keep their aspect ratios.
    labels: int64 (N,), indices into `names`; -1 where a row has none.
    names: the class names in order, () for a set without labels.
    background: the colour of the border, per channel in [0, 1], where nearly all border pixels share one; else None.
    stream: where the images come from one, whose places have no end.
    understood: what the data were taken for, a line each; see `describe`.
    targets: the same images where they are denser, indexed alike; None where they are not.
    """

    images: Tensor | ImageList | Decoded | Glyphs | Reduced
    labels: Tensor | Decoded
    names: tuple[str, ...]
    background: tuple[float, ...] | None
    stream: Stream | None = None
    understood: tuple[str, ...] = ()
    targets: Tensor | Decoded | Glyphs | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> ImageSet:
        """With images and labels in the device's memory, where they are tensors (IN_MEMORY at most)."""
        if device.type != "cuda" or not isinstance(self.images, Tensor):
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def count(self) -> int | None:
        """N, or None for a stream."""
        return None if self.stream else len(self.images)

    def describe(self) -> str:
        """What was understood of the data, to be read before training: images, classes and their counts, splits, what
        was left out and why. At most LINES lines."""
        lines = self.understood
        if len(lines) > LINES:
            lines = (*lines[: LINES - 1], f"and {len(lines) - LINES + 1} more notes")
        return "\n".join(lines)


def load_images(
    data: str,
    split: str,
    *,
    size: int = 32,
    channels: int | None = None,
    limit: int | None = None,
    max_aspect: float | None = None,
    label_column: str | None = None,
    density: int | None = None,
    glyphs: str = CAPITALS,
) -> ImageSet:
    """The first `limit` (or all) images of a split, as `size` x `size` pixels or (max_aspect) in their own aspect
    ratios.

    data: a Hub id such as `ylecun/mnist`; a folder or an archive of images, whose sub-folders are classes and splits by
    the rules of `read_folder`; one image; a folder of fonts (see `load_fonts`); or a folder of parquet or WebDataset
    shards, `train-*` and `test-*` where there is a test set (in a `.tar`, labels are `.cls`, or `label` in `.json`).
    label_column: of the labels, in shards or in a table beside images; by default one of the usual names.
    density: a multiple of `size`; images are then area means of those of this size, which `targets` holds.
    glyphs: characters of fonts that are images.
    channels: 1 or 3; by default 1 if every image of the split is grey.
    max_aspect: None for squares, 1 or more for frames of their own. Images that are not square, or of which a side is
    more than `max_aspect` times the other, are cropped at the centre. Squares are resized to `size`; frames of their
    own are reduced to a short side of `size` where it is more, else left as they are. That is bicubic, antialiased and
    clipped to the range. Transparency is laid on white. What cannot be read is left out, with a warning that names it.
    The validation split is the set's own, else the end of the training set (`VALIDATION`; all of a set of FEW images),
    and the train split is the rest. A set stored class by class is first put into a fixed random order.
    A training set without a limit that would take more than IN_MEMORY stays on disk: its images are decoded when they
    are asked for, the one after it in place of one that cannot be read, and SAMPLE of them tell its background, and its
    channels if they would take more as grey images too.
    Raises ValueError for an unknown split, data that cannot be found or read, a split that is missing or empty, and one
    of which more than half cannot be read.
    """
    check(split, size, channels, limit, max_aspect)
    density = density or size
    if density % size:
        raise ValueError(f"density {density}: must be a multiple of the size, {size}")
    if holds_fonts(data):
        return font_images(data, split, glyphs, size=size, density=density, channels=channels, limit=limit)
    if density > size:
        dense = load_images(data, split, size=density, channels=channels, limit=limit, label_column=label_column)
        return replace(dense, images=Reduced(dense.images, density // size), targets=dense.images)
    rows, names, understood = stored_rows(data, split, limit, label_column)
    every, sample = range(len(rows)), np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int).tolist()

    def large(channels: int) -> bool:
        return split == "train" and limit is None and 4 * len(rows) * channels * size**2 * (max_aspect or 1) > IN_MEMORY

    if channels is None:
        channels = channels_of(map(rows.read, chunked(sample if large(1) else every)))
    decoder = Decoder(data, channels, size, max_aspect)
    if large(channels):
        found = on_demand(rows, decoder, names, map(rows.read, chunked(sample)))
    else:
        found = in_memory(decoder, map(rows.read, chunked(every)), len(rows), names)
    if decoder.skipped:
        unread = f"left out: {len(decoder.skipped):,} × image that cannot be read: {some(decoder.skipped)}"
        understood = (*understood[:2], unread, *understood[2:])
    return replace(found, understood=understood)


def stream_images(
    data: str,
    split: str,
    *,
    size: int = 32,
    channels: int | None = None,
    limit: int | None = None,
    max_aspect: float | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Like `load_images`, for a Hub id or shards that are larger than the disk: rows are read when they are needed.

    The train split without a limit has no end: its images and labels are asked for by place, in an order that follows
    from the seed (see `Stream`). All else is in memory. The validation split is the set's own, else the first
    VALIDATION rows of the first shard, which training leaves out. The first SAMPLE rows of the training set tell the
    channels, the background and, where labels are no ClassLabel, their names. Raises ValueError too for shards stored
    class by class.
    """
    check(split, size, channels, limit, max_aspect)
    splits = open_streamed(data)
    own = "validation" in splits
    rows = splits[stored_name(data, split, splits)]
    plan = layout_of(rows.features, data, label_column)
    rows, train = (part.cast_column(plan.image, Image(decode=False)) for part in (rows, splits.get("train", rows)))
    head = list(cells_of(train.take(SAMPLE), data))
    values = [plan.value(cells[plan.label]) if plan.label else None for cells in head]
    whole = {value for value in values if isinstance(value, int)}  # numbers are without gaps, whatever comes first
    index, names = plan.numbers([*values, *range(max(whole, default=-1))])
    names = names if any(value in index for value in values) else ()
    sample = list(rows_of(head, plan, index, data))
    decoder = Decoder(data, channels or channels_of([sample]), size, max_aspect)

    if split == "train":
        if len(names) > 1 and len({row.label for row in sample}) == 1:
            remedy = "shuffle the rows before they are stored, or do not stream"
            raise ValueError(f"{data}: the first {len(sample):,} rows are all {names[sample[0].label]!r}; {remedy}")
        stream = Stream(train, plan, index, data, skip=0 if own else VALIDATION, seed=seed)
        if limit is None:
            understood = f"{data}: a stream of images to train on", f"{len(names)} classes" if names else "no classes"
            return replace(on_demand(stream, decoder, names, chunked(sample)), understood=understood)
        found = stream.read(range(limit))
    else:
        rows = train.shard(train.num_shards, 0).take(VALIDATION) if split == "validation" and not own else rows
        found = list(rows_of(cells_of(rows.take(limit) if limit else rows, data), plan, index, data))
    if not found:
        raise ValueError(f"{data}: the {split} split is empty; add images")
    return in_memory(decoder, chunked(found), len(found), names)


def check(split: str, size: int, channels: int | None, limit: int | None, max_aspect: float | None) -> None:
    """Raises ValueError for an argument of `load_images` that is out of range."""
    check_choice(split, "split", SPLITS)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels {channels}: must be 1 (grey), 3 (colour) or None (as the images are)")
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size {size}, limit {limit}: must be at least 1")
    if max_aspect is not None and max_aspect < 1:
        raise ValueError(f"max_aspect {max_aspect}: must be 1 or more, width / height, or None for squares")


def stored_name(data: str, split: str, splits: Iterable[str]) -> str:
    """What a split is, or is a part of, as the data are stored."""
    name = "train" if split == "validation" and split not in splits else split
    if name not in splits:
        raise MissingSplit(f"{data}: no {name} split, only {', '.join(splits)}; add {name}-*.parquet, .tar or {name}/")
    return name


def stored_rows(
    data: str, split: str, limit: int | None, label_column: str | None
) -> tuple[Stored | Files, tuple[str, ...], tuple[str, ...]]:
    """The rows of a split, the names of their labels and what was understood: see `load_images`."""
    found = open_stored(data, label_column)
    sizes = found.sizes
    stored = stored_name(data, split, sizes)
    labels_N, names = found.labelled(stored)
    order, classes = np.arange(len(labels_N)), len(labels_N.unique())
    if classes > 1 and int((labels_N.diff() != 0).sum()) == classes - 1:
        order = np.random.default_rng(0).permutation(order)
    training = sizes.get("train", 0)
    held_out = 0 if training <= FEW else min(VALIDATION, max(1, training // 10))
    if stored == "train" and "validation" not in sizes and held_out:
        order = order[-held_out:] if split == "validation" else order[:-held_out]
    kept = order[:limit]
    if len(kept) == 0:
        raise ValueError(f"{data}: the {split} split is empty; add images")
    labels_N = labels_N[kept]
    lines = split_line(data, sizes, held_out), class_line(split, names, labels_N), *found.notes
    return found.rows(stored, kept, labels_N), names, lines


def font_images(
    data: str, split: str, glyphs: str, *, size: int, density: int, channels: int | None, limit: int | None
) -> ImageSet:
    """The glyphs of a folder of fonts, in a fixed random order: see `load_fonts`. Where so few families have none for
    validation, those for training are validated on."""
    options = {"glyphs": glyphs, "cache": font_cache(data)}
    try:
        fonts = load_fonts(data, split, **options)
    except MissingSplit:
        if split != "validation":
            raise
        fonts = load_fonts(data, "train", **options)
    order = np.random.default_rng(0).permutation(len(fonts))[:limit]
    images = Glyphs(fonts, order.tolist(), size, channels or 1, density)
    targets = Glyphs(fonts, order.tolist(), density, channels or 1, density) if density > size else None
    if split != "train" or limit is not None or 4 * math.prod(images.shape) <= IN_MEMORY:
        images = images[:]
    background = fonts.background * (channels or 1)
    lines = tuple(fonts.report().splitlines())
    if not fonts.has("validation"):
        lines += ("training fonts are validated on too: there are so few families that none is for validation",)
    return ImageSet(images, fonts.labels[order], fonts.names, background, understood=lines, targets=targets)


def font_cache(data: str) -> Path | None:
    """The file that keeps what a scan of these fonts found; None where it cannot be written."""
    folder = Path(HF_HOME, "r2id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    name = hashlib.sha256(str(Path(data).expanduser().resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"fonts-{name[:16]}.json" if os.access(folder, os.W_OK) else None


@dataclass(frozen=True)
class Glyphs:
    """Glyphs indexed by places (a tensor or a slice) like the tensor (N, channels, size, size) in [-1, 1] that they
    would be, drawn when they are asked for."""

    fonts: FontSet
    order: list[int]
    size: int
    channels: int
    density: int  # that they are drawn at, to be area means

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.order), self.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        places = self.order[key] if isinstance(key, slice) else [self.order[place] for place in key.tolist()]
        images = self.fonts.images(places, self.size, master=self.density).float().div_(127.5).sub_(1)
        return images.repeat(1, self.channels, 1, 1) if self.channels > 1 else images


@dataclass(frozen=True)
class Reduced:
    """Square images, indexed by places, as area means over factor × factor pixels."""

    images: Tensor | Decoded
    factor: int

    @property
    def shape(self) -> tuple[int | None, ...]:
        count, channels, *sides = self.images.shape
        return count, channels, *(side // self.factor for side in sides)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        return F.avg_pool2d(self.images[key], self.factor)


def chunked(items: Iterable[T]) -> Iterator[list[T]]:
    items = iter(items)
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def in_memory(decoder: Decoder, chunks: Iterable[list[Row]], count: int, names: tuple[str, ...]) -> ImageSet:
    """The images of `count` rows that can be read."""
    squares, labels = decoder.max_aspect is None, []
    images = torch.empty(count, *decoder.shape) if squares else [None] * count
    for rows in chunks:
        for row, image_CHW in zip(rows, decoder(rows), strict=True):
            if image_CHW is not None:
                images[len(labels)] = image_CHW
                labels.append(row.label)
    decoder.report()
    images = images[: len(labels)]
    background = border_colour(images)
    for image_CHW in images:
        image_CHW.mul_(2).sub_(1)
    return ImageSet(images if squares else ImageList(images), torch.tensor(labels), names, background)


def on_demand(
    rows: Stored | Files | Stream, decoder: Decoder, names: tuple[str, ...], sample: Iterable[list[Row]]
) -> ImageSet:
    """The images of rows that stay where they are; sample: some rows, in chunks, that tell the background."""
    borders = [border(image_CHW[None]) for rows in sample for image_CHW in decoder(rows) if image_CHW is not None]
    decoder.report()
    batch, stream = Batch(rows, decoder), rows if isinstance(rows, Stream) else None
    count = None if stream else len(rows)
    images = Decoded(batch, 0, (count, *decoder.shape))
    colour = shared_colour(torch.cat(borders, dim=1))
    return ImageSet(images, Decoded(batch, 1, (count,)), names, colour, stream)
