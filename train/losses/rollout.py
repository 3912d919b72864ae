"""The last phases of a denoiser's training: images generated through the sampler against real ones, by what classifiers
see in them. What a denoiser gets wrong on the way shows only at its end.

The critics have the architecture and the training data of the judge that evaluates, from other seeds. So a figure of
that judge for a model trained this way flatters it: reports and model cards say so beside the figures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Generator, Tensor, nn

from r2id.checkpoint import load_into, save_module
from r2id.condition import one_hot
from r2id.config import Defaults
from r2id.denoisers.output import DenoiserOutput
from r2id.position import Positions, grid_positions, ipe_sigma_of, training_pitch
from r2id.sampler import sample
from train.data.buckets import Shape
from train.data.images import ImageSet
from train.engine.recipe import RolloutConfig
from train.evaluation.classifier import Classifier, fit, load_classifier, to_classifier_size
from train.evaluation.metrics import judge_features
from train.losses.latent_space import LatentSpace

SCALED = 500  # images whose mean distance is the unit of a critic's features


class RolloutLoss(nn.Module):
    """Energy distance of generated images to real ones of the same label, in the features of each critic; and a hinge
    on its logits, which is zero but for the few images that it reads wrong or nearly so."""

    def __init__(
        self,
        model: nn.Module,
        space: LatentSpace,
        config: RolloutConfig,
        critics: Sequence[Classifier],
        images_NCHW: Tensor,
        label_N: Tensor,
        *,
        defaults: Defaults,
        jitter_grid: int,
    ):
        """images_NCHW: all training images in [-1, 1], square, each with a label. defaults: of sampling, for the
        interval of guidance. jitter_grid: see `DenoiserLoss`."""
        super().__init__()
        self.model, self.space, self.config = model, space, config
        self.defaults, self.jitter_grid, self.side = defaults, jitter_grid, images_NCHW.shape[-1]
        self.critics = nn.ModuleList(critic.cpu().eval().requires_grad_(False) for critic in critics)
        self.places = [(label_N == label).nonzero().flatten().cpu() for label in range(int(label_N.max()) + 1)]
        features = [judge_features(critic, to_classifier_size(images_NCHW.cpu())) for critic in self.critics]
        self.scales = [F.pdist(feature_ND[:SCALED]).mean().item() for feature_ND in features]
        self.features = [feature_ND / scale for feature_ND, scale in zip(features, self.scales, strict=True)]

    def count(self, cells: tuple[int, int], parts: int = 1) -> int:
        """Images of a part of a step: as many of each label, and two or more."""
        labels = len(self.places)
        most = min(self.config.images, self.config.cells // math.prod(cells))
        return max(2, most // (labels * parts)) * labels

    def forward(self, shape: Shape, generator: Generator, count: int) -> tuple[Tensor, dict]:
        """Generates `count` images → the loss, and parts of it: the energy distance, and the share of images that the
        critics read as their label."""
        device = self.space.mean.device
        label_B = torch.arange(count, device=device) % len(self.places)
        x0_BChw = self.generate(label_B, shape, generator)
        image_BCHW = to_classifier_size(self.space.decode(x0_BChw, aspect=shape.aspect, side=self.side))
        energy, hinge, read = 0.0, 0.0, 0.0
        for critic, real_ND, scale in zip(self.critics, self.features, self.scales, strict=True):
            feature_BD = critic.features(image_BCHW)
            logit_BL, own = critic.head(feature_BD), F.one_hot(label_B, len(self.places)).bool()
            lead_B = logit_BL[own] - logit_BL.masked_fill(own, -math.inf).amax(dim=1)
            hinge, read = hinge + F.relu(1 - lead_B).mean(), read + (lead_B > 0).float().mean()
            for label, places in enumerate(self.places):
                some = torch.randint(len(places), (self.config.real,), generator=generator, device=generator.device)
                real_MD = real_ND[places[some.cpu()]].to(device)
                energy = energy + energy_distance(feature_BD[label_B == label] / scale, real_MD) / len(self.places)
        energy, hinge, read = (total / len(self.critics) for total in (energy, hinge, read))
        metrics = {"energy": energy.detach(), "read by critics": read, "images": count}
        return energy + self.config.hinge_weight * hinge, metrics

    def generate(self, label_B: Tensor, shape: Shape, generator: Generator) -> Tensor:
        """Labels → clean latents (B, c, h, w), by the sampler that serves them, with gradients."""
        config, space, cells, device = self.config, self.space, shape.cells, label_B.device
        on = {"generator": generator, "device": generator.device}
        steps = int(torch.randint(config.steps[0], config.steps[1] + 1, (), **on))
        guidance = torch.empty((), device=generator.device).uniform_(*config.guidance, generator=generator).item()
        noise_BChw = torch.randn(len(label_B), space.channels, *cells, **on).to(device)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alpha_bar_of = partial(space.schedule.alpha_bar, cells=cells)
        late, early = alpha_bar_of(torch.tensor(config.learned, dtype=torch.float64)).tolist()
        same_noise = partial(space.schedule.time_at_equal_noise, cells=self.defaults.latent_size, at=cells)
        sigma = ipe_sigma_of(shape.aspect, training_pitch(shape.aspect, self.jitter_grid), self.model.config.jitter)
        *_, last = sample(
            LearningCalls(self.model, learned=(early - 1e-6, late + 1e-6)),
            noise_BChw,
            positions=replace(grid_positions(cells, shape.aspect), ipe_sigma=sigma).to(device),
            tokens=self.model.condition(one_hot(label_B, self.model.condition.num_classes)),
            times=times,
            alpha_bars=alpha_bar_of(times),
            prediction_type=self.model.config.prediction_type,
            guidance=guidance,
            guidance_interval=tuple(map(same_noise, self.defaults.guidance_interval)),
            clip=space.clip,
            gradients=True,
        )
        return last.x0


class LearningCalls:
    """A denoiser whose calls at a signal share ᾱ within `learned` have gradients, and others none. The null condition
    learns nothing: what the other one does is enough."""

    def __init__(self, model: nn.Module, *, learned: tuple[float, float]):
        self.model, self.learned = model, learned

    def __call__(
        self,
        noisy_BChw: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: Any = None,
    ) -> DenoiserOutput:
        low, high = self.learned
        learns = torch.is_grad_enabled() and low <= alpha_bar_B[0].item() <= high
        states, outputs = recurrent_state or [None] * len(conditions), []
        for condition, state in zip(conditions, states, strict=True):
            with torch.set_grad_enabled(learns and condition is not None):
                outputs.append(self.model(noisy_BChw, alpha_bar_B, positions, (condition,), state))
        prediction_KBChw = torch.cat([output.prediction for output in outputs])
        return DenoiserOutput(prediction_KBChw, recurrent_state=[output.recurrent_state for output in outputs])


def trained_critics(config: RolloutConfig, folder: Path, train: ImageSet, validation: ImageSet) -> list[Classifier]:
    """The classifiers of a run: seeds 1, 2, …, trained where the folder has them not yet. Raises ValueError for images
    without labels."""
    train, validation = (replace(part, images=to_classifier_size(part.images)) for part in (train, validation))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = [folder / f"{seed}.safetensors" for seed in range(1, config.critics + 1)]
    with PartialState().main_process_first():
        for seed, path in enumerate(paths, 1):
            if not path.exists():
                print(f"{path}: a critic for the rollout phase")
                made = fit(train, validation, epochs=config.epochs, device=device, seed=seed)
                save_module(made, path)
        return [load_classifier(path) for path in paths]


def frozen_copy(model: nn.Module, path: Path | None) -> nn.Module:
    """A copy of the model, or what was copied to the file before the run was stopped."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    with PartialState().main_process_first():
        if path and path.exists():
            load_into(teacher, path)
        elif path:
            save_module(teacher, path)
    return teacher


def energy_distance(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'|, unbiased: 0 for two sets of one distribution, and only for those (Székely &
    Rizzo 2013). N and M are 2 or more. The middle term keeps what is generated apart."""
    a_ND, b_MD = a_ND.float(), b_MD.float()  # `pdist` is not implemented in bfloat16
    return 2 * torch.cdist(a_ND, b_MD).mean() - F.pdist(a_ND).mean() - F.pdist(b_MD).mean()
