"""What a denoiser minimises: the error of its prediction on noisy latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import one_hot
from r2id.interpolation import resize
from r2id.position import Positions, batched, grid_positions, jitter, points, training_pitch
from r2id.resampler import R2IR
from r2id.schedule import Schedule, noisy, target
from train.data.buckets import Bucket, NativeAspect, Shape
from train.losses.resampler import encode, joined, mean_of
from train.losses.rollout import Rollout


class DenoiserLoss(nn.Module):
    """Mean square of the objective at every scale the model predicts, on latents of whole pictures: encoded by a frozen
    resampler, or without one (pixel space) the pictures themselves at the latent's size."""

    def __init__(
        self,
        model: nn.Module,
        resampler: R2IR | None,
        *,
        schedule: Schedule,
        background: tuple[float, ...],
        latent_mean: tuple[float, ...],
        latent_std: tuple[float, ...],
        label_dropout: float,
        jitter_grid: int,
        warm_start: float = 0.0,
        noise_per_image: int = 1,
        rollout: Rollout | None = None,
    ):
        """jitter_grid: cells on the short side of the training grid whose pitch the model's jitter is measured in.
        warm_start: share of the steps that begin from the carry of a pass without gradient.
        noise_per_image: of time and noise for each picture of a step, which is encoded once.
        drawn: what drawn phases minimise."""
        super().__init__()
        self.model, self.schedule, self.label_dropout = model, schedule, label_dropout
        self.jitter_grid, self.warm_start, self.noise_per_image, self.rollout = (
            jitter_grid,
            warm_start,
            noise_per_image,
            rollout,
        )
        self.resampler = resampler and resampler.requires_grad_(False).eval()
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)
        self.register_buffer("mean", torch.tensor(latent_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(latent_std).view(-1, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor | list[Tensor],
        label_B: Tensor,
        shape: Shape | NativeAspect,
        generator: torch.Generator,
        rollout: int = 0,
        teacher: nn.Module | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [-1, 1], labels (-1: none) → loss, parts of it. Times are stratified over all draws, and
        those of one picture lie far apart. drawn: as many pictures
        are drawn instead, and judged. teacher: another such model, whose prediction is what is wanted."""
        if rollout:
            return self.rollout(self, shape, generator, rollout)
        count, buckets = self.noise_per_image * len(images), shape.buckets(images, self.background)
        within = torch.rand(count, generator=generator, device=generator.device)
        within = within.to("cpu" if within.device.type == "mps" else within.device, torch.float64)  # which MPS lacks
        t_RB = ((torch.arange(count, device=within.device) + within) / count).view(self.noise_per_image, -1)
        parts = (self.of(g, label_B[g.places], t_RB[:, g.places], generator, teacher) for g in buckets)
        return mean_of(buckets, parts)

    def of(
        self,
        bucket: Bucket,
        label_B: Tensor,
        t_RB: Tensor,
        generator: torch.Generator,
        teacher: nn.Module | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the pictures of a group, which have one shape of latents; rows are their first draws, then the second."""
        t_B, label_B, device, drawn_on = (
            t_RB.flatten(),
            label_B.repeat(self.noise_per_image),
            label_B.device,
            generator.device,
        )
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            x0_BChw = joined([self.latents(canvas_BCHW, bucket.cells) for canvas_BCHW in bucket.canvases])
            x0_BChw = x0_BChw.repeat(self.noise_per_image, 1, 1, 1)
        alpha_bar_B = self.schedule.alpha_bar(t_B, cells=bucket.cells)
        noise_BChw = torch.randn(x0_BChw.shape, generator=generator, device=drawn_on).to(device)
        dropped_B = (torch.rand(len(t_B), generator=generator, device=drawn_on) < self.label_dropout).to(device)
        tokens_BND = self.model.condition(one_hot(label_B, self.model.condition.num_classes, dropped_B=dropped_B))
        positions = self.positions(bucket, generator).repeat(self.noise_per_image)
        noisy_BChw = noisy(x0_BChw, noise_BChw, alpha_bar_B)
        inputs = noisy_BChw, alpha_bar_B.to(device), positions, (tokens_BND,)
        recurrent_state = None
        if self.warm_start and torch.rand((), generator=generator, device=drawn_on) < self.warm_start:
            with torch.no_grad():
                recurrent_state = self.model(*inputs).recurrent_state
        output = self.model(*inputs, recurrent_state)
        wanted_BChw = target(self.model.config.prediction_type, x0_BChw, noise_BChw, alpha_bar_B)
        if teacher:
            with torch.no_grad():
                wanted_BChw = teacher(*inputs, recurrent_state).prediction[0]
        error = F.mse_loss(output.prediction[0], wanted_BChw)
        coarser = (coarse_error(prediction_KBChw[0], wanted_BChw) for prediction_KBChw in output.pyramid)
        return error + sum(coarser), {"mse": error.detach()}

    def latents(self, canvas_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
        """Pictures that fill the frame → latents (B, C, h, w) as the model sees them, clean."""
        latent_BChw = encode(self.resampler, canvas_BCHW, cells) if self.resampler else resize(canvas_BCHW, cells)
        return (latent_BChw - self.mean) / self.std

    def positions(self, bucket: Bucket, generator: torch.Generator) -> Positions:
        """The cells' centres, each moved by the model's jitter; as published, what is in a cell stays the same."""
        sigma = self.model.config.jitter
        if not sigma:
            return bucket.positions
        moved = []
        for aspect, count in zip(bucket.aspects, bucket.counts, strict=True):
            absolute_BM2 = grid_positions(bucket.cells, aspect).absolute.to(generator.device).expand(count, -1, -1)
            moved.append(
                points(jitter(absolute_BM2, training_pitch(aspect, self.jitter_grid), sigma, generator), aspect)
            )
        return batched(moved, bucket.counts).to(bucket.canvases[0].device)


def coarse_error(coarse_BChw: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean square at a scale coarser by k, times 1 / k². The target is summed over k × k and divided by k: so noise
    keeps unit variance (Liu et al. 2024)."""
    k = wanted_BCHW.shape[-1] // coarse_BChw.shape[-1]
    return F.mse_loss(coarse_BChw, F.avg_pool2d(wanted_BCHW, k) * k) / k**2
