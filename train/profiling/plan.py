"""What to change in a recipe to train at another size of picture, and what a step of both stages then takes.

Settings follow rules of thumb (`adapted`); memory and operations follow a model that is measured here. Both are sums of
terms of a step's load, each product of images, pixels and cells that some layer's work grows with, with weights fitted
to a few small steps of the model itself, at its real width. A step that is larger than all of these, and not among
them, says how well the model predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.denoisers import DENOISERS
from r2id.limits import MAX_CELLS, MAX_SIDE, short_repr
from train.data.buckets import Shape
from train.engine.flops import count_flops
from train.engine.loop import generator
from train.engine.machine import memory_of
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, read_recipe
from train.evaluation.tables import Table
from train.losses.cross_attention import WHOLE, CrossAttentionLoss
from train.losses.denoiser import DenoiserLoss
from train.losses.latent_space import LatentSpace

CONFIGS = Path(__file__).parents[1] / "configs"
RESAMPLER, DENOISER = CONFIGS / "cifar10_resampler.toml", CONFIGS / "cifar10_r2id.toml"
BUDGET = 24.0  # GB
CHANNELS = 3  # of the pictures
LABELS = 10
SMALLEST = 32  # side of a picture
ALL_PIXELS = 2**16  # as many the encoder can see while training, of a larger picture some
SOME_PIXELS = 2**14
HEAD_WIDTH = 32
STATE = 16  # bytes a parameter keeps: itself, two moments, its average; gradients belong to the step


@dataclass(frozen=True)
class Load:
    """What a step is given: images at once and, of each, pixels in and out and cells on a side of the latent."""

    batch: int
    pixels_in: int
    pixels_out: int
    cells: int


MEASURED = (  # for memory: large enough to be seen
    Load(2, 32**2, 256, 8),
    Load(4, 32**2, 256, 8),
    Load(2, 48**2, 256, 8),
    Load(2, 32**2, 1024, 8),
    Load(2, 32**2, 256, 20),
    Load(4, 40**2, 512, 12),
)
COUNTED = tuple(  # for operations, which are exact at any size
    Load(1, side**2, pixels_out, cells)
    for side, pixels_out, cells in (
        (8, 16, 2),
        (16, 16, 2),
        (8, 64, 2),
        (8, 16, 6),
        (16, 16, 6),
        (8, 64, 6),
        (8, 16, 12),
        (24, 16, 3),
        (24, 64, 10),
        (12, 32, 8),
        (32, 16, 5),
    )
)
HELD_OUT = Load(3, 64**2, 1280, 24)


def memory_terms(load: Load, grid: bool) -> list[float]:
    """Attention is fused, so nothing grows with pixels times cells; pixels that are no grid have a row of the basis of
    all cells along each axis."""
    spread = [] if grid else [load.batch * load.pixels_in * load.cells]
    return [1, *(load.batch * n for n in (load.pixels_in, load.pixels_out, load.cells**2)), *spread]


def operation_terms(load: Load, grid: bool) -> list[float]:
    cells, edge = load.cells**2, math.sqrt(load.pixels_in)
    pixels = (load.pixels_in, load.pixels_out)
    attended = (*(n * cells for n in pixels), cells**2)
    local = (load.pixels_in * load.cells, cells * edge) if grid else ()  # else as pixels times cells
    return [load.batch * n for n in (1, *pixels, cells, *attended, *local)]


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
    """A stage of training at the width that is planned, on made-up pictures, and what was measured of it."""

    def __init__(self, name: str, loss: nn.Module, space: LatentSpace | None, *, grid: bool, device: torch.device):
        """space: of the denoiser's latents. grid: the encoder sees all pixels of the image."""
        self.name, self.grid, self.device = name, grid, device
        self.loss, self.space = loss.to(device), space and space.to(device)
        trained = loss.model.parameters()
        self.parameters = sum(parameter.numel() for parameter in loss.model.parameters())
        frozen = sum(p.numel() for p in space.parameters()) if space else 0
        self.state = STATE * self.parameters + 4 * frozen
        self.optimiser = torch.optim.AdamW(trained, fused=True)

    def step(self, load: Load) -> None:
        side = math.isqrt(load.pixels_in) if self.grid else math.isqrt(2 * load.pixels_in)
        shape, rng = Shape((side, side), (load.cells, load.cells)), generator(0, 0)
        images = torch.rand(load.batch, CHANNELS, side, side) * 2 - 1
        if isinstance(self.loss, CrossAttentionLoss):
            loss, _ = self.loss(images, shape, 0 if self.grid else load.pixels_in, load.pixels_out, rng)
        else:
            labels = torch.zeros(load.batch, dtype=torch.long, device=self.device)
            (bucket,) = shape.buckets(images, torch.zeros(CHANNELS, device=self.device))
            loss, _ = self.loss([self.space.encode_bucket(bucket)], labels, rng)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def measure(self) -> None:
        self.step(MEASURED[0])  # libraries set themselves up, and the optimiser its moments
        memory, counts = [self.memory(load) for load in MEASURED], [self.count_flops(load) for load in COUNTED]
        self.memory_weights = fitted(
            terms_of(memory_terms, MEASURED, self.grid), torch.tensor(memory, dtype=torch.float64)
        )
        self.count_weights = fitted(
            terms_of(operation_terms, COUNTED, self.grid), torch.tensor(counts, dtype=torch.float64)
        )

    def memory(self, load: Load) -> int:
        """Bytes of a step above the state."""
        return max(1, memory_of(lambda: self.step(load), self.device))

    def count_flops(self, load: Load) -> int:
        with count_flops() as counter:
            self.step(load)
        return counter.get_total_flops()

    def predicted(self, load: Load) -> tuple[float, float]:
        """`memory` and `operations`."""
        pairs = ((memory_terms, self.memory_weights), (operation_terms, self.count_weights))
        return tuple((terms_of(terms, [load], self.grid)[0] @ weights).item() for terms, weights in pairs)


