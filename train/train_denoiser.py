"""Stage 2: trains a denoiser on the latents of the run's resampler, or in pixel space, where it is the only stage.
`python -m train.train_denoiser --config train/configs/mnist_r2id.toml`; to resume, the same command."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from r2id.denoisers import DENOISERS
from train.data.buckets import ShapeSampler
from train.data.images import ImageSet, load_images, stream_images
from train.engine.assemble import build_pipeline, trained_resampler
from train.engine.cli import arguments, run, run_of, script, start_from
from train.engine.loop import Run
from train.engine.prefetch import prefetched
from train.engine.recipe import DenoiserPhase, DenoiserRecipe, RolloutPhase, read_recipe, shape_sampler_of
from train.evaluation.classifier import Classifier
from train.evaluation.tables import sample_sheet
from train.losses.denoiser import DenoiserLoss, DenoiserLosses
from train.losses.latent_source import CachedLatents, EncodedLatents, Mirror, index_of
from train.losses.latent_space import LatentSpace, latent_statistics
from train.losses.rollout import RolloutLoss, frozen_copy, trained_critics

MEASURED = 2_000  # training images that the latents' mean and standard deviation are taken from


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__).parse_args(argv)
    recipe = read_recipe(DenoiserRecipe, args.config, args.set)
    root = Path(args.out or f"runs/{recipe.name}")
    folder, data = root / "denoiser", args.data or recipe.data
    stage_1, resampler = (None, None) if recipe.pixels else trained_resampler(root / "resampler")
    seen = stage_1.metadata["recipe"] if stage_1 else {"training_size": recipe.training_size}
    size, native_aspect = seen.get("encoder_size") or seen["training_size"], seen.get("native_aspect", False)
    load = partial(loader(args, recipe, seen), data, size=size)
    max_aspect = recipe.shape_sampler.max_aspect if native_aspect else None
    train = load("train", channels=resampler and resampler.config.channels, max_aspect=max_aspect)
    PartialState().print(train.describe(), flush=True)
    check_images(recipe, train, data, native_aspect)
    channels = train.images.shape[1]
    background, frame = train.background or (0.0,) * channels, None if native_aspect else size

    mean, std = (0.0,) * channels, (1.0,) * channels
    if resampler:
        mean, std = latent_statistics(resampler, train.images[:MEASURED], recipe.shape_sampler, background, frame)
        if recipe.deviation == "shared":
            std = (math.hypot(*std) / math.sqrt(len(std)),) * len(std)
    model_config = replace(recipe.model, latent_channels=len(mean), num_classes=len(train.names))
    critics = critics_of(recipe, train, partial(load, channels=channels), None if args.dry_run else root / "critics")
    torch.manual_seed(recipe.optimisation.seed)
    model = DENOISERS[recipe.architecture][1](model_config)
    space = LatentSpace(resampler, mean=mean, std=std, schedule=recipe.schedule)
    losses = losses_of(recipe, model, space, critics, train)
    training = run_of(
        args,
        recipe,
        DenoiserLosses(model, **losses),
        train,
        folder,
        model=asdict(model_config),
        latent_mean=mean,
        latent_std=std,
        data=data,
        resampler_step=stage_1 and stage_1.metadata["step"],
    )
    if training.step == 0 and args.start:
        start_from(training, args.start, "denoiser")

    device = training.accelerator.device
    train, space = train.to(device), space.to(device)
    mirror = Mirror(train.names, recipe.mirror_labels) if recipe.mirror else None
    ahead, how = prefetched(training, replace(train, targets=None)), {"size": frame}
    encoded = source = EncodedLatents(space, ahead, background, mirror, **how, size_multiple=model_config.size_multiple)
    if recipe.cache_latents and not args.dry_run:
        source = CachedLatents(folder / "latents", recipe.cache_latents, space, train, background, mirror)
    step = DenoiserStep(recipe, training, model, losses, encoded, source, folder=None if args.dry_run else folder)

    def evaluated(progress):
        training.log(progress.metrics)
        sheet = sample_sheet(build_pipeline(stage_1, training.metadata, training.ema))
        sheet.save(folder / f"samples-{progress.step:06d}.png")
        name = "mse" if "mse" in progress.metrics else "energy"
        return f"{name} {progress.metrics[name]:.4f}"

    run(training, step, evaluated, dry=args.dry_run)


def loader(args: Namespace, recipe: DenoiserRecipe, seen: dict) -> Callable[..., ImageSet]:
    """Loads images as the resampler's run saw them, whose recipe is `seen`."""
    if args.stream:
        load = partial(stream_images, seed=recipe.optimisation.seed)
    else:
        load = partial(load_images, density=seen.get("decoder_size"))
        if glyphs := args.glyphs or seen.get("glyphs"):
            load = partial(load, glyphs=glyphs)
    return partial(load, label_column=args.label_column)


