"""What a training step of R2IR takes on this machine, its images included."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import torch

from r2id.resampler import R2IR
from train.data.buckets import Shape
from train.data.images import load_images
from train.engine.flops import count_flops
from train.engine.loop import generator
from train.engine.machine import CPU, REPEATS, faster_precision, seconds_of, square_rate
from train.engine.recipe import ResamplerRecipe, read_resampler_recipe
from train.evaluation.tables import Table
from train.losses.resampler import ResamplerLoss, targets_of
from train.profiling.plan_settings import MOST_CELLS, PIXELS_A_CELL


def training_step(config: Path, data: str | None, device: torch.device = CPU) -> Table:
    """A step of the recipe's batch, square frames and the usual cells, by its parts. data: in place of the
    recipe's. Raises ValueError for a recipe of another resampler, or of native aspects."""
    recipe = read_resampler_recipe(config)
    if not isinstance(recipe, ResamplerRecipe) or recipe.native_aspect:
        raise ValueError(f"--step {config}: must be a recipe of the r2ir architecture, for square images")
    optimisation, seen = recipe.optimisation, recipe.encoder_size
    train = load_images(data or recipe.data, "train", size=seen, density=recipe.decoder_size, glyphs=recipe.glyphs)
    background = train.background or (0.0,) * train.images.shape[1]
    loss = loss_of(recipe, channels=train.images.shape[1], background=background).to(device)
    optimiser = torch.optim.AdamW(loss.model.parameters(), fused=True)
    cells = min(MOST_CELLS, max(1, seen // PIXELS_A_CELL[ResamplerRecipe]))
    shape, precision = Shape((seen, seen), (cells, cells)), optimisation.precision
    if precision == "auto":
        precision = faster_precision(device)[0]
    given = {}

    def load(step: int) -> None:
        places = torch.randint(len(train), (optimisation.batch,), generator=generator(0, step))
        given["images"] = train.images[places]
        given["targets"] = given["images"] if train.targets is None else train.targets[places]

    def forward(step: int) -> None:
        buckets = shape.buckets(given["images"], loss.background)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            given["loss"], _ = loss(buckets, targets_of(buckets, given["targets"]), generator(0, step))

    def backward(step: int) -> None:
        given["loss"].backward()
        torch.nn.utils.clip_grad_norm_(loss.model.parameters(), optimisation.clip)
        optimiser.step()
        optimiser.zero_grad()

    parts = {"load images": load, "forward": forward, "backward, optimiser": backward}
    counted = {}
    for name, part in parts.items():  # and libraries set themselves up
        with count_flops() as counter:
            part(0)
        counted[name] = counter.get_total_flops()
    taken = {name: [] for name in parts}
    for step in range(1, REPEATS + 1):
        rate = square_rate(device)
        for name, part in parts.items():
            seconds = seconds_of(lambda part=part, step=step: part(step), device)
            taken[name].append((seconds, seconds * rate))
    rows = []
    for name, pairs in taken.items():
        seconds, products = map(statistics.median, zip(*pairs, strict=True))
        rows.append((name, 1e3 * seconds, products / 1e9, counted[name] / 1e9))
    rows.append(("together", *map(sum, zip(*(row[1:] for row in rows), strict=True))))
    columns = {"part": "{}", "ms": "{:.0f}", "GFLOP of float32 products in that time": "{:.1f}"}
    sizes = f"{optimisation.batch} images, the encoder sees {seen} × {seen}, targets {recipe.decoder_size} × "
    title = f"A training step of {recipe.name} in {precision}: {sizes}{recipe.decoder_size}, {cells} × {cells} cells"
    return Table(title, columns | {"GFLOP counted": "{:.1f}"}, rows)


def loss_of(recipe: ResamplerRecipe, *, channels: int, background: tuple[float, ...]) -> ResamplerLoss:
    """Of the recipe's model, weights at random."""
    model = R2IR(replace(recipe.model, channels=channels))
    fraction = recipe.outside_fraction
    return ResamplerLoss(model, background=background, lattice=recipe.lattice, outside_fraction=fraction)
