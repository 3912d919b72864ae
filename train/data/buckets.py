"""Frames of images and cells of their latents: how steps draw them, for square images and for images
of any sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from r2id.position import Positions, batched, grid_positions


@dataclass(frozen=True)
class Bucket:
    """Images whose latents have the same cells. One call takes them all, and without a mask: random pixels are as
    many of each."""

    canvases: list[Tensor]  # (B, C, H, W) in [-1, 1] that fill their frames, for every size
    cells: tuple[int, int]
    places: list[int]  # of each image in the batch

    def __len__(self) -> int:
        return len(self.places)

    @property
    def counts(self) -> list[int]:
        """How many images have each size."""
        return [len(canvas_BCHW) for canvas_BCHW in self.canvases]

    @property
    def aspects(self) -> list[float]:
        return [aspect_of(canvas_BCHW) for canvas_BCHW in self.canvases]

    @property
    def positions(self) -> Positions:
        """Of the cells."""
        grids = [grid_positions(self.cells, aspect) for aspect in self.aspects]
        return batched(grids, self.counts).to(self.canvases[0].device)

    def sizes(self) -> list[Bucket]:
        """A bucket for every size."""
        places = iter(self.places)
        return [Bucket([canvas], self.cells, list(islice(places, len(canvas)))) for canvas in self.canvases]


@dataclass(frozen=True)
class Shape:
    """What a step draws for square images: one frame as a canvas of pixels, and the latent's cells, both (height,
    width)."""

    canvas: tuple[int, int]
    cells: tuple[int, int]

    @property
    def aspect(self) -> float:
        return self.canvas[1] / self.canvas[0]

    @property
    def area(self) -> int:
        """Cells of a latent."""
        return math.prod(self.cells)

    def buckets(self, image_BCHW: Tensor, background_C: Tensor) -> list[Bucket]:
        """Images, padded and on the background's device."""
        canvas_BCHW = pad_to(image_BCHW.to(background_C.device), self.canvas, background_C)
        return [Bucket([canvas_BCHW], self.cells, list(range(len(image_BCHW))))]


@dataclass(frozen=True)
class NativeAspect:
    """What a step draws for images of any sizes, which fill frames of their own: how large the cells are."""

    side: float  # cells on the side of a square frame
    longest: float  # cells on any side
    skew: float = 1.0  # how much narrower than high a cell is
    size_multiple: int = 1

    def cells(self, aspect: float) -> tuple[int, int]:
        """(height, width) of the latent, multiples of `size_multiple`."""
        w, h = self.side * math.sqrt(aspect * self.skew), self.side / math.sqrt(aspect * self.skew)
        shrink = min(1.0, self.longest / max(w, h))
        return tuple(max(1, int(v * shrink / self.size_multiple)) * self.size_multiple for v in (h, w))

    @property
    def area(self) -> int:
        """Cells of a square image's latent: those of others are about as many."""
        return math.prod(self.cells(1.0))

    def buckets(self, images: list[Tensor], background_C: Tensor) -> list[Bucket]:
        """Images (C, H, W) by their cells, on the background's device."""
        places: dict[tuple, dict[tuple, list[int]]] = {}  # by cells, then by size
        for place, image_CHW in enumerate(images):
            height, width = image_CHW.shape[1:]
            places.setdefault(self.cells(width / height), {}).setdefault((height, width), []).append(place)
        return [
            Bucket(
                [torch.stack([images[place] for place in alike]).to(background_C.device) for alike in sizes.values()],
                cells,
                [place for alike in sizes.values() for place in alike],
            )
            for cells, sizes in places.items()
        ]


@dataclass(frozen=True)
class ShapeSampler:
    """How a step draws its shape. Frames of square images that are not square are padded with the background colour;
    images of any sizes fill their own, so `p_square` says nothing of them and `max_aspect` is where they are
    cropped."""

    cells: tuple[int, int] = (4, 16)  # of a square frame's side, drawn log-uniformly: small latents are the hard ones
    p_square: float = 0.5  # share of steps whose frame is square
    max_aspect: float = 16 / 9  # other frames are log-uniform between its inverse and it
    p_anisotropic: float = 0.1  # share of steps whose cells are not (nearly) square

    def __post_init__(self):
        if not 1 <= self.cells[0] <= self.cells[1]:
            raise ValueError(f"cells {self.cells}: must be (fewest, most), 1 or more")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect {self.max_aspect}: must be 1 or more, width / height")

    def draw(self, size: int | None, *, generator: torch.Generator, size_multiple: int = 1) -> Shape | NativeAspect:
        """A shape for images of size × size pixels, or (None) of any sizes; cells are multiples of `size_multiple`."""
        u = torch.rand(5, generator=generator).tolist()
        low, high = self.cells
        side = low * ((high + size_multiple) / low) ** u[0]
        skew = 1.5 ** (2 * u[4] - 1) if u[3] < self.p_anisotropic else 1.0
        own = NativeAspect(side, high + 0.99 * size_multiple, skew, size_multiple)
        if size is None:
            return own
        ratio = 1.0 if u[1] < self.p_square else self.max_aspect ** (2 * u[2] - 1)
        pad = round(size * (max(ratio, 1 / ratio) - 1) / 2)  # on both sides, so the image stays on whole pixels
        canvas = (size, size + 2 * pad) if ratio >= 1 else (size + 2 * pad, size)
        return Shape(canvas, own.cells(canvas[1] / canvas[0]))


def mean_of(
    buckets: list[Bucket], losses: Iterable[tuple[Tensor, dict[str, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and parts of it of each bucket → of all images."""
    total, images = {}, sum(len(bucket) for bucket in buckets)
    for bucket, (loss, parts) in zip(buckets, losses, strict=True):
        for key, value in {"loss": loss, **parts}.items():
            total[key] = total.get(key, 0) + value * (len(bucket) / images)
    return total.pop("loss"), total


def aspect_of(canvas_BCHW: Tensor) -> float:
    return canvas_BCHW.shape[3] / canvas_BCHW.shape[2]


def pad_to(image_BCHW: Tensor, canvas: tuple[int, int], background_C: Tensor) -> Tensor:
    """Images centred on a canvas of the background colour."""
    if image_BCHW.shape[2:] == canvas:
        return image_BCHW
    padded = background_C.view(-1, 1, 1).repeat(len(image_BCHW), 1, *canvas)
    top, left = ((c - s) // 2 for c, s in zip(canvas, image_BCHW.shape[2:], strict=True))
    padded[:, :, top : top + image_BCHW.shape[2], left : left + image_BCHW.shape[3]] = image_BCHW
    return padded
