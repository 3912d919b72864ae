"""The last phase of a denoiser's training: pictures drawn through the sampler against real ones, where a picture counts
by what classifiers see in it. What a denoiser gets wrong on the way shows only at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Generator, Tensor, nn

from r2id.checkpoint import save_module
from r2id.condition import one_hot
from r2id.config import Defaults
from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.denoisers.output import DenoiserOutput
from r2id.position import Positions, grid_positions, ipe_sigma_of, training_pitch, window_of
from r2id.sampler import dpm_step
from r2id.schedule import x0_from
from train.data.buckets import Shape
from train.data.images import ImageSet
from train.evaluation.classifier import Classifier, fit, load_classifier, to_classifier_size
from train.evaluation.metrics import judge_features

if TYPE_CHECKING:
    from train.losses.denoiser import DenoiserLoss

SCALED = 500  # pictures whose mean distance is the unit of a critic's features


@dataclass(frozen=True)
class RolloutConfig:
    """How a drawn phase draws and judges. Guidance holds within the interval of the recipe's [defaults]."""

    critics: int = 2  # classifiers, none of them the one that evaluates
    epochs: int = 5  # of their training
    pictures: int = 240  # of a step, at most; as many of each label
    cells: int = 10240  # of a step, at most, unless two pictures a label have more
    steps: tuple[int, int] = (6, 10)  # of DPM-Solver++, drawn anew every step, from fewest to most
    guidance: tuple[float, float] = (1.5, 1.9)
    learned: tuple[float, float] = (0.3, 0.92)  # t of the calls that learn: those before give noise, those after detail
    real: int = 256  # real pictures a label that the drawn ones are compared with
    distill_weight: float = (
        10.0  # weight of the mean square of what the prediction has moved, for latents of a phase's `distill_cells`
    )
    misread: float = 0.3  # weight of what the critics' logits for the label lack to be 1 above all others


