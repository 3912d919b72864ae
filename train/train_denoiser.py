"""Stage 2: trains a denoiser on the latents of the run's resampler, or in pixel space, where it is the only stage.
`python -m train.train_denoiser --config train/configs/mnist_r2id.toml`; to resume, the same command."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from r2id.checkpoint import from_dict, load_into, save_module
from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.denoisers import DENOISERS
from r2id.image import contact_sheet
from train.data.buckets import ShapeSampler
from train.data.images import load_images, stream_images
from train.engine.cli import arguments, draw, run, run_of, script, start_from
from train.engine.loop import generator
from train.engine.recipe import DenoiserRecipe, read_recipe, shape_sampler_of
from train.engine.state import State, load_state
from train.evaluation.classifier import Classifier
from train.export import build_pipeline
from train.losses.denoiser import DenoiserLoss
from train.losses.resampler import encode
from train.losses.rollout import Rollout, trained_critics

MEASURED = 2_000  # training images that the latents' mean and standard deviation are taken from
CHUNK = 100  # of them that share a shape
SHEET = ((4, 4), (8, 8), (12, 12), (5, 8), (8, 5))  # latent sizes on the sample sheet, in eighths of the default's side


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__).parse_args(argv)
    recipe = read_recipe(DenoiserRecipe, args.config, args.set)
    root = Path(args.out or f"runs/{recipe.name}")
    data = args.data or recipe.data
    stage_1, resampler = None, None
    if not recipe.pixels:
        stage_1, resampler = trained_resampler(root / "resampler")
    seen = stage_1.metadata["recipe"] if stage_1 else {"training_size": recipe.training_size}
    size, own = seen["training_size"], seen.get("native_aspect", False)
    frame = None if own else size
    load = partial(stream_images, seed=recipe.optimisation.seed) if args.stream else load_images
    max_aspect = recipe.shape_sampler.max_aspect if own else None
    train = load(data, "train", size=size, channels=resampler and resampler.config.channels, max_aspect=max_aspect)
    if train.background is None and recipe.shape_sampler.p_square < 1 and not own:
        raise ValueError(f"{data}: no known background, so frames cannot be padded; set shape_sampler.p_square = 1")
    rollout_phase = any(phase.rollout for phase in recipe.optimisation.phases)
    if rollout_phase and (own or not isinstance(train.images, Tensor) or not train.names):
        needs = "labelled pictures, all in one size and in memory"
        raise ValueError(f"phases: a drawn one needs {needs}; leave it out of optimisation.phases")
    channels = train.images.shape[1]
    background = train.background or (0.0,) * channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if resampler:
        mean, std = latent_statistics(resampler, train.images[:MEASURED], recipe.shape_sampler, background, frame)
        if recipe.deviation == "shared":
            std = (math.hypot(*std) / math.sqrt(len(std)),) * len(std)
    model_config = replace(recipe.model, latent_channels=len(mean), num_classes=len(train.names))
    size_multiple = model_config.size_multiple
    usual = recipe.optimisation.batch * math.prod(recipe.defaults.latent_size)
    cells = (recipe.cells_a_step or usual * recipe.noise_per_image) // recipe.noise_per_image

    rollout = None
    if rollout_phase:
        critics = [Classifier(channels, len(train.names)) for _ in range(recipe.rollout.critics)]
        if not args.dry_run:
            validation = load(data, "validation", size=size, channels=channels)
            critics = trained_critics(recipe.rollout, root / "critics", train, validation)
        rollout = Rollout(recipe.rollout, critics, train.images, train.labels, recipe.defaults)
    torch.manual_seed(recipe.optimisation.seed)
    loss = DenoiserLoss(
        DENOISERS[recipe.architecture][1](model_config),
        resampler,
        schedule=recipe.schedule,
        background=background,
        latent_mean=mean,
        latent_std=std,
        label_dropout=recipe.label_dropout,
        jitter_grid=recipe.shape_sampler.cells[1],
        warm_start=recipe.warm_start,
        noise_per_image=recipe.noise_per_image,
        rollout=rollout,
    )
    training = run_of(
        args,
        recipe,
        loss,
        train,
        root / "denoiser",
        model=asdict(model_config),
        latent_mean=mean,
        latent_std=std,
        data=data,
        resampler_step=stage_1 and stage_1.metadata["step"],
    )

    if training.step == 0 and args.start:
        start_from(training, args.start, "denoiser")
    seed, device = recipe.optimisation.seed, training.accelerator.device
    train, teachers = train.to(device), {}

    def compute(loss, indices, phase, step, part):
        shape, rng = draw(
            shape_sampler_of(recipe, phase), seed, step, part, size=frame, device=device, size_multiple=size_multiple
        )
        if not phase.rollout:
            return denoising(loss, indices, shape, rng)
        value, metrics = loss(
            train.images[:0], train.labels[:0], shape, rng, rollout=rollout.count(shape.cells, training.parts)
        )
        if phase.distill_cells:
            shape_sampler = replace(recipe.shape_sampler, cells=phase.distill_cells)
            shape, rng = draw(
                shape_sampler, seed + 1, step, part, size=frame, device=device, size_multiple=size_multiple
            )
            if phase not in teachers:
                place = root / "denoiser" / f"distill-{recipe.optimisation.phases.index(phase)}.safetensors"
                teachers[phase] = as_it_was(training.model, None if args.dry_run else place)
            moved, _ = denoising(loss, indices, shape, rng, teacher=teachers[phase])
            value, metrics = value + recipe.rollout.distill_weight * moved, metrics | {"moved": moved.detach()}
        return value, metrics

    def denoising(loss, indices, shape, rng, **options):
        indices = indices[: max(1, cells // (shape.area * training.parts))]
        labels = train.labels[indices].to(device)
        value, metrics = loss(train.images[indices], labels, shape, rng, **options)
        return value, metrics | {"images": len(indices)}

    def evaluated(progress):
        training.log(progress.metrics)
        sheet(build_pipeline(stage_1, training.metadata, training.ema)).save(
            root / "denoiser" / f"samples-{progress.step:06d}.png"
        )
        name = "mse" if "mse" in progress.metrics else "energy"
        return f"{name} {progress.metrics[name]:.4f}"

    run(training, compute, evaluated, dry=args.dry_run)


def as_it_was(model: nn.Module, path: Path | None) -> nn.Module:
    """A copy of the model, or what was copied to the file before the run was stopped."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    with PartialState().main_process_first():
        if path and path.exists():
            load_into(teacher, path)
        elif path:
            save_module(teacher, path)
    return teacher


