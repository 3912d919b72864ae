"""What each choice of R2IR is worth: its recipe with one thing changed at a time, each for the same processor time.

A row's step is timed first, and its learning rate falls over as many steps as fit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from r2id import Pipeline
from r2id.resamplers import RESAMPLERS
from train.data.images import ImageSet, load_images
from train.engine.cli import run_of
from train.engine.loop import Compute, Run
from train.engine.progress import progress_bar
from train.engine.recipe import CrossAttentionRecipe, ResamplerRecipe, read_resampler_recipe
from train.engine.state import load_state
from train.evaluation.ablation import CONFIGS, ONE_SIZE, Data, cost, phase, place, untrained
from train.evaluation.metrics import bring_to, mean_square, psnr
from train.evaluation.tables import Table, name
from train.losses.resampler_steps import cross_attention_loss, cross_attention_step, resampler_loss, resampler_step

R2IR = {  # what is changed → settings of the recipe
    "as shipped": [],
    "no self-attention among cells": ["model.encoder_blocks=0", "model.decoder_blocks=0"],
    "targets no denser than what is encoded": None,  # those of the recipe's encoder_size
    "no linear codec": ["model.linear_codec=false"],
    "one latent size, 8 x 8": ONE_SIZE,
}
CROSS_ATTENTION = "cross-attention between cells and pixels"
CELLS = ((8, 8), (12, 12), (16, 16))
DENSE_CELLS = (12, 12)
TIMED = 16  # steps, the first shapes that a training draws
HELD, DENSE = 200, 50  # validation images that are decoded, and that are decoded at half the density of the targets
PIXELS = 2048  # random ones of an image, into the encoder and out of the decoder with cross-attention


def recipes(config: str, steps: int, lines: list[str]) -> dict[str, ResamplerRecipe | CrossAttentionRecipe]:
    """The recipe of each row, of so many steps. Raises ValueError where it is none of R2IR."""
    shipped = read_resampler_recipe(config, lines)
    if not isinstance(shipped, ResamplerRecipe):
        raise ValueError(f"{config}: of {shipped.architecture}; give one of r2ir")
    start = [*phase(steps, rate=list(shipped.optimisation.phases[0].rate)), "optimisation.warmup=50", *lines]
    coarse = [f"decoder_size={shipped.encoder_size}"]
    rows = {
        what: read_resampler_recipe(config, start + (coarse if changed is None else changed))
        for what, changed in R2IR.items()
    }
    return rows | {CROSS_ATTENTION: cross_attention(shipped, steps)}


def cross_attention(shipped: ResamplerRecipe, steps: int) -> CrossAttentionRecipe:
    """The other resampler's recipe, for the images, latents and batches of R2IR's. Its linear codec learns along."""
    size, sampler = shipped.encoder_size, shipped.shape_sampler
    settings = [
        *phase(steps, pixels_in=min(PIXELS, size**2), pixels_out=min(PIXELS, size**2)),
        *("optimisation.warmup=50", f"optimisation.batch={shipped.optimisation.batch}"),
        *(f"training_size={size}", "linear_codec_steps=0", f"outside_fraction={shipped.outside_fraction}"),
        *(f"shape_sampler.cells={list(sampler.cells)}", f"shape_sampler.p_square={sampler.p_square}"),
        *(f"model.latent_channels={shipped.model.latent_channels}", f"model.ipe_size={size}"),
        f"model.octaves=[-2, {5 + max(0, round(math.log2(size / 32)))}]",  # half a wave of the last is a pixel
    ]
    recipe = read_resampler_recipe(str(CONFIGS / "mnist_cross_attention_resampler.toml"), settings)
    precision = replace(recipe.optimisation, precision=shipped.optimisation.precision)
    return replace(recipe, name=shipped.name, optimisation=precision)


def training_of(
    recipe: ResamplerRecipe | CrossAttentionRecipe, images: ImageSet, folder: Path | None
) -> tuple[Run, Compute]:
    """A run of a recipe, which writes nothing without a folder. images: with the targets of the densest recipe."""
    cross = isinstance(recipe, CrossAttentionRecipe)
    if cross or recipe.decoder_size == recipe.encoder_size:
        images = replace(images, targets=None)
    recipe = replace(recipe, model=replace(recipe.model, channels=images.images.shape[1]))
    torch.manual_seed(recipe.optimisation.seed)
    model = RESAMPLERS[recipe.architecture][1](recipe.model)
    loss = cross_attention_loss(recipe, model, images) if cross else resampler_loss(recipe, model, images, None)
    args = argparse.Namespace(dry_run=folder is None, track="none")
    run = run_of(args, recipe, loss, images, folder, model=asdict(recipe.model), data=recipe.data)
    return run, (cross_attention_step if cross else resampler_step)(recipe, run, images)


def step_seconds(recipe: ResamplerRecipe | CrossAttentionRecipe, images: ImageSet) -> float:
    """Processor time of a step, the mean of TIMED."""
    run, compute = training_of(recipe, images, None)
    run.update(compute)  # libraries set themselves up
    began = time.process_time()
    for _ in range(TIMED):
        run.update(compute)
    return (time.process_time() - began) / TIMED


def train(
    what: str, recipe: ResamplerRecipe | CrossAttentionRecipe, images: ImageSet, folder: Path, seconds: float
) -> int:
    """Trains a row, or goes on with it. → its steps, which print too."""
    state = load_state(folder)
    if state:
        steps = state.metadata["recipe"]["optimisation"]["phases"][0]["steps"]
    else:
        taken = step_seconds(recipe, images)
        steps = max(1, round(seconds / taken))
        print(f"{what}: {taken:.3f} s a step, {steps:,} steps", flush=True)
    phases = (replace(recipe.optimisation.phases[0], steps=steps),)
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, phases=phases))
    run, compute = training_of(recipe, images, folder)
    with progress_bar(total=steps, initial=run.step, title=what, unit="step") as bar:
        for progress in run.train(compute):
            bar.update()
            if progress.stopped:
                raise KeyboardInterrupt
    return steps


def figures(pipe: Pipeline, held: ImageSet, dense: int | None) -> list[float]:
    """PSNR of validation images from each of CELLS, and of the first at `dense` pixels a side from DENSE_CELLS."""
    found = []
    for cells in CELLS:
        parts = ((part_BCHW + 1) / 2 for part_BCHW in held.images.split(10))
        pairs = ((pipe.resample(pipe.encode(p, latent_size=cells), size=tuple(p.shape[2:])), p) for p in parts)
        found.append(psnr(mean_square(pairs)))
    if dense:
        places = [slice(start, start + 5) for start in range(0, min(DENSE, len(held)), 5)]
        truths = ((held.images[place], bring_to((held.targets[place] + 1) / 2, dense)) for place in places)
        pairs = (
            (pipe.resample(pipe.encode((seen + 1) / 2, latent_size=DENSE_CELLS), size=(dense, dense)), truth)
            for seen, truth in truths
        )
        found.append(psnr(mean_square(pairs)))
    return found


def resamplers(root: Path, data: Data, config: str, seconds: float, lines: list[str]) -> Iterator[Table]:
    rows, made = recipes(config, 1, lines), []
    shipped = rows["as shipped"]
    size, density = shipped.encoder_size, shipped.decoder_size
    options = {"size": size, "density": density, "glyphs": shipped.glyphs, "label_column": data.label_column}
    images = load_images(data.name, "train", **options)
    held = load_images(data.name, "validation", limit=HELD, **options)
    held = replace(held, images=held.images[:])
    dense = density // 2 if held.targets is not None else None
    columns = {"R2IR": "{}", "steps": "{:,}"} | {f"{size} from {name(cells)} (dB)": "{:.1f}" for cells in CELLS}
    columns |= {f"against targets at {dense} from {name(DENSE_CELLS)} (dB)": "{:.1f}"} if dense else {}
    columns["kFLOP a point"] = "{:.1f}"
    title = f"{seconds:g} s of processor time each; PSNR of {len(held.images)} validation images"
    for what, recipe in rows.items():
        folder = place(root, f"{shipped.name}-{seconds:g}", what)
        recipe = replace(recipe, data=data.name)
        steps = train(what, recipe, images, folder / "resampler", seconds)
        pipe = untrained(folder)
        made.append((what, steps, *figures(pipe, held, dense), cost(pipe, side=density) / 1e3))
        yield Table(title, columns, made)