class Rollout(nn.Module):
    """Energy distance of drawn pictures to real ones of the same label, in the features of each critic; and a hinge on
    its logits, which is zero but for the few pictures that it reads wrong or nearly so."""

    def __init__(
        self, rollout: RolloutConfig, critics: Sequence[Classifier], images: Tensor, label_N: Tensor, defaults: Defaults
    ):
        """images: all training pictures (N, C, H, W) in [-1, 1], square, each with a label. defaults: of sampling, for
        the interval of guidance."""
        super().__init__()
        self.rollout, self.defaults, self.side = rollout, defaults, images.shape[-1]
        self.critics = nn.ModuleList(critic.cpu().eval().requires_grad_(False) for critic in critics)
        self.places = [(label_N == label).nonzero().flatten().cpu() for label in range(int(label_N.max()) + 1)]
        features = [judge_features(critic, to_classifier_size(images.cpu())) for critic in self.critics]
        self.scales = [F.pdist(feature_ND[:SCALED]).mean().item() for feature_ND in features]
        self.features = [feature_ND / scale for feature_ND, scale in zip(features, self.scales, strict=True)]

    def count(self, cells: tuple[int, int], parts: int = 1) -> int:
        """Pictures of a part of a step, as many of each label and two or more."""
        labels = len(self.places)
        most = min(self.rollout.pictures, self.rollout.cells // math.prod(cells))
        return max(2, most // (labels * parts)) * labels

    def forward(self, of: DenoiserLoss, shape: Shape, generator: Generator, count: int) -> tuple[Tensor, dict]:
        """→ the loss, and parts of it: the distance, and the share of pictures that the critics read as their label."""
        device = of.mean.device
        label_B = torch.arange(count, device=device) % len(self.places)
        image_BCHW = latent_BChw = self.draw(of, label_B, shape, generator)
        if of.resampler:
            image_BCHW = decode(of.resampler, latent_BChw, shape.aspect, self.side)
        image_BCHW, energy, misread, read = to_classifier_size(image_BCHW), 0.0, 0.0, 0.0
        for critic, real_ND, scale in zip(self.critics, self.features, self.scales, strict=True):
            feature_BD = critic.features(image_BCHW)
            logit_BL, own = critic.head(feature_BD), F.one_hot(label_B, len(self.places)).bool()
            lead_B = logit_BL[own] - logit_BL.masked_fill(own, -math.inf).amax(dim=1)
            misread, read = misread + F.relu(1 - lead_B).mean(), read + (lead_B > 0).float().mean()
            for label, places in enumerate(self.places):
                some = torch.randint(len(places), (self.rollout.real,), generator=generator, device=generator.device)
                real_MD = real_ND[places[some.cpu()]].to(device)
                energy = energy + energy_distance(feature_BD[label_B == label] / scale, real_MD) / len(self.places)
        energy, misread, read = (total / len(self.critics) for total in (energy, misread, read))
        return energy + self.rollout.misread * misread, {"energy": energy.detach(), "read": read, "images": count}

    def draw(self, of: DenoiserLoss, label_B: Tensor, shape: Shape, generator: Generator) -> Tensor:
        """Labels → latents (B, C, h, w) in [-1, 1], as `r2id.sampler.sample` makes them by "dpm++", with gradients."""
        how, model, cells, device = self.rollout, of.model, shape.cells, label_B.device
        on = {"generator": generator, "device": generator.device}
        steps = int(torch.randint(how.steps[0], how.steps[1] + 1, (), **on))
        guidance = torch.empty((), device=generator.device).uniform_(*how.guidance, generator=generator).item()
        same = partial(of.schedule.time_at_equal_noise, cells=self.defaults.latent_size, at=cells)
        start, end = map(same, self.defaults.guidance_interval)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alpha_bars = of.schedule.alpha_bar(times, cells=cells)
        path = alpha_bars.tolist()
        ipe_sigma = ipe_sigma_of(shape.aspect, training_pitch(shape.aspect, of.jitter_grid), model.config.jitter)
        positions = replace(grid_positions(cells, shape.aspect), ipe_sigma=ipe_sigma).to(device)
        hot_BL = one_hot(label_B, model.condition.num_classes)
        x_BChw = torch.randn(len(label_B), len(of.mean), *cells, **on).to(device)
        x0_BChw = recurrent_state = null_recurrent_state = None
        for i, t in enumerate(times[:-1].tolist()):
            learns = torch.is_grad_enabled() and how.learned[0] <= t <= how.learned[1]
            output = call(of.model, x_BChw, path[i], positions, hot_BL, recurrent_state, learns=learns)
            prediction_BChw, recurrent_state = output.prediction[0], output.recurrent_state
            if start <= t <= end:  # the null condition learns nothing: what the other one does is enough
                output = call(of.model, x_BChw, path[i], positions, None, null_recurrent_state, learns=False)
                null_BChw, null_recurrent_state = output.prediction[0], output.recurrent_state
                prediction_BChw = null_BChw + guidance * (prediction_BChw - null_BChw)
            previous_BChw, x0_BChw = (
                x0_BChw,
                x0_from(model.config.prediction_type, prediction_BChw, x_BChw, alpha_bars[i]),
            )
            x0_BChw = ((x0_BChw * of.std + of.mean).clamp(-1, 1) - of.mean) / of.std
            if i + 1 < steps:
                before = path[i - 1] if i else None
                x_BChw = dpm_step(x_BChw, x0_BChw, previous_BChw, path[i], path[i + 1], before)
        return x0_BChw * of.std + of.mean


def trained_critics(rollout: RolloutConfig, folder: Path, train: ImageSet, validation: ImageSet) -> list[Classifier]:
    """The classifiers of a run: seeds 1, 2, …, trained where the folder has them not yet. Raises ValueError for
    pictures without labels."""
    train, validation = (replace(part, images=to_classifier_size(part.images)) for part in (train, validation))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = [folder / f"{seed}.safetensors" for seed in range(1, rollout.critics + 1)]
    with PartialState().main_process_first():
        for seed, path in enumerate(paths, 1):
            if not path.exists():
                print(f"{path}: a critic for the drawn phase")
                made = fit(train, validation, epochs=rollout.epochs, device=device, seed=seed)
                save_module(made, path)
        return [load_classifier(path) for path in paths]


def call(
    model: nn.Module,
    x_BChw: Tensor,
    alpha_bar: float,
    positions: Positions,
    hot_BL: Tensor | None,
    recurrent_state: Any,
    *,
    learns: bool,
) -> DenoiserOutput:
    """The model under one condition, weights of labels (B, L) or None for the null condition, with gradients or not."""
    with torch.set_grad_enabled(learns):
        if not learns:
            x_BChw, recurrent_state = x_BChw.detach(), None if recurrent_state is None else recurrent_state.detach()
        conditions = (None if hot_BL is None else model.condition(hot_BL),)
        return model(x_BChw, x_BChw.new_full((len(x_BChw),), alpha_bar), positions, conditions, recurrent_state)


def decode(resampler: CrossAttentionR2IR, latent_BChw: Tensor, aspect: float, side: int) -> Tensor:
    """Latents → the central square of their frames, (B, C, side, side) in [-1, 1], with gradients."""
    device = latent_BChw.device
    context = resampler.prepare(latent_BChw, grid_positions(tuple(latent_BChw.shape[2:]), aspect).to(device))
    window = window_of((side, side), aspect=aspect, fit="cover")
    ipe_sigma = ipe_sigma_of(aspect, training_pitch(aspect, side), resampler.config.ipe_sigma)
    pixels = window.positions(range(side), range(side), ipe_sigma=ipe_sigma).to(device)
    colour_BNC = resampler.decode(context, pixels).clamp(-1, 1)
    return colour_BNC.transpose(1, 2).unflatten(2, (side, side))


def energy_distance(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'|, unbiased: 0 for two sets of one distribution, and only for those (Székely &
    Rizzo 2013). N and M are 2 or more. The middle term keeps what is drawn apart."""
    return 2 * torch.cdist(a_ND, b_MD).mean() - F.pdist(a_ND).mean() - F.pdist(b_MD).mean()