def terms_of(terms: Callable, loads: Sequence[Load], grid: bool) -> Tensor:
    return torch.tensor([terms(load, grid) for load in loads], dtype=torch.float64)


# rules of thumb

SIDE = f"8 pixels a cell, at most {math.isqrt(MAX_CELLS)} cells on a side"
LAW = "from half to twice the usual latent's side"
HEADS = f"{HEAD_WIDTH} channels each"
PARTS = "the fewest parts whose memory is within the budget"
WHY = {
    "resampler": {
        "training_size": "the pictures' side",
        "shape_sampler.cells": LAW,
        "model.width": "grows with the pixels on a cell's side",
        "model.heads": HEADS,
        "model.latent_channels": "a cell holds more: grow with the root of the pixels on its side",
        "model.harmonics": "half a wave is a pixel, but at most 8: coefficients grow as the square",
        "model.octaves": "half a wave of the last is a pixel",
        "optimisation.phases.N.pixels_in": f"all (0) up to {ALL_PIXELS:,}; of more, {SOME_PIXELS:,} at random",
        "optimisation.phases.N.pixels_out": "grow with the side, at most 4,096",
        "optimisation.accumulate": PARTS,
    },
    "denoiser": {
        "shape_sampler.cells": LAW,
        "defaults.latent_size": SIDE,
        "model.width": "grows with the root of the cells on a side",
        "model.heads": HEADS,
        "model.octaves": "grow with the cells on a side",
        "optimisation.accumulate": PARTS,
    },
}


