"""Fits R2IR's linear codec alone before all else is trained, which takes a minute and spares hours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from r2id.cross_attention_basis import decode_coefficients, local_coefficients
from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.position import Positions
from train.data.buckets import ShapeSampler
from train.data.images import ImageSet
from train.engine.cli import draw
from train.engine.loop import Run
from train.engine.progress import progress_bar
from train.losses.cross_attention import CrossAttentionLoss

RATE = 2e-2
POINTS = 256  # of each image, that are compared


class LinearCodecAlone(nn.Module):
    """The linear codec of an R2IR as a resampler of its own."""

    def __init__(self, model: CrossAttentionR2IR):
        super().__init__()
        self.config, self.basis, self.path = model.config, model.basis, model.linear_codec

    def encode(self, colour_BNC: Tensor, pixels: Positions, cells: Positions) -> Tensor:
        local_BMF = local_coefficients(colour_BNC, pixels, cells.grid, self.basis)
        return self.path.encode(local_BMF, cells).transpose(1, 2).unflatten(2, cells.grid)

    def context(self, latent_BChw: Tensor, cells: Positions) -> Tensor:
        return self.path.prepare(latent_BChw.flatten(2).transpose(1, 2), cells)

    def decode(self, coefficient_BhwCij: Tensor, pixels: Positions) -> Tensor:
        return decode_coefficients(coefficient_BhwCij, pixels, self.basis)


def fit_linear_codec(
    run: Run, loss: CrossAttentionLoss, train: ImageSet, shape_sampler: ShapeSampler, *, size: int | None, steps: int
) -> float:
    """Trains the linear codec that is `loss.model` in place, the same in every process. size: see `ShapeSampler.draw`.
    → mean square error of the last step."""
    seed, device = run.optimisation.seed, run.accelerator.device
    loss = loss.to(device)
    optimiser = torch.optim.Adam(loss.model.parameters(), betas=(0.9, 0.95))
    bar = progress_bar(range(steps), "linear codec", unit="step", disable=not run.accelerator.is_main_process)
    for step in bar:
        optimiser.param_groups[0]["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        shape, rng = draw(shape_sampler, seed, step, size=size, device=device)
        value, metrics = loss(train.images[run.batch(step)], shape, 0, POINTS, rng)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        bar.set_postfix({"mse": f"{metrics['mse'].item():.4f}"}, refresh=False)
    return metrics["mse"].item()
