"""What the same pictures cost by other ways, in the same process: the published configuration, built here with random
weights and decoded as published (all pixels at once, nothing kept between calls); diffusion in pixel space at the
output's size; bicubic enlargement of the picture of the training size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.denoisers import DENOISERS
from r2id.interpolation import resize
from r2id.pipeline import Latent, Pipeline
from r2id.position import grid_positions, ipe_sigma_of, training_pitch, window_of
from train.engine.flops import count_flops
from train.engine.machine import CPU, median_seconds, memory_of, square_rate
from train.engine.recipe import DenoiserRecipe, ResamplerRecipe, read_recipe
from train.evaluation.tables import Table

PIXELS = "weights/mnist-s2id"
PIXEL_SIDES = (32, 64)  # what it can do at an affordable cost
LARGEST = 256  # side that the published configuration decodes: its memory grows with the pixels
STEPS = 8  # of a diffusion that is timed
CELLS = (8, 8)  # on which the figures below were taken
# Of the original program on two cores whose matrix products ran at 200 GFLOP/s: what our build of it must not exceed.
ORIGINAL_RATE, ORIGINAL_PIXEL, ORIGINAL_STEP = 200e9, 59e-6, 73e-3


def published(pipe: Pipeline, root: Path) -> Pipeline:
    """The published configuration for the labels and channels of `pipe`, weights at random."""
    first = read_recipe(ResamplerRecipe, root / "train/configs/published_resampler.toml")
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
    return Pipeline(
        config, CrossAttentionR2IR(resampler), DENOISERS[second.architecture][1](denoiser), device=pipe.device
    )


@torch.no_grad()
def decode_whole(pipe: Pipeline, latent: Latent, side: int) -> Tensor:
    """Every pixel at once, and all that the latent gives made anew."""
    ipe_sigma = ipe_sigma_of(1.0, training_pitch(1.0, pipe.config.encoder_size), pipe.config.resampler.ipe_sigma)
    window, device = window_of((side, side), aspect=1.0, fit="contain"), pipe.resampler_device
    context = pipe.resampler.prepare(latent.tensor.to(device), grid_positions(latent.size, 1.0).to(device))
    return pipe.resampler.decode(
        context, window.positions(range(side), range(side), ipe_sigma=ipe_sigma).to(device)
    ).cpu()


def step_seconds(pipe: Pipeline, size: tuple[int, int]) -> float:
    """Of a step of one picture, on average under the model's own guidance, which may not act at all noise levels."""
    label = 0 if pipe.labels else None
    return median_seconds(lambda: pipe.diffuse(label, latent_size=size, steps=STEPS, seed=0), pipe.device) / STEPS


def alternatives(pipe: Pipeline, sizes: tuple[int, ...], root: Path) -> Iterator[Table]:
    """Nothing for a model in pixel space, which is an alternative itself."""
    if pipe.resampler is None:
        return
    other, device = published(pipe, root), pipe.resampler_device
    ours, theirs = (
        Latent(torch.randn(1, p.config.latent_channels, *p.config.defaults.latent_size).tanh(), 1.0)
        for p in (pipe, other)
    )
    small = torch.rand(1, pipe.config.channels, *(pipe.config.encoder_size,) * 2)
    pixels, decoded = [], {}
    for side in sorted(side for side in {*PIXEL_SIDES, *sizes} if pipe.config.encoder_size <= side <= LARGEST):
        runs = (
            lambda side=side: pipe.resample(ours, size=(side, side)),
            lambda side=side: decode_whole(other, theirs, side),
            lambda side=side: resize(small, (side, side)),
        )
        context = memory_of(runs[1], device)
        rate = square_rate(device)
        decoded[side] = [median_seconds(run, d) for run, d in zip(runs, (device, device, CPU), strict=True)]
        with count_flops() as counter:
            runs[1]()
        own, whole, bicubic = (seconds / side**2 for seconds in decoded[side])
        scaled = 1e6 * whole * rate / ORIGINAL_RATE
        mega = counter.get_total_flops() / side**2 / 1e6
        pixels.append((side, *(1e6 * v for v in (own, whole)), whole / own, mega, context / side**2 / 1e3, scaled))
        pixels[-1] += (1e6 * bicubic, own / bicubic)
    columns = {"side": "{}", "ours, µs": "{:.2f}", "published, µs": "{:.2f}", "published / ours": "{:.1f}"}
    columns |= {"published, MFLOP": "{:.2f}", "published, KB": "{:.1f}"}
    columns |= {f"published at {ORIGINAL_RATE / 1e9:.0f} GFLOP/s, µs": "{:.1f}"}
    columns |= {"bicubic, µs": "{:.4f}", "ours / bicubic": "{:.0f}"}
    yield Table(f"Cost of a pixel; the original took {1e6 * ORIGINAL_PIXEL:.0f} µs", columns, pixels)

    scale = square_rate(pipe.device) / ORIGINAL_RATE
    steps = [step_seconds(p, p.config.defaults.latent_size) for p in (pipe, other)]
    diffused = [p.config.defaults.steps * seconds for p, seconds in zip((pipe, other), steps, strict=True)]
    rows = [
        (name, p.config.defaults.steps, 1e3 * step, 1e3 * all_steps, all_steps / diffused[0], 1e3 * step * scale)
        for name, p, step, all_steps in zip(("ours", "published"), (pipe, other), steps, diffused, strict=True)
    ]
    columns = {"system": "{}", "steps": "{}", "ms a step": "{:.1f}", "ms for all": "{:.0f}", "against ours": "{:.1f}"}
    columns |= {f"ms a step at {ORIGINAL_RATE / 1e9:.0f} GFLOP/s": "{:.1f}"}
    yield Table(f"Diffusing one latent; the original took {1e3 * ORIGINAL_STEP:.0f} ms a step", columns, rows)

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
    yield Table("Cost of a picture, diffused once and shown; × against ours", dict.fromkeys(names, "{}"), rows)
