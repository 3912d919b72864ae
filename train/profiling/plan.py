"""What to change in a recipe to train at another size of image, and what a step of both stages then takes.

Settings follow rules of thumb (`plan_settings.py`); memory and operations follow a model that is measured here
(`step_cost.py`). A step that is larger than all that were measured, and not among them, says how well it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from r2id.denoisers import DENOISERS
from r2id.limits import MAX_SIDE, short_repr
from r2id.resamplers import RESAMPLERS
from train.data.buckets import Bucket, Shape
from train.engine.loop import generator
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, read_recipe, read_resampler_recipe
from train.evaluation.tables import Table
from train.losses.cross_attention import WHOLE, CrossAttentionLoss
from train.losses.denoiser import DenoiserLoss
from train.losses.latent_space import LatentSpace
from train.losses.resampler import ResamplerLoss, targets_of
from train.profiling.plan_settings import AnyResampler, adapted, at, images_of_step, rules_of, sides_of, toml
from train.profiling.step_cost import (
    GRID,
    HELD_OUT,
    LATTICE,
    POINTS,
    Load,
    Stage,
    StageLoads,
    Terms,
    most_memory,
    parts_of,
)

CONFIGS = Path(__file__).parents[1] / "configs"
RESAMPLER, DENOISER = CONFIGS / "cifar10_resampler.toml", CONFIGS / "cifar10_r2id.toml"
BUDGET = 24.0  # GB
CHANNELS = 3  # of the images
SMALLEST = 32  # side of an image


def denoiser_of(config: Path) -> Path:
    """The recipe of the denoiser that goes with a resampler's: the one beside it, or DENOISER."""
    beside = config.with_name(config.name.replace("resampler", "r2id"))
    return beside if beside != config and beside.is_file() else DENOISER


def loads_of(first: AnyResampler, second: DenoiserRecipe) -> Iterator[StageLoads]:
    """Of both stages; the denoiser's images are encoded from all their pixels."""
    phases, cells = first.optimisation.phases, second.defaults.latent_size[0]
    if isinstance(first, CrossAttentionRecipe):
        out = max(phase.pixels_out + 5 * WHOLE * bool(phase.consistency) for phase in phases)
        chosen = phases[0].pixels_in
    else:
        out, chosen = first.lattice**2, 0
    square = sides_of(first)[1] ** 2
    for recipe, seen, sides in (
        (first, chosen, first.shape_sampler.cells[1:]),
        (second, 0, (cells, second.shape_sampler.cells[1])),
    ):
        max_aspect = recipe.shape_sampler.max_aspect if recipe.shape_sampler.p_square < 1 else 1.0
        largest = tuple(Load(1, seen or round(square * max_aspect), out, side) for side in sides)
        yield StageLoads(Load(1, seen or square, out, cells), largest)


def stages_of(first: AnyResampler, second: DenoiserRecipe, device: torch.device) -> Iterator[Stage]:
    """Both stages, weights at random, on made-up images."""
    models = [RESAMPLERS[first.architecture][1](replace(first.model, channels=CHANNELS)).to(device) for _ in range(2)]
    of_stage = cross_attention_stage if isinstance(first, CrossAttentionRecipe) else resampler_stage
    loss_of, terms = of_stage(first, models[0], device)
    yield Stage("resampler", models[0], loss_of, terms, device=device)

    channels = first.model.latent_channels
    moments = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    space = LatentSpace(models[1], **moments, schedule=second.schedule).to(device)
    model = DENOISERS[second.architecture][1](second.model).to(device)
    jitter_grid = second.shape_sampler.cells[1]
    how = {"label_dropout": second.label_dropout, "noise_per_image": second.noise_per_image}
    loss = DenoiserLoss(model, second.schedule, jitter_grid=jitter_grid, **how)

    def denoised(load: Load) -> Tensor:
        labels = torch.zeros(load.batch, dtype=torch.long, device=device)
        return loss([space.encode_bucket(bucket_of(load, device))], labels, generator(0, 0))[0]

    terms = GRID if isinstance(first, CrossAttentionRecipe) else LATTICE
    yield Stage("denoiser", model, denoised, terms, frozen=space, device=device)


