"""What the same images cost by other means, in the same process: the published configuration, built here with random
weights and decoded as published (all pixels at once, nothing kept between calls); diffusion in pixel space at the
output's size; bicubic enlargement of the image of the training size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r2id.denoisers import DENOISERS
from r2id.interpolation import resize
from r2id.pipeline import Latent, Pipeline
from r2id.resamplers import RESAMPLERS, architecture_of
from train.engine.flops import count_flops
from train.engine.machine import CPU, median_seconds, memory_of
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, read_recipe
from train.evaluation.tables import Table

PIXELS = "weights/mnist-s2id"
PIXEL_SIDES = (32, 64)  # what it can do at an affordable cost
LARGEST = 256  # side that the published configuration decodes: its memory grows with the pixels
STEPS = 8  # of a diffusion that is timed
CELLS = (8, 8)  # of the published configuration's latents


def published(pipe: Pipeline, root: Path) -> Pipeline:
    """The published configuration for the labels and channels of `pipe`, weights at random."""
    first = read_recipe(CrossAttentionRecipe, root / "train/configs/published_resampler.toml")
    second = read_recipe(DenoiserRecipe, root / "train/configs/published_r2id.toml")
    resampler = replace(first.model, channels=pipe.config.channels)
    channels = resampler.latent_channels
    denoiser = replace(second.model, latent_channels=channels, num_classes=len(pipe.labels))
    config = replace(
        pipe.config,
        architecture=second.architecture,
        size_multiple=denoiser.size_multiple,
        schedule=second.schedule,
        defaults=replace(second.defaults, latent_size=CELLS),
        latent_mean=(0.0,) * channels,
        latent_std=(1.0,) * channels,
        trained_cells=second.shape_sampler.cells,
        resampler=resampler,
        denoiser=denoiser,
    )
    models = RESAMPLERS[architecture_of(resampler)][1](resampler), DENOISERS[second.architecture][1](denoiser)
    return Pipeline(config, *models, device=pipe.device)


@torch.no_grad()
def decode_whole(pipe: Pipeline, latent: Latent, side: int) -> Tensor:
    """Every pixel at once, and all that the latent gives made anew."""
    return pipe.resampler.decode_image(latent.tensor.to(pipe.resampler_device), size=(side, side)).cpu()


def step_seconds(pipe: Pipeline, size: tuple[int, int]) -> float:
    """Of a step of one image, on average under the model's own guidance, which may not act at all noise levels."""
    label = 0 if pipe.labels else None
    return median_seconds(lambda: pipe.diffuse(label, latent_size=size, steps=STEPS, seed=0), pipe.device) / STEPS


def baselines(pipe: Pipeline, sizes: tuple[int, ...], root: Path) -> Iterator[Table]:
    """Nothing for a model in pixel space, which is a baseline itself."""
    if pipe.resampler is None:
        return
    other, device = published(pipe, root), pipe.resampler_device
    ours, theirs = (
        Latent(torch.randn(1, p.config.latent_channels, *p.config.defaults.latent_size).tanh(), 1.0)
        for p in (pipe, other)
    )
    trained = pipe.config.encoder_size
    small = torch.rand(1, pipe.config.channels, trained, trained)
    pixels, decoded = [], {}
    for side in sorted(side for side in {*PIXEL_SIDES, *sizes} if trained <= side <= LARGEST):
        runs = (
            lambda side=side: pipe.resample(ours, size=(side, side)),
            lambda side=side: decode_whole(other, theirs, side),
            lambda side=side: resize(small, (side, side)),
        )
        memory = memory_of(runs[1], device)
        decoded[side] = [median_seconds(run, d) for run, d in zip(runs, (device, device, CPU), strict=True)]
        with count_flops() as counter:
            runs[1]()
        own, whole, bicubic = (1e6 * seconds / side**2 for seconds in decoded[side])
        flops = counter.get_total_flops() / side**2 / 1e6
        pixels.append((side, own, whole, whole / own, flops, memory / side**2 / 1e3, bicubic, own / bicubic))
    columns = {"side": "{}", "ours, µs": "{:.2f}", "published, µs": "{:.2f}", "published / ours": "{:.1f}"}
    columns |= {"published, MFLOP": "{:.2f}", "published, KB": "{:.1f}"}
    columns |= {"bicubic, µs": "{:.4f}", "ours / bicubic": "{:.0f}"}
    yield Table("Cost of a pixel", columns, pixels)

    steps = [step_seconds(p, p.config.defaults.latent_size) for p in (pipe, other)]
    diffused = [p.config.defaults.steps * seconds for p, seconds in zip((pipe, other), steps, strict=True)]
    rows = [
        (name, p.config.defaults.steps, 1e3 * step, 1e3 * every, every / diffused[0])
        for name, p, step, every in zip(("ours", "published"), (pipe, other), steps, diffused, strict=True)
    ]
    columns = {"system": "{}", "steps": "{}", "ms a step": "{:.1f}", "ms for all": "{:.0f}", "against ours": "{:.1f}"}
    yield Table("Diffusing one latent", columns, rows)

    enlarged = diffused[0] + median_seconds(lambda: pipe.resample(ours, size=small.shape[2:]), device)
    space = Pipeline.from_pretrained(root / PIXELS, device=pipe.device) if (root / PIXELS).is_dir() else None
    rows = []
    for side, (own, whole, bicubic) in decoded.items():
        mine, seconds = diffused[0] + own, [diffused[1] + whole, None, enlarged + bicubic]
        if space and side in PIXEL_SIDES:
            seconds[1] = space.config.defaults.steps * step_seconds(space, (side, side))
        shown = (f"{1e3 * s:.0f} ({s / mine:.1f} ×)" if s else "" for s in seconds)
        rows.append((side, f"{1e3 * mine:.0f}", *shown))
    names = ("side", "ours, ms", "published, ms", "pixel space, ms", "ours, then bicubic, ms")
    yield Table("Cost of an image, diffused once and shown; × against ours", dict.fromkeys(names, "{}"), rows)
