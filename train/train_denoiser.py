"""Stage 2: trains a denoiser on the latents of the run's resampler, or in pixel space, where it is the only stage.
`python -m train.train_denoiser --config train/configs/mnist_r2id.toml`; to resume, the same command."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from r2id.denoisers import DENOISERS
from train.data.images import load_images, stream_images
from train.engine.assemble import build_pipeline, trained_resampler
from train.engine.cli import arguments, run, run_of, script, start_from
from train.engine.prefetch import prefetched
from train.engine.recipe import DenoiserRecipe, RolloutPhase, read_recipe, shape_sampler_of
from train.evaluation.classifier import Classifier
from train.evaluation.tables import sample_sheet
from train.losses.denoiser import DenoiserLoss, DenoiserLosses
from train.losses.latent_source import CachedLatents, EncodedLatents, Mirror
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
    size, own = seen.get("encoder_size") or seen["training_size"], seen.get("native_aspect", False)
    frame = None if own else size
    if args.stream:
        load = partial(stream_images, seed=recipe.optimisation.seed)
    else:  # as the resampler saw them
        load = partial(load_images, density=seen.get("decoder_size"))
        if glyphs := args.glyphs or seen.get("glyphs"):
            load = partial(load, glyphs=glyphs)
    load = partial(load, label_column=args.label_column)
    max_aspect = recipe.shape_sampler.max_aspect if own else None
    train = load(data, "train", size=size, channels=resampler and resampler.config.channels, max_aspect=max_aspect)
    PartialState().print(train.describe(), flush=True)
    if train.background is None and recipe.shape_sampler.p_square < 1 and not own and not recipe.cache_latents:
        raise ValueError(f"{data}: no known background, so frames cannot be padded; set shape_sampler.p_square = 1")
    if recipe.rollout.phases and (own or not isinstance(train.images, Tensor) or not train.names):
        needs = "labelled images, all in one size and in memory"
        raise ValueError(f"rollout.phases: need {needs}; leave them out")
    channels = train.images.shape[1]
    background = train.background or (0.0,) * channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if resampler:
        mean, std = latent_statistics(resampler, train.images[:MEASURED], recipe.shape_sampler, background, frame)
        if recipe.deviation == "shared":
            std = (math.hypot(*std) / math.sqrt(len(std)),) * len(std)
    model_config = replace(recipe.model, latent_channels=len(mean), num_classes=len(train.names))
    usual = recipe.optimisation.batch * math.prod(recipe.defaults.latent_size)
    cells = (recipe.cells_a_step or usual * recipe.noise_per_image) // recipe.noise_per_image
    mirror = Mirror(train.names, recipe.mirror_labels) if recipe.mirror else None

    critics = []
    if recipe.rollout.phases and args.dry_run:
        critics = [Classifier(channels, len(train.names)) for _ in range(recipe.rollout.critics)]
    elif recipe.rollout.phases:
        validation = load(data, "validation", size=size, channels=channels)
        critics = trained_critics(recipe.rollout, root / "critics", train, validation)
    torch.manual_seed(recipe.optimisation.seed)
    model = DENOISERS[recipe.architecture][1](model_config)
    space = LatentSpace(resampler, mean=mean, std=std, schedule=recipe.schedule)
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
        )
    }
    if recipe.rollout.phases:
        how = {"defaults": recipe.defaults, "jitter_grid": jitter_grid}
        losses["rollout"] = RolloutLoss(model, space, recipe.rollout, critics, train.images, train.labels, **how)
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
    seed, device = recipe.optimisation.seed, training.accelerator.device
    train, space, teachers = train.to(device), space.to(device), {}
    ahead = prefetched(training, replace(train, targets=None))
    how = {"size": frame, "size_multiple": model_config.size_multiple}
    encoded = source = EncodedLatents(space, ahead, background, mirror, **how)
    if recipe.cache_latents and not args.dry_run:
        source = CachedLatents(folder / "latents", recipe.cache_latents, space, train, background, mirror)

    def compute(loss, indices, phase, step, part):
        if not isinstance(phase, RolloutPhase):
            return denoising(loss, indices, shape_sampler_of(recipe, phase), seed, step, part)
        shape, rng = encoded.draw(shape_sampler_of(recipe, phase), seed, step, part)
        count = loss_of_rollouts.count(shape.cells, training.parts)
        value, metrics = loss("rollout", shape, rng, count)
        if phase.distill_cells:
            if phase not in teachers:
                place = folder / f"teacher-{recipe.rollout.phases.index(phase)}.safetensors"
                teachers[phase] = frozen_copy(model, None if args.dry_run else place)
            shapes = replace(recipe.shape_sampler, cells=phase.distill_cells)
            moved, _ = denoising(loss, indices, shapes, seed + 1, step, part, teacher=teachers[phase])
            value, metrics = value + recipe.rollout.distill_weight * moved, metrics | {"moved": moved.detach()}
        return value, metrics

    loss_of_rollouts = losses.get("rollout")

    def denoising(loss, indices, shapes, seed, step, part, **options):
        shape, rng = source.draw(shapes, seed, step, part)
        indices = indices[: max(1, cells // (shape.area * training.parts))]
        value, metrics = loss("denoising", *source(indices, shape, rng), rng, **options)
        return value, metrics | {"images": len(indices)}

    def evaluated(progress):
        training.log(progress.metrics)
        sheet = sample_sheet(build_pipeline(stage_1, training.metadata, training.ema))
        sheet.save(folder / f"samples-{progress.step:06d}.png")
        name = "mse" if "mse" in progress.metrics else "energy"
        return f"{name} {progress.metrics[name]:.4f}"

    run(training, compute, evaluated, dry=args.dry_run)


if __name__ == "__main__":
    script(main)
