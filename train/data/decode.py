"""Rows of files → images of one size or of any; those that cannot be read are counted and named."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from r2id.colour import GREY_MODES
from r2id.image import read_image
from r2id.image_file import ImageError, peek_image
from train.data.sources import Row, Stored, Stream

DECODERS = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # threads of a process
NAMED = 3  # images named of those that cannot be read
ENOUGH = 4  # times the size of training images: short side of what is decoded where a file has more


def channels_of(chunks: Iterable[list[Row]]) -> int:
    """1 if every image that can be read is grey, else 3. Decodes no pixels."""
    return 1 if all(is_grey(row) for rows in chunks for row in rows) else 3


def is_grey(row: Row) -> bool:
    try:
        with peek_image(row.file) as image:
            return image.mode in GREY_MODES
    except ImageError:  # counted when it is decoded
        return True


class Decoder:
    """Decodes rows and keeps account of those that cannot be read."""

    def __init__(self, data: str, channels: int, size: int, max_aspect: float | None = None):
        """max_aspect: None for `square` images of this size, else the limit of `own_frame`."""
        self.data, self.channels, self.size, self.max_aspect = data, channels, size, max_aspect
        self.read, self.skipped, self.reported = 0, [], 0
        self.notes, self.noted = {}, 0  # the keys, in order and once each

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of every image; None where they differ."""
        return self.channels, *((self.size,) * 2 if self.max_aspect is None else (None, None))

    def __call__(self, rows: list[Row], run: Callable = map) -> list[Tensor | None]:
        """Images (C, H, W) in [0, 1], None for those that cannot be read. run: `map`, or a pool's."""
        found = list(run(self.decode, rows))
        self.read += len(rows)
        for row, (image_CHW, notes) in zip(rows, found, strict=True):
            said = [f"{row.name} ({note})" for note in notes]
            if image_CHW is None:
                self.skipped += said
            else:
                self.notes.update(dict.fromkeys(said))
        return [image_CHW for image_CHW, _ in found]

    def decode(self, row: Row) -> tuple[Tensor | None, tuple[str, ...]]:
        """The image and notes on it, or None and why it cannot be read."""
        if row.file is None:
            return None, ("no image",)
        try:
            pixels_CHW, notes = read_image(row.file, self.channels, background=1.0, shortest=ENOUGH * self.size)
        except ImageError as error:
            return None, (error.fault,)
        if self.max_aspect is None:
            return square(pixels_CHW, self.size), notes
        return own_frame(pixels_CHW, self.size, self.max_aspect), notes

    def report(self) -> None:
        """Warns of all that could not be read so far, and of what was noted. Raises ValueError for more than half."""
        self.reported = len(self.skipped)
        if len(self.notes) > self.noted:
            self.noted = len(self.notes)
            warnings.warn(f"{self.data}: {self.noted:,} notes on images: {first(self.notes)}", stacklevel=2)
        if not self.skipped:
            return
        named = first(self.skipped)
        if 2 * self.reported > self.read:
            fault = f"{self.reported:,} of {self.read:,} images cannot be read, more than half"
            raise ValueError(f"{self.data}: {fault}: {named}; fix them or give other data")
        fault = f"{self.reported:,} of {self.read:,} images cannot be read and are left out"
        warnings.warn(f"{self.data}: {fault}: {named}; fix or remove them", stacklevel=2)


def first(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:NAMED] + ["…"] * (len(names) > NAMED))


def square(pixels_CHW: Tensor, size: int) -> Tensor:
    """The centre square, resized to (C, size, size) in [0, 1]."""
    side = min(pixels_CHW.shape[1:])
    square_CHW = centre(pixels_CHW, (side, side))
    return square_CHW if side == size else resized(square_CHW, (size, size))


def own_frame(pixels_CHW: Tensor, size: int, max_aspect: float) -> Tensor:
    """The image (C, H, W) in [0, 1], its short side reduced to `size` pixels where it has more. Its centre where its
    long side is more than `max_aspect` short ones."""
    short = min(pixels_CHW.shape[1:])
    frame_CHW = centre(pixels_CHW, tuple(min(side, int(short * max_aspect + 1e-9)) for side in pixels_CHW.shape[1:]))
    if short <= size:
        return frame_CHW.clone()  # lets go of the rest
    reduced = (min(round(side * size / short), int(size * max_aspect + 1e-9)) for side in frame_CHW.shape[1:])
    return resized(frame_CHW, tuple(reduced))