def trained_resampler(folder: Path) -> tuple[State, CrossAttentionR2IR]:
    state = load_state(folder)
    if state is None:
        raise ValueError(f"{folder}: no trained resampler; run train/train_resampler.py first")
    resampler = CrossAttentionR2IR(from_dict(CrossAttentionR2IRConfig, state.metadata["model"], folder)).eval()
    resampler.load_state_dict(state.part("ema"))
    return state, resampler


@torch.no_grad()
def latent_statistics(
    resampler: CrossAttentionR2IR,
    images: Tensor | list[Tensor],
    shape_sampler: ShapeSampler,
    background: tuple[float, ...],
    size: int | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of latents that the law draws (see `ShapeSampler.draw`): one set for all
    sizes."""
    rng = generator(0, 0)
    background_C = torch.tensor(background) * 2 - 1
    latents = []
    for start in range(0, len(images), CHUNK):
        for bucket in shape_sampler.draw(size, generator=rng).buckets(images[start : start + CHUNK], background_C):
            latents += [encode(resampler, canvas_BCHW, bucket.cells) for canvas_BCHW in bucket.canvases]
    every_CN = torch.cat([latent_BChw.transpose(0, 1).flatten(1) for latent_BChw in latents], dim=1)
    return tuple(every_CN.mean(dim=1).tolist()), tuple(every_CN.std(dim=1).tolist())


def sheet(pipeline):
    """Ten labels at every size of SHEET, contained in 64 × 64."""
    rows = []
    labels = [i % max(1, len(pipeline.labels)) if pipeline.labels else None for i in range(10)]
    size_multiple, side = pipeline.config.size_multiple, max(pipeline.config.defaults.latent_size) / 8
    for eighths in SHEET:
        size = tuple(max(1, round(side * n / size_multiple)) * size_multiple for n in eighths)
        latent = pipeline.diffuse(labels, latent_size=size, seed=0)
        rows += pipeline.resample(latent, size=(64, 64))
    return contact_sheet(rows, columns=10)


if __name__ == "__main__":
    script(main)
