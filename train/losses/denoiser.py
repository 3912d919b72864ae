"""What a denoiser minimises: the error of its predictions on noisy latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import one_hot
from r2id.position import Positions, batched, grid_positions, jitter, points, training_pitch
from r2id.schedule import Schedule, noisy, target
from train.losses.latent_space import CleanLatents

BLENDED = 0.5  # share of the images whose label is given as a blend, where labels have an order


class DenoiserLoss(nn.Module):
    """Mean square error of what the model predicts (noise, v or x0), at every scale that it predicts."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        label_dropout: float,
        jitter_grid: int,
        warm_start: float = 0.0,
        noise_per_image: int = 1,
        times: str = "uniform",
        order: Sequence[int] = (),
    ):
        """jitter_grid: cells on the short side of the training grid whose pitch the model's jitter is measured in.
        warm_start: share of the steps that begin from the recurrent state of a pass without gradient.
        noise_per_image: times and noises for each latent of a step.
        times: "uniform" in (0, 1), or "logit-normal": the logistic function of a standard normal, which is mostly in
        the middle, where shapes are decided (Esser et al. 2024, section 3.1).
        order: labels along a scale, see `blended`."""
        super().__init__()
        self.model, self.schedule, self.label_dropout = model, schedule, label_dropout
        self.jitter_grid, self.warm_start, self.noise_per_image = jitter_grid, warm_start, noise_per_image
        self.times, self.order = times, order

    def forward(
        self,
        batches: Sequence[CleanLatents],
        label_B: Tensor,
        generator: torch.Generator,
        *,
        teacher: nn.Module | None = None,
        guide_only: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clean latents of every size of a step and the labels of all (-1: none) → loss, parts of it.

        Times are stratified over latents and noises together, and those of one latent lie far apart. teacher: a model
        whose prediction is the target, in place of what the noise says. guide_only: of the model's guide, not its own.
        """
        model = self.model.guide if guide_only else self.model
        images = len(label_B)
        count = self.noise_per_image * images
        within = torch.rand(count, generator=generator, device=generator.device)
        within = within.to("cpu" if within.device.type == "mps" else within.device, torch.float64)  # which MPS lacks
        t_RB = ((torch.arange(count, device=within.device) + within) / count).view(self.noise_per_image, -1)
        if self.times == "logit-normal":
            t_RB = torch.sigmoid(torch.special.ndtri(t_RB))
        total, mse = 0.0, 0.0
        for latents in batches:
            places = list(latents.places)
            loss, error = self.of_size(latents, label_B[places], t_RB[:, places], generator, model, teacher)
            total, mse = total + loss * len(places) / images, mse + error.detach() * len(places) / images
        return total, {"mse": mse}

    def of_size(
        self,
        latents: CleanLatents,
        label_B: Tensor,
        t_RB: Tensor,
        generator: torch.Generator,
        model: nn.Module,
        teacher: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and mean square error of latents of one size. Rows are all latents with their first noise, then all with
        their second."""
        repeats, device, rng_device = self.noise_per_image, label_B.device, generator.device
        t_B, label_B = t_RB.flatten(), label_B.repeat(repeats)
        x0_BChw = latents.x0_BChw.repeat(repeats, 1, 1, 1)
        alpha_bar_B = self.schedule.alpha_bar(t_B, cells=latents.cells)
        noise_BChw = torch.randn(x0_BChw.shape, generator=generator, device=rng_device).to(device)
        dropped_B = (torch.rand(len(t_B), generator=generator, device=rng_device) < self.label_dropout).to(device)
        weights_BL = one_hot(label_B, model.condition.num_classes, dropped_B=dropped_B)
        if self.order and model.condition.num_classes:
            weights_BL = blended(weights_BL, self.order, generator)
        tokens_BND = model.condition(weights_BL)
        positions = self.positions(latents, generator).repeat(repeats)
        noisy_BChw = noisy(x0_BChw, noise_BChw, alpha_bar_B)
        inputs = noisy_BChw, alpha_bar_B.to(device), positions, (tokens_BND,)
        recurrent_state = None
        if self.warm_start and torch.rand((), generator=generator, device=rng_device) < self.warm_start:
            with torch.no_grad():
                recurrent_state = model(*inputs).recurrent_state
        output = model(*inputs, recurrent_state)
        target_BChw = target(model.config.prediction_type, x0_BChw, noise_BChw, alpha_bar_B)
        if teacher:
            with torch.no_grad():
                target_BChw = teacher(*inputs, recurrent_state).prediction[0]
        error = F.mse_loss(output.prediction[0], target_BChw)
        coarser = (coarse_error(prediction_KBChw[0], target_BChw) for prediction_KBChw in output.pyramid)
        return error + sum(coarser), error

    def positions(self, latents: CleanLatents, generator: torch.Generator) -> Positions:
        """The cells' centres, each moved by the model's jitter; as published, what is in a cell stays the same."""
        sigma = self.model.config.jitter
        if not sigma:
            return latents.positions
        moved = []
        for aspect, count in latents.frames:
            centre_BM2 = grid_positions(latents.cells, aspect).absolute.to(generator.device).expand(count, -1, -1)
            moved_BM2 = jitter(centre_BM2, training_pitch(aspect, self.jitter_grid), sigma, generator)
            moved.append(points(moved_BM2, aspect))
        return batched(moved, [count for _, count in latents.frames]).to(latents.x0_BChw.device)


def coarse_error(coarse_BChw: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean square at a scale coarser by k, times 1 / k². The target is summed over k × k and divided by k: so noise
    keeps unit variance (Liu et al. 2024)."""
    k = target_BCHW.shape[-1] // coarse_BChw.shape[-1]
    return F.mse_loss(coarse_BChw, F.avg_pool2d(target_BCHW, k) * k) / k**2


def blended(weights_BL: Tensor, order: Sequence[int], generator: torch.Generator) -> Tensor:
    """One-hot labels, of which a share becomes blends: a label between two others on a scale is given as their mixture,
    in the ratio of its distances from them. So a blend of left and right comes to mean ahead, not both. order: the
    labels along that scale, at equal distances; rows of other labels, and of none, stay as they are."""
    device, last = generator.device, len(order) - 1
    on_scale_BN = weights_BL[:, list(order)].to(device)
    rank_B = on_scale_BN.argmax(dim=1)
    lower_B, upper_B = (torch.rand(len(rank_B), generator=generator, device=device) for _ in range(2))
    lower_B = (lower_B * (rank_B + 1)).long()
    upper_B = last - (upper_B * (last - rank_B + 1)).long()
    share_B = (rank_B - lower_B) / (upper_B - lower_B).clamp(min=1)  # of the upper label
    mixed_BN = torch.zeros_like(on_scale_BN).scatter_add_(1, lower_B[:, None], 1 - share_B[:, None])
    mixed_BN = mixed_BN.scatter_add_(1, upper_B[:, None], share_B[:, None])
    chosen_B = torch.rand(len(rank_B), generator=generator, device=device) < BLENDED
    chosen_B &= on_scale_BN.any(dim=1)
    mixed_BL = weights_BL.clone()
    mixed_BL[:, list(order)] = torch.where(chosen_B[:, None], mixed_BN, on_scale_BN).to(weights_BL.device)
    return mixed_BL


class DenoiserLosses(nn.Module):
    """Losses of one denoiser as one module, which data-parallel training wraps: a call names the one it wants."""

    def __init__(self, model: nn.Module, **losses: nn.Module):
        super().__init__()
        self.model, self.losses = model, nn.ModuleDict(losses)

    def forward(self, which: str, *inputs, **options) -> tuple[Tensor, dict[str, Tensor]]:
        return self.losses[which](*inputs, **options)
