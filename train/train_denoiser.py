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
from r2id.denoisers import SYSTEMS
from r2id.image import contact_sheet
from r2id.resampler import R2IR, R2IRConfig
from train.data.buckets import Law
from train.data.images import load_images, stream_images
from train.engine.cli import carry_out, draw, run_of, script, start_from
from train.engine.loop import generator
from train.engine.recipe import DenoiserRecipe, arguments, law_of, read_recipe
from train.engine.state import State, load_state
from train.evaluation.classifier import Classifier
from train.export import build_pipeline
from train.losses.denoiser import DenoiserLoss
from train.losses.resampler import encode
from train.losses.rollout import Drawn, trained_critics

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
    seen = stage_1.about["recipe"] if stage_1 else {"training_size": recipe.training_size}
    size, own = seen["training_size"], seen.get("frames") == "own"
    frame = None if own else size
    load = partial(stream_images, seed=recipe.optimisation.seed) if args.stream else load_images
    widest = recipe.law.widest if own else None
    train = load(data, "train", size=size, channels=resampler and resampler.config.channels, widest=widest)
    if train.background is None and recipe.law.square < 1 and not own:
        raise ValueError(f"{data}: no known background, so frames cannot be padded; set law.square = 1")
    drawn_phase = any(phase.drawn for phase in recipe.optimisation.phases)
    if drawn_phase and (own or not isinstance(train.images, Tensor) or not train.names):
        needs = "labelled pictures, all in one size and in memory"
        raise ValueError(f"phases: a drawn one needs {needs}; leave it out of optimisation.phases")
    channels = train.images.shape[1]
    background = train.background or (0.0,) * channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if resampler:
        mean, std = latent_statistics(resampler, train.images[:MEASURED], recipe.law, background, frame)
        if recipe.deviation == "shared":
            std = (math.hypot(*std) / math.sqrt(len(std)),) * len(std)
    model_config = replace(recipe.model, latent_channels=len(mean), labels=len(train.names))
    stride = model_config.stride
    usual = recipe.optimisation.batch * math.prod(recipe.defaults.latent_size)
    cells = (recipe.cells_a_step or usual * recipe.draws) // recipe.draws

    drawn = None
    if drawn_phase:
        critics = [Classifier(channels, len(train.names)) for _ in range(recipe.drawing.critics)]
        if not args.dry_run:
            validation = load(data, "validation", size=size, channels=channels)
            critics = trained_critics(recipe.drawing, root / "critics", train, validation)
        drawn = Drawn(recipe.drawing, critics, train.images, train.labels, recipe.defaults)
    torch.manual_seed(recipe.optimisation.seed)
    loss = DenoiserLoss(
        SYSTEMS[recipe.system][1](model_config),
        resampler,
        schedule=recipe.schedule,
        background=background,
        latent_mean=mean,
        latent_std=std,
        label_dropout=recipe.label_dropout,
        finest=recipe.law.cells[1],
        warm_start=recipe.warm_start,
        draws=recipe.draws,
        drawn=drawn,
    )
    run = run_of(
        args,
        recipe,
        loss,
        train,
        root / "denoiser",
        model=asdict(model_config),
        latent_mean=mean,
        latent_std=std,
        data=data,
        resampler_step=stage_1 and stage_1.about["step"],
    )

    if run.step == 0 and args.start:
        start_from(run, args.start, "denoiser")
    seed, device = recipe.optimisation.seed, run.accelerator.device
    train, teachers = train.to(device), {}

    def compute(loss, indices, phase, step, part):
        shape, rng = draw(law_of(recipe, phase), seed, step, part, size=frame, device=device, stride=stride)
        if not phase.drawn:
            return denoising(loss, indices, shape, rng)
        value, metrics = loss(train.images[:0], train.labels[:0], shape, rng, drawn=drawn.count(shape.cells, run.parts))
        if phase.held:
            law = replace(recipe.law, cells=phase.held)
            shape, rng = draw(law, seed + 1, step, part, size=frame, device=device, stride=stride)
            if phase not in teachers:
                place = root / "denoiser" / f"held-{recipe.optimisation.phases.index(phase)}.safetensors"
                teachers[phase] = as_it_was(run.model, None if args.dry_run else place)
            moved, _ = denoising(loss, indices, shape, rng, teacher=teachers[phase])
            value, metrics = value + recipe.drawing.held * moved, metrics | {"moved": moved.detach()}
        return value, metrics

    def denoising(loss, indices, shape, rng, **options):
        indices = indices[: max(1, cells // (shape.area * run.parts))]
        labels = train.labels[indices].to(device)
        value, metrics = loss(train.images[indices], labels, shape, rng, **options)
        return value, metrics | {"images": len(indices)}

    def evaluated(progress):
        run.log(progress.metrics)
        sheet(build_pipeline(stage_1, run.about, run.ema)).save(root / "denoiser" / f"samples-{progress.step:06d}.png")
        name = "mse" if "mse" in progress.metrics else "energy"
        return f"{name} {progress.metrics[name]:.4f}"

    carry_out(run, compute, evaluated, dry=args.dry_run)


def as_it_was(model: nn.Module, path: Path | None) -> nn.Module:
    """A copy of the model, or what was copied to the file before the run was stopped."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    with PartialState().main_process_first():
        if path and path.exists():
            load_into(teacher, path)
        elif path:
            save_module(teacher, path)
    return teacher


def trained_resampler(folder: Path) -> tuple[State, R2IR]:
    state = load_state(folder)
    if state is None:
        raise ValueError(f"{folder}: no trained resampler; run train/train_resampler.py first")
    resampler = R2IR(from_dict(R2IRConfig, state.about["model"], folder)).eval()
    resampler.load_state_dict(state.part("ema"))
    return state, resampler


@torch.no_grad()
def latent_statistics(
    resampler: R2IR, images: Tensor | list[Tensor], law: Law, background: tuple[float, ...], size: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of latents that the law draws (see `Law.draw`): one set for all sizes."""
    rng = generator(0, 0)
    background_C = torch.tensor(background) * 2 - 1
    latents = []
    for start in range(0, len(images), CHUNK):
        for group in law.draw(size, generator=rng).groups(images[start : start + CHUNK], background_C):
            latents += [encode(resampler, canvas_BCHW, group.cells) for canvas_BCHW in group.canvases]
    every_CN = torch.cat([latent_BChw.transpose(0, 1).flatten(1) for latent_BChw in latents], dim=1)
    return tuple(every_CN.mean(dim=1).tolist()), tuple(every_CN.std(dim=1).tolist())


def sheet(pipeline):
    """Ten labels at every size of SHEET, contained in 64 × 64."""
    rows = []
    labels = [i % max(1, len(pipeline.labels)) if pipeline.labels else None for i in range(10)]
    stride, side = pipeline.config.stride, max(pipeline.config.defaults.latent_size) / 8
    for eighths in SHEET:
        size = tuple(max(1, round(side * n / stride)) * stride for n in eighths)
        latent = pipeline.diffuse(labels, latent_size=size, seed=0)
        rows += pipeline.resample(latent, size=(64, 64))
    return contact_sheet(rows, columns=10)


if __name__ == "__main__":
    script(main)