def adapted(
    first: CrossAttentionRecipe, second: DenoiserRecipe, size: int
) -> tuple[CrossAttentionRecipe, DenoiserRecipe]:
    """The recipes for pictures of size × size."""
    base = max(second.defaults.latent_size)
    cells = min(math.isqrt(MAX_CELLS), max(base, size // 8))
    before, after = first.training_size / base, size / cells  # pixels on a cell's side
    shape_sampler = (max(1, cells // 2), min(math.isqrt(MAX_CELLS), 2 * cells))
    pixels_in = 0 if size**2 <= ALL_PIXELS else SOME_PIXELS

    def multiple(value: float, of: int) -> int:
        return max(1, round(value / of)) * of

    def wider(width: int, ratio: float) -> dict[str, int]:
        width = width if ratio == 1 else multiple(width * ratio, HEAD_WIDTH)
        return {"width": width, "heads": max(1, width // HEAD_WIDTH)} if ratio != 1 else {"width": width}

    def octaves(old: tuple[int, int], ratio: float) -> tuple[int, int]:
        return old[0], old[1] + math.ceil(math.log2(ratio))

    channels, harmonics = first.model.latent_channels, first.model.harmonics
    channels = channels if after == before else multiple(channels * math.sqrt(after / before), 8)
    model = replace(
        first.model,
        **wider(first.model.width, after / before),
        latent_channels=channels,
        harmonics=max(harmonics, min(8, round(harmonics * after / before))),
        octaves=octaves(first.model.octaves, size / first.training_size),
    )
    phases = tuple(
        replace(
            phase,
            pixels_in=phase.pixels_in if size == first.training_size else pixels_in,
            pixels_out=phase.pixels_out and min(4096, round(phase.pixels_out * size / first.training_size)),
        )
        for phase in first.optimisation.phases
    )
    law_cells = first.shape_sampler.cells if cells == base else shape_sampler
    first = replace(
        first,
        training_size=size,
        model=model,
        shape_sampler=replace(first.shape_sampler, cells=law_cells),
        optimisation=replace(first.optimisation, phases=phases),
    )
    second = replace(
        second,
        model=replace(
            second.model,
            **wider(second.model.width, math.sqrt(cells / base)),
            octaves=octaves(second.model.octaves, cells / base),
            latent_channels=channels,
            num_classes=LABELS,
        ),
        shape_sampler=replace(
            second.shape_sampler, cells=second.shape_sampler.cells if cells == base else shape_sampler
        ),
        defaults=replace(second.defaults, latent_size=(cells, cells)),
    )
    return first, second


def keys_of(stage: str, recipe: CrossAttentionRecipe | DenoiserRecipe) -> Iterator[tuple[str, str]]:
    """The settings of a stage and their rules, N being every phase."""
    for key, why in WHY[stage].items():
        phases = range(len(recipe.optimisation.phases)) if ".N." in key else (0,)
        yield from ((key.replace(".N.", f".{phase}."), why) for phase in phases)


def at(recipe: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        recipe = recipe[int(name)] if name.isdecimal() else getattr(recipe, name)
    return recipe


def toml(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


# what a plan prints


@dataclass(frozen=True)
class Shapes:
    """The loads of one image of a stage."""

    usual: Load
    largest: tuple[Load, ...]  # of all that its law draws

    def at_most(self, images: int) -> list[Load]:
        """Large latents take fewer images, so that a step's cells stay as many."""
        cells = images * self.largest[0].cells ** 2
        return [replace(load, batch=max(1, min(images, cells // load.cells**2))) for load in self.largest]


def shapes_of(first: CrossAttentionRecipe, second: DenoiserRecipe) -> Iterator[Shapes]:
    """Of both stages; the denoiser's images are encoded from all their pixels."""
    phases, cells = first.optimisation.phases, second.defaults.latent_size[0]
    out = max(phase.pixels_out + 5 * WHOLE * bool(phase.consistency) for phase in phases)
    for recipe, seen, sides in (
        (first, phases[0].pixels_in, first.shape_sampler.cells[1:]),
        (second, 0, (cells, second.shape_sampler.cells[1])),
    ):
        max_aspect = recipe.shape_sampler.max_aspect if recipe.shape_sampler.p_square < 1 else 1.0
        square = first.training_size**2
        largest = tuple(Load(1, seen or round(square * max_aspect), out, side) for side in sides)
        yield Shapes(Load(1, seen or square, out, cells), largest)


def losses_of(first: CrossAttentionRecipe, second: DenoiserRecipe) -> Iterator[tuple[nn.Module, LatentSpace | None]]:
    channels, resampler = first.model.latent_channels, replace(first.model, channels=CHANNELS)
    loss = CrossAttentionLoss(
        CrossAttentionR2IR(resampler),
        jitter=first.jitter,
        pre_tanh_l2=first.pre_tanh_l2,
        outside_fraction=first.outside_fraction,
        background=(0.0,) * CHANNELS,
    )
    yield loss, None
    model, how = DENOISERS[second.architecture][1](second.model), {"label_dropout": second.label_dropout}
    moments = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    space = LatentSpace(CrossAttentionR2IR(resampler), **moments, schedule=second.schedule)
    yield DenoiserLoss(model, second.schedule, jitter_grid=second.shape_sampler.cells[1], **how), space


def most_memory(stage: Stage, shapes: Shapes, images: int) -> float:
    """Bytes of the largest step with so many images at once."""
    return stage.state + max(stage.predicted(load)[0] for load in shapes.at_most(images))


def images_at_once(stage: Stage, shapes: Shapes, batch: int, budget: float) -> int:
    """The most images, a divisor of the batch, whose step is within the budget in bytes."""
    for images in (n for n in range(batch, 0, -1) if batch % n == 0):
        if (needed := most_memory(stage, shapes, images)) <= budget:
            return images
    remedy = "raise it, or plan a smaller SIZE"
    raise ValueError(f"--budget-memory {budget / 1e9:g}: one image takes the {stage.name} {needed / 1e9:.1f}; {remedy}")


def plan(size: int, config: Path, budget: float, device: torch.device) -> Iterator[Table]:
    """budget: GB of one device. Raises ValueError for a size or budget that is out of range."""
    if not SMALLEST <= size <= MAX_SIDE:
        raise ValueError(f"--plan {size}: must be {SMALLEST}…{MAX_SIDE}, pixels on a side")
    if not 0 < budget < math.inf:
        raise ValueError(f"--budget-memory {short_repr(budget)}: must be a number of GB above 0")
    before = dict(resampler=read_recipe(CrossAttentionRecipe, config), denoiser=read_recipe(DenoiserRecipe, DENOISER))
    pair = adapted(*before.values(), size)
    settings, costs, errors, arguments = [], [], [], []
    for (name, old), new, (loss, space), shapes in zip(
        before.items(), pair, losses_of(*pair), shapes_of(*pair), strict=True
    ):
        grid = name == "denoiser" or not pair[0].optimisation.phases[0].pixels_in
        stage = Stage(name, loss, space, grid=grid, device=device)
        stage.measure()
        seen = stage.memory(HELD_OUT), stage.count_flops(HELD_OUT)
        for unit, size_of, found, expected in zip(
            ("MB", "GFLOP"), (1e6, 1e9), seen, stage.predicted(HELD_OUT), strict=True
        ):
            errors.append((name, unit, found / size_of, expected / size_of, expected / found - 1))
        batch = new.optimisation.batch
        images = images_at_once(stage, shapes, batch, 1e9 * budget)
        accumulate = max(batch // images, new.optimisation.accumulate)
        new = replace(new, optimisation=replace(new.optimisation, accumulate=accumulate))
        memory = most_memory(stage, shapes, batch // accumulate)
        count = stage.predicted(replace(shapes.usual, batch=batch))[1]
        costs.append((name, stage.parameters, batch, batch // accumulate, memory / 1e9, count / 1e12))
        changed = [(key, at(old, key), at(new, key), why) for key, why in keys_of(name, new)]
        settings += [(name, key, toml(was), toml(now), why) for key, was, now, why in changed]
        listed = " ".join(f"--set '{key}={toml(now)}'" for key, was, now, _ in changed if was != now)
        arguments.append((f"train/train_{name}.py", listed))
    columns = ("stage", "setting", f"at {before['resampler'].training_size}²", f"at {size}²", "rule")
    yield Table(f"Settings for pictures of {size} × {size}", dict.fromkeys(columns, "{}"), settings)
    columns = {"stage": "{}", "parameters": "{:,}", "batch": "{}", "images at once": "{}"}
    columns |= {"memory, GB": "{:.1f}", "TFLOP a step": "{:.2f}"}
    title = f"A step, predicted: memory at the largest shape, within {budget:g} GB; operations at the usual shape"
    yield Table(title, columns, costs)
    columns = {"stage": "{}", "unit": "{}", "measured": "{:.1f}", "predicted": "{:.1f}", "error": "{:+.1%}"}
    held = f"{HELD_OUT.batch} images, {HELD_OUT.pixels_in:,} pixels in, {HELD_OUT.pixels_out:,} out"
    title = f"The prediction at a step it was not fitted to: {held}, {HELD_OUT.cells} × {HELD_OUT.cells} cells"
    yield Table(title, columns, errors)
    yield Table("As arguments", {"script": "{}", "arguments": "{}"}, arguments)