def centre(pixels_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of (C, H, W), `size` = (height, width) pixels of it."""
    top, left = ((side - kept) // 2 for side, kept in zip(pixels_CHW.shape[1:], size, strict=True))
    return pixels_CHW[:, top : top + size[0], left : left + size[1]]


def resized(pixels_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) in [0, 1] at another size, antialiased."""
    return F.interpolate(pixels_CHW[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@dataclass(frozen=True)
class ImageList:
    """Images (C, H, W) of any sizes, indexed by places (a tensor or a slice): → a list."""

    images: list[Tensor]

    @property
    def shape(self) -> tuple[int | None, ...]:
        return len(self), self.images[0].shape[0], None, None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Tensor | slice) -> list[Tensor]:
        return self.images[key] if isinstance(key, slice) else [self.images[place] for place in key.tolist()]


class Batch:
    """Rows decoded when their places are asked for. The last asked for stay: labels cost nothing after images."""

    def __init__(self, rows: Stored | Stream, decoder: Decoder):
        self.rows, self.decoder = rows, decoder
        self.pool = ThreadPoolExecutor(DECODERS)
        self.instead: dict[int, int] = {}  # of places whose image cannot be read
        self.places: list[int] | None = None

    def __call__(self, places: list[int]) -> tuple[Tensor | list[Tensor], Tensor]:
        """Images float32 (B, C, size, size) in [-1, 1], or a list of (C, H, W), and labels int64 (B,)."""
        if places != self.places:
            rows = self.rows.read([self.instead.get(place, place) for place in places])
            images = self.decoder(rows, self.pool.map)
            for number, place in enumerate(places):
                while images[number] is None:
                    if len(self.decoder.skipped) >= 2 * self.decoder.reported:
                        self.decoder.report()
                    self.instead[place] = self.rows.after(self.instead.get(place, place))
                    rows[number : number + 1] = self.rows.read([self.instead[place]])
                    images[number : number + 1] = self.decoder(rows[number : number + 1])
            for image_CHW in images:
                image_CHW.mul_(2).sub_(1)
            self.images = torch.stack(images) if self.decoder.max_aspect is None else images
            self.labels_B = torch.tensor([row.label for row in rows])
            self.places = places
        return self.images, self.labels_B


@dataclass(frozen=True)
class Decoded:
    """Images or labels of a `Batch`, indexed by places (a tensor or a slice) like the tensor that they would be.

    shape: of that tensor; None for the length of a stream, and for the sides of images that have their own.
    """

    batch: Batch
    part: int
    shape: tuple[int | None, ...]

    def __len__(self) -> int:
        if self.shape[0] is None:
            raise TypeError("a stream has no end: ask ImageSet.count")
        return self.shape[0]

    def __getitem__(self, key: Tensor | slice) -> Tensor | list[Tensor]:
        end = sys.maxsize if self.shape[0] is None else self.shape[0]
        return self.batch(list(range(end)[key]) if isinstance(key, slice) else key.tolist())[self.part]


def border_colour(images: Tensor | list[Tensor]) -> tuple[float, ...] | None:
    """The colour in [0, 1], to 1/255, that at least 95% of the border pixels share to 2%; None if there is none."""
    parts = [images] if isinstance(images, Tensor) else [image_CHW[None] for image_CHW in images]
    return shared_colour(torch.cat([border(part) for part in parts], dim=1))


def border(images_NCHW: Tensor) -> Tensor:
    """The pixels of the four sides, (C, N)."""
    sides = images_NCHW[:, :, (0, -1), :], images_NCHW[:, :, :, (0, -1)]
    return torch.cat([side.transpose(0, 1).flatten(1) for side in sides], dim=1)


def shared_colour(pixels_CN: Tensor) -> tuple[float, ...] | None:
    """Colours (C, N) → the one that at least 95% of them are near to, as `border_colour` has it; else None."""
    colour_C = (pixels_CN.median(dim=1).values * 255).round() / 255
    near = ((pixels_CN - colour_C[:, None]).abs() < 0.02).all(dim=0).float().mean()
    return tuple(colour_C.tolist()) if near >= 0.95 else None
