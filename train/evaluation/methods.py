"""How a system makes an image of a size, and what one image costs.

*Native*: at that very size: diffused there in pixel space, else the default latent, diffused once, resampled to it.
*Resized*: the image of the training size, interpolated with antialiasing, background beyond it. *Shaped*, for frames
that are not square, with a resampler: a latent diffused at that shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from r2id.allocator import raise_mmap_threshold
from r2id.config import PipelineConfig
from r2id.image import to_pil
from r2id.interpolation import interpolate_tiles
from r2id.pipeline import Latent, Pipeline
from r2id.position import window_of
from train.engine.flops import count_flops
from train.engine.machine import median_seconds, peak_memory, reset_peak, square_rate
from train.evaluation.metrics import frame_size, to_multiple

PAGE = 4096  # bytes, the least that memory is counted in


@dataclass(frozen=True)
class Column:
    """`count` images with frames of this aspect (width / height) and a short side of `side` pixels."""

    title: str
    aspect: float
    side: int
    count: int


@dataclass(frozen=True)
class Cell:
    """A column of the tables and a method to fill it: images of `size` from latents of `latent`, (height, width)."""

    column: Column
    method: str  # native, shaped or resized
    size: tuple[int, int]
    latent: tuple[int, int]
    aspect: float  # of the latent's frame


def methods_of(config: PipelineConfig, column: Column) -> Iterator[Cell]:
    """A system's cells of a column. At the training size native and resized are one."""
    base, size_multiple, size = (
        config.defaults.latent_size,
        config.size_multiple,
        frame_size(column.aspect, column.side),
    )
    resized = Cell(column, "resized", size, base, 1.0)
    if config.resampler is None:
        whole = tuple(to_multiple(v, size_multiple) for v in size)
        yield replace(resized, method="native", size=whole, latent=whole, aspect=whole[1] / whole[0])
    else:
        yield replace(resized, method="native")
        if column.aspect != 1:
            cells = tuple(to_multiple(max(base) * max(1, v), size_multiple) for v in (1 / column.aspect, column.aspect))
            yield replace(resized, method="shaped", latent=cells, aspect=column.aspect)
    if size != (config.encoder_size,) * 2:
        yield resized


def diffuse(pipe: Pipeline, cell: Cell, labels: list[int], *, seed: int, steps: int | None = None) -> Latent:
    return pipe.diffuse(labels, latent_size=cell.latent, aspect=cell.aspect, seed=seed, steps=steps)


def show(pipe: Pipeline, cell: Cell, latent: Latent) -> Tensor:
    """The cell's images of latents, in [0, 1]."""
    if cell.method != "resized":
        return pipe.resample(latent, size=cell.size, fit="contain")
    height, width = cell.size
    square_BCHW = pipe.resample(latent, size=(pipe.config.encoder_size,) * 2) * 2 - 1
    window = window_of(cell.size, aspect=latent.aspect, fit="contain")
    background_C = torch.tensor(pipe.config.background) * 2 - 1
    box = (0, 0, width, height)
    tiles = interpolate_tiles(square_BCHW, window, width=width, background_C=background_C, boxes=[box])
    return (dict(tiles)[box] + 1) / 2


# what an image costs


def cost(folder: Path, device: str, cell: Cell, label: int, seed: int) -> tuple[dict[str, float], Image.Image]:
    """One image: its megabytes (the peak above the loaded model), its milliseconds (the median), the rate of matrix
    products before and after these, and the image. For a process of its own, whose memory holds nothing else."""
    raise_mmap_threshold()
    pipe = Pipeline.from_pretrained(folder, device=device)
    least = (2 * pipe.config.size_multiple,) * 2
    tiny = replace(cell, latent=least, size=least)
    show(pipe, tiny, diffuse(pipe, tiny, [label], seed=seed, steps=1))  # libraries set themselves up

    reset_peak(pipe.device)
    held = peak_memory(pipe.device)
    image = show(pipe, cell, diffuse(pipe, cell, [label], seed=seed))[0]
    memory = max(PAGE, peak_memory(pipe.device) - held)

    rate = square_rate(pipe.device)
    seconds = median_seconds(lambda: show(pipe, cell, diffuse(pipe, cell, [label], seed=seed)))
    rate = (rate + square_rate(pipe.device)) / 2
    figures = {"ms": 1000 * seconds, "memory_mb": memory / 1e6, "product_gflops": rate / 1e9}
    return figures, to_pil(image)


def cost_apart(*arguments: Any) -> tuple[dict[str, float], Image.Image]:
    """`cost` in a fresh process. Raises MemoryError where that is killed."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(cost, *arguments).result()
    except BrokenProcessPool:
        raise MemoryError("its process was ended, most likely for lack of memory") from None


def giga_operations(pipe: Pipeline, cell: Cell) -> float:
    """10⁹ floating-point operations of one image. All steps after the first are alike, so two are counted."""
    counts = []
    for steps in (1, 2):
        with count_flops() as counter:
            show(pipe, cell, diffuse(pipe, cell, [0], seed=0, steps=steps))
        counts.append(counter.get_total_flops())
    return (counts[0] + (pipe.config.defaults.steps - 1) * (counts[1] - counts[0])) / 1e9
