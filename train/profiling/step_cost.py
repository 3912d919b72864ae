"""What a training step takes, measured at small sizes and predicted at large ones.

Memory and operations are sums of terms of a step's load, each a product of images, pixels and cells that some layer's
work grows with, with weights fitted to a few small steps of the model itself, at its real width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from train.engine.flops import count_flops
from train.engine.machine import memory_of

STATE = 16  # bytes a parameter keeps: itself, two moments, its average; gradients belong to the step


@dataclass(frozen=True)
class Load:
    """What a step is given: images at once and, of each, pixels in and out and cells on a side of the latent."""

    batch: int
    pixels_in: int
    pixels_out: int  # squares: R2IR decodes as many rows as columns
    cells: int


MEASURED = (  # for memory: large enough to be seen
    Load(2, 32**2, 16**2, 8),
    Load(4, 32**2, 16**2, 8),
    Load(2, 48**2, 16**2, 8),
    Load(2, 32**2, 32**2, 8),
    Load(2, 32**2, 16**2, 20),
    Load(4, 40**2, 23**2, 12),
)
COUNTED = tuple(  # for operations, which are exact at any size
    Load(1, side**2, points**2, cells)
    for side, points, cells in (
        (8, 4, 2),
        (16, 4, 2),
        (8, 8, 2),
        (8, 4, 6),
        (16, 4, 6),
        (8, 8, 6),
        (8, 4, 12),
        (24, 4, 3),
        (24, 8, 10),
        (12, 6, 8),
        (32, 4, 5),
    )
)
HELD_OUT = Load(3, 64**2, 36**2, 24)


# Terms of a step, by how pixels and cells meet.


def grid_memory(load: Load) -> list[float]:
    """Attention is fused, so nothing grows with pixels times cells."""
    return [1, *(load.batch * n for n in (load.pixels_in, load.pixels_out, load.cells**2))]


def points_memory(load: Load) -> list[float]:
    """Pixels that are no grid have a row of the basis of all cells along each axis."""
    return [*grid_memory(load), load.batch * load.pixels_in * load.cells]


def lattice_memory(load: Load) -> list[float]:
    """Every decoded row has coefficients of every column of cells."""
    return [*grid_memory(load), load.batch * math.sqrt(load.pixels_out) * load.cells]


def points_operations(load: Load) -> list[float]:
    cells, pixels = load.cells**2, (load.pixels_in, load.pixels_out)
    attended = (*(n * cells for n in pixels), cells**2)
    return [load.batch * n for n in (1, *pixels, cells, *attended)]


def grid_operations(load: Load) -> list[float]:
    return points_operations(load) + encoded(load)


def lattice_operations(load: Load) -> list[float]:
    rows, side, cells = math.sqrt(load.pixels_out), load.cells, load.cells**2
    decoded = (rows, rows * side, load.pixels_out)
    return [load.batch * n for n in (1, side, cells, cells**2, *decoded)] + encoded(load)


def encoded(load: Load) -> list[float]:
    """Coefficients of a grid of pixels, along one axis and then along the other."""
    return [load.batch * n for n in (load.pixels_in * load.cells, load.cells**2 * math.sqrt(load.pixels_in))]


@dataclass(frozen=True)
class Terms:
    memory: Callable[[Load], list[float]]
    operations: Callable[[Load], list[float]]


POINTS = Terms(points_memory, points_operations)  # random pixels and cells attend to each other
GRID = Terms(grid_memory, grid_operations)  # all pixels of an image and cells do
LATTICE = Terms(lattice_memory, lattice_operations)  # R2IR, whose cells attend among themselves


def rows_of(terms: Callable[[Load], list[float]], loads: Sequence[Load]) -> Tensor:
    return torch.tensor([terms(load) for load in loads], dtype=torch.float64)


def fitted(terms_PK: Tensor, measured_P: Tensor) -> Tensor:
    """Weights (K,), none negative, with the least squares of relative errors: a term that would need a negative weight
    is left out."""
    relative_PK = terms_PK / measured_P[:, None]
    scale_K = relative_PK.norm(dim=0)
    kept = list(range(terms_PK.shape[1]))
    while True:
        solved = torch.linalg.lstsq(relative_PK[:, kept] / scale_K[kept], torch.ones_like(measured_P), driver="gelsd")
        if (solved.solution >= 0).all() or len(kept) == 1:
            weight_K = torch.zeros_like(scale_K)
            weight_K[kept] = solved.solution.clamp(min=0) / scale_K[kept]
            return weight_K
        del kept[int(solved.solution.argmin())]


class Stage:
    """A stage of training at the width that is planned, and what was measured of it."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loss_of: Callable[[Load], Tensor],
        terms: Terms,
        *,
        frozen: nn.Module | None = None,
        device: torch.device,
    ):
        """model: that learns; frozen: what the loss needs besides. loss_of: the loss of made-up images."""
        self.name, self.loss_of, self.terms, self.device = name, loss_of, terms, device
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.state = STATE * self.parameters + 4 * sum(p.numel() for p in (frozen.parameters() if frozen else ()))
        self.optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def step(self, load: Load) -> None:
        self.loss_of(load).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def measure(self) -> None:
        self.step(MEASURED[0])  # libraries set themselves up, and the optimiser its moments
        memory, counts = [self.memory(load) for load in MEASURED], [self.count_flops(load) for load in COUNTED]
        measured = torch.tensor(memory, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
        self.memory_weights = fitted(rows_of(self.terms.memory, MEASURED), measured[0])
        self.count_weights = fitted(rows_of(self.terms.operations, COUNTED), measured[1])

    def memory(self, load: Load) -> int:
        """Bytes of a step above the state."""
        return max(1, memory_of(lambda: self.step(load), self.device))

    def count_flops(self, load: Load) -> int:
        with count_flops() as counter:
            self.step(load)
        return counter.get_total_flops()

    def predicted(self, load: Load) -> tuple[float, float]:
        """`memory` and `count_flops`."""
        pairs = ((self.terms.memory, self.memory_weights), (self.terms.operations, self.count_weights))
        return tuple((rows_of(terms, [load])[0] @ weights).item() for terms, weights in pairs)


@dataclass(frozen=True)
class StageLoads:
    """The loads of one image of a stage."""

    usual: Load
    largest: tuple[Load, ...]  # of all that its sampler of shapes draws

    def at_most(self, images: int) -> list[Load]:
        """Large latents take fewer images, so that a step's cells stay as many."""
        cells = images * self.largest[0].cells ** 2
        return [replace(load, batch=max(1, min(images, cells // load.cells**2))) for load in self.largest]


def most_memory(stage: Stage, loads: StageLoads, images: int) -> float:
    """Bytes of the largest step with so many images at once."""
    return stage.state + max(stage.predicted(load)[0] for load in loads.at_most(images))


def parts_of(stage: Stage, loads: StageLoads, images: int, batch: int, budget: float) -> int:
    """The fewest parts, a divisor of the batch, into which a step of so many images falls so that each is within the
    budget in bytes."""
    for parts in (n for n in range(1, batch + 1) if batch % n == 0):
        if (needed := most_memory(stage, loads, math.ceil(images / parts))) <= budget:
            return parts
    remedy = "raise it, or plan a smaller SIZE"
    raise ValueError(f"--budget-memory {budget / 1e9:g}: one image takes the {stage.name} {needed / 1e9:.1f}; {remedy}")