def resampler_stage(
    recipe: AnyResampler, model: nn.Module, device: torch.device
) -> tuple[Callable[[Load], Tensor], Terms]:
    decoder_size, encoder_size = sides_of(recipe)
    black = (0.0,) * CHANNELS
    loss = ResamplerLoss(model, background=black, lattice=1, outside_fraction=recipe.outside_fraction).to(device)

    def loss_of(load: Load) -> Tensor:
        loss.lattice, buckets = math.isqrt(load.pixels_out), [bucket_of(load, device)]
        targets = images_of(load.batch, math.isqrt(load.pixels_in) * decoder_size // encoder_size)
        return loss(buckets, targets_of(buckets, targets), generator(0, 0))[0]

    return loss_of, LATTICE


def cross_attention_stage(
    recipe: CrossAttentionRecipe, model: nn.Module, device: torch.device
) -> tuple[Callable[[Load], Tensor], Terms]:
    loss = CrossAttentionLoss(
        model,
        jitter=recipe.jitter,
        pre_tanh_l2=recipe.pre_tanh_l2,
        outside_fraction=recipe.outside_fraction,
        background=(0.0,) * CHANNELS,
    ).to(device)
    every = not recipe.optimisation.phases[0].pixels_in

    def loss_of(load: Load) -> Tensor:
        side = math.isqrt(load.pixels_in if every else 2 * load.pixels_in)
        shape, seen = Shape((side, side), (load.cells, load.cells)), 0 if every else load.pixels_in
        return loss(images_of(load.batch, side), shape, seen, load.pixels_out, generator(0, 0))[0]

    return loss_of, GRID if every else POINTS


def images_of(count: int, side: int) -> Tensor:
    return torch.rand(count, CHANNELS, side, side) * 2 - 1


def bucket_of(load: Load, device: torch.device) -> Bucket:
    """Made-up images as the encoder sees them, all of their pixels."""
    side = math.isqrt(load.pixels_in)
    shape = Shape((side, side), (load.cells, load.cells))
    return shape.buckets(images_of(load.batch, side), torch.zeros(CHANNELS, device=device))[0]


def plan(size: int, config: Path, budget: float, device: torch.device) -> Iterator[Table]:
    """budget: GB of one device. Raises ValueError for a size or budget that is out of range."""
    if not SMALLEST <= size <= MAX_SIDE:
        raise ValueError(f"--plan {size}: must be {SMALLEST}…{MAX_SIDE}, pixels on a side")
    if not 0 < budget < math.inf:
        raise ValueError(f"--budget-memory {short_repr(budget)}: must be a number of GB above 0")
    before = read_resampler_recipe(config), read_recipe(DenoiserRecipe, denoiser_of(config))
    pair = adapted(*before, size)
    settings, costs, errors, arguments = [], [], [], []
    for old, new, stage, loads in zip(before, pair, stages_of(*pair, device), loads_of(*pair), strict=True):
        stage.measure()
        seen = stage.memory(HELD_OUT), stage.count_flops(HELD_OUT)
        for unit, scale, found, expected in zip(
            ("MB", "GFLOP"), (1e6, 1e9), seen, stage.predicted(HELD_OUT), strict=True
        ):
            errors.append((stage.name, unit, found / scale, expected / scale, expected / found - 1))
        images = images_of_step(new)
        parts = parts_of(stage, loads, images, new.optimisation.batch, 1e9 * budget)
        parts = max(parts, new.optimisation.accumulate)
        new = replace(new, optimisation=replace(new.optimisation, accumulate=parts))
        at_once = math.ceil(images / parts)
        memory = most_memory(stage, loads, at_once)
        count = stage.predicted(replace(loads.usual, batch=images))[1]
        costs.append((stage.name, stage.parameters, images, at_once, memory / 1e9, count / 1e12))
        changed = [(key, at(old, key), at(new, key), why) for key, why in rules_of(new)]
        settings += [(stage.name, key, toml(was), toml(now), why) for key, was, now, why in changed]
        listed = " ".join(f"--set '{key}={toml(now)}'" for key, was, now, _ in changed if was != now)
        arguments.append((f"train.train_{stage.name}", listed))
    columns = ("stage", "setting", f"at {sides_of(before[0])[0]}²", f"at {size}²", "rule")
    yield Table(f"Settings for images of {size} × {size}", dict.fromkeys(columns, "{}"), settings)
    columns = {"stage": "{}", "parameters": "{:,}", "images a step": "{}", "images at once": "{}"}
    columns |= {"memory, GB": "{:.1f}", "TFLOP a step": "{:.2f}"}
    title = f"A step, predicted: memory at the largest shape, within {budget:g} GB; operations at the usual shape"
    yield Table(title, columns, costs)
    columns = {"stage": "{}", "unit": "{}", "measured": "{:.1f}", "predicted": "{:.1f}", "error": "{:+.1%}"}
    held = f"{HELD_OUT.batch} images, {HELD_OUT.pixels_in:,} pixels in, {HELD_OUT.pixels_out:,} out"
    title = f"The prediction at a step it was not fitted to: {held}, {HELD_OUT.cells} × {HELD_OUT.cells} cells"
    yield Table(title, columns, errors)
    yield Table("As arguments", {"script": "{}", "arguments": "{}"}, arguments)