def check_images(recipe: DenoiserRecipe, train: ImageSet, data: str, native_aspect: bool) -> None:
    """Raises ValueError for images that the recipe cannot be trained on."""
    padded = recipe.shape_sampler.p_square < 1 and not native_aspect and not recipe.cache_latents
    if train.background is None and padded:
        raise ValueError(f"{data}: no known background, so frames cannot be padded; set shape_sampler.p_square = 1")
    if recipe.rollout.phases and (native_aspect or not isinstance(train.images, Tensor) or not train.names):
        needs = "labelled images, all in one size and in memory"
        raise ValueError(f"rollout.phases: need {needs}; leave them out")


def critics_of(
    recipe: DenoiserRecipe, train: ImageSet, load: Callable[..., ImageSet], folder: Path | None
) -> list[Classifier]:
    """The critics of rollout phases, trained where the folder has them not yet; untrained ones without a folder."""
    if not recipe.rollout.phases:
        return []
    if folder is None:
        return [Classifier(train.images.shape[1], len(train.names)) for _ in range(recipe.rollout.critics)]
    return trained_critics(recipe.rollout, folder, train, load("validation"))


def losses_of(
    recipe: DenoiserRecipe, model: nn.Module, space: LatentSpace, critics: list[Classifier], train: ImageSet
) -> dict[str, nn.Module]:
    """By the names under which `DenoiserLosses` has them."""
    jitter_grid = recipe.shape_sampler.cells[1]
    losses = {
        "denoising": DenoiserLoss(
            model,
            recipe.schedule,
            label_dropout=recipe.label_dropout,
            jitter_grid=jitter_grid,
            warm_start=recipe.warm_start,
            noise_per_image=recipe.noise_per_image,
            times=recipe.times,
            order=order_of(recipe.ordered_labels, train.names),
        )
    }
    if recipe.rollout.phases:
        how = {"defaults": recipe.defaults, "jitter_grid": jitter_grid}
        losses["rollout"] = RolloutLoss(model, space, recipe.rollout, critics, train.images, train.labels, **how)
    return losses


def order_of(ordered: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels' indices. Raises ValueError for one that the data have not, and for one that comes twice."""
    indices = [index_of(label, names, "ordered_labels") for label in ordered]
    if twice := [label for label in ordered if ordered.count(label) > 1]:
        raise ValueError(f"ordered_labels: {twice[0]!r} comes twice")
    return indices


class DenoiserStep:
    """What a step computes: the loss of denoising, or in a rollout phase that of generated images, beside that of
    keeping the predictions for latents of `distill_cells` cells a side."""

    def __init__(
        self,
        recipe: DenoiserRecipe,
        training: Run,
        model: nn.Module,
        losses: dict[str, nn.Module],
        encoded: EncodedLatents,
        source: EncodedLatents | CachedLatents,
        *,
        folder: Path | None,
    ):
        """encoded: where rollouts take their shapes from; source: the latents of denoising. folder: for the frozen
        models whose predictions are kept."""
        self.recipe, self.training, self.model, self.losses = recipe, training, model, losses
        self.encoded, self.source, self.folder = encoded, source, folder
        usual = recipe.optimisation.batch * math.prod(recipe.defaults.latent_size)
        self.cells = (recipe.cells_a_step or usual * recipe.noise_per_image) // recipe.noise_per_image
        self.teachers: dict[RolloutPhase, nn.Module] = {}

    def __call__(
        self, loss: nn.Module, indices: Tensor, phase: DenoiserPhase | RolloutPhase, step: int, part: int
    ) -> tuple[Tensor, dict]:
        """A `Compute`."""
        recipe, seed = self.recipe, self.recipe.optimisation.seed
        if not isinstance(phase, RolloutPhase):
            shapes, how = shape_sampler_of(recipe, phase), {"guide_only": phase.guide_only}
            return self.denoising(loss, indices, shapes, seed, step, part, **how)
        shape, rng = self.encoded.draw(shape_sampler_of(recipe, phase), seed, step, part)
        count = self.losses["rollout"].count(shape.cells, self.training.parts)
        value, metrics = loss("rollout", shape, rng, count)
        if phase.distill_cells:
            shapes, teacher = replace(recipe.shape_sampler, cells=phase.distill_cells), self.teacher(phase)
            moved, _ = self.denoising(loss, indices, shapes, seed + 1, step, part, teacher=teacher)
            value, metrics = value + recipe.rollout.distill_weight * moved, metrics | {"moved": moved.detach()}
        return value, metrics

    def denoising(
        self, loss: nn.Module, indices: Tensor, shapes: ShapeSampler, seed: int, step: int, part: int, **options
    ) -> tuple[Tensor, dict]:
        """On as many of the images as the cells of a step allow."""
        shape, rng = self.source.draw(shapes, seed, step, part)
        indices = indices[: max(1, self.cells // (shape.area * self.training.parts))]
        value, metrics = loss("denoising", *self.source(indices, shape, rng), rng, **options)
        return value, metrics | {"images": len(indices)}

    def teacher(self, phase: RolloutPhase) -> nn.Module:
        """The model as it was when the phase began."""
        if phase not in self.teachers:
            number = self.recipe.rollout.phases.index(phase)
            self.teachers[phase] = frozen_copy(
                self.model, self.folder and self.folder / f"teacher-{number}.safetensors"
            )
        return self.teachers[phase]


if __name__ == "__main__":
    script(main)
