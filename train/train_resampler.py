"""Stage 1: trains a resampler. `python -m train.train_resampler --config train/configs/letters_resampler.toml`; to
resume, the same command."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn

from r2id.image import contact_sheet
from r2id.resamplers import RESAMPLERS
from train.data.images import ImageSet, load_images, stream_images
from train.engine.cli import arguments, run, run_of, script, start_from
from train.engine.loop import Run
from train.engine.recipe import CrossAttentionRecipe, ResamplerRecipe, read_resampler_recipe
from train.losses.cross_attention import CrossAttentionLoss
from train.losses.linear_codec import LinearCodecAlone, fit_linear_codec
from train.losses.resampler_steps import (
    cross_attention_loss,
    cross_attention_step,
    resampler_loss,
    resampler_step,
)

# Settings for images without a known background, beyond whose frames nothing is known; the first for R2IR alone.
WITHOUT_BACKGROUND = ("model.border_rings=0", "outside_fraction=0.0", "shape_sampler.p_square=1.0")
CHECKED = 64  # validation images that are reconstructed at every evaluation
CHUNK = 16  # of them at once, to bound memory
SIZES = (4, 6, 8, 12, 16)
SHEET = 10  # images in a row of the sheet


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--teacher", metavar="WEIGHTS", help="a model whose latents the resampler learns to keep")
    args = parser.parse_args(argv)
    recipe = read_resampler_recipe(args.config, args.set)
    folder = Path(args.out or f"runs/{recipe.name}") / "resampler"
    cross = isinstance(recipe, CrossAttentionRecipe)
    train, held = data_of(args, recipe)
    PartialState().print(train.describe(), flush=True)
    recipe = replace(recipe, model=replace(recipe.model, channels=train.images.shape[1]))
    if train.background is None and recipe.needs_background:
        remedy = "".join(f" --set {setting}" for setting in WITHOUT_BACKGROUND[cross:])
        raise ValueError(f"{args.data or recipe.data}: no known background, so frames cannot be padded; give{remedy}")

    torch.manual_seed(recipe.optimisation.seed)
    model_type = RESAMPLERS[recipe.architecture][1]
    model = model_type(recipe.model)
    loss = cross_attention_loss(recipe, model, train) if cross else resampler_loss(recipe, model, train, args.teacher)
    training = run_of(args, recipe, loss, train, folder, model=asdict(recipe.model), data=args.data or recipe.data)
    train = train.to(training.accelerator.device)
    if training.step == 0 and args.start:
        start_from(training, args.start, "resampler")
    elif training.step == 0 and cross and recipe.linear_codec_steps and not args.dry_run:
        fit_codec(recipe, training, loss, train)
    averaged = model_type(recipe.model).eval().to(training.accelerator.device)

    def evaluated(progress):
        averaged.load_state_dict(training.ema)
        figures, sheet = evaluate(averaged, held)
        training.log(figures)
        sheet.save(folder / f"samples-{progress.step:06d}.png")
        return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())

    compute = (cross_attention_step if cross else resampler_step)(recipe, training, train)
    run(training, compute, evaluated, dry=args.dry_run)


def data_of(args, recipe: ResamplerRecipe | CrossAttentionRecipe) -> tuple[ImageSet, ImageSet]:
    """The training images, and the validation images that evaluations reconstruct."""
    load = partial(stream_images, seed=recipe.optimisation.seed) if args.stream else load_images
    load = partial(load, args.data or recipe.data, label_column=args.label_column)
    if isinstance(recipe, CrossAttentionRecipe):
        load = partial(load, size=recipe.training_size)
    elif args.stream:
        if recipe.decoder_size > recipe.encoder_size:
            raise ValueError("--stream: images of two densities are not streamed; set decoder_size to encoder_size")
        load = partial(load, size=recipe.encoder_size)
    else:
        glyphs = args.glyphs or recipe.glyphs
        load = partial(load, size=recipe.encoder_size, density=recipe.decoder_size, glyphs=glyphs)
    max_aspect = recipe.shape_sampler.max_aspect if recipe.native_aspect else None
    return load("train", max_aspect=max_aspect), load("validation", limit=CHECKED)


def fit_codec(recipe: CrossAttentionRecipe, training: Run, loss: CrossAttentionLoss, train: ImageSet) -> None:
    """Fits the linear codec beside cross-attention alone, where there is one."""
    if loss.model.linear_codec:
        alone = cross_attention_loss(recipe, LinearCodecAlone(loss.model), train)
        frame = None if recipe.native_aspect else recipe.training_size
        steps = recipe.linear_codec_steps
        fit_linear_codec(training, alone, train, recipe.shape_sampler, size=frame, steps=steps)


@torch.no_grad()
def evaluate(model: nn.Module, held: ImageSet):
    """Mean square error on [-1, 1] at every latent size, at the density that the encoder sees and, where there are
    denser targets, at half of theirs; latent statistics; and a sheet of reconstructions."""
    device = next(model.parameters()).device
    images = held.images[:]
    size = tuple(images.shape[2:])
    dense = None if held.targets is None else tuple(side // 2 for side in held.targets.shape[2:])
    figures, rows = {}, [*images[:SHEET]]
    for n in SIZES:
        errors, dense_errors, latents, shown = [], [], [], []
        for start in range(0, len(images), CHUNK):
            image_BCHW = images[start : start + CHUNK]
            latents.append(model.encode_image(image_BCHW.to(device), (n, n)))
            decoded = model.decode_image(latents[-1], size=dense or size).clamp(-1, 1).cpu()
            if dense:
                target = F.avg_pool2d(held.targets[start : start + CHUNK], 2)
                dense_errors.append(F.mse_loss(decoded, target))
                decoded = F.avg_pool2d(decoded, dense[0] // size[0])
            errors.append(F.mse_loss(decoded, image_BCHW))
            shown += decoded if len(shown) < SHEET else []
        figures[f"mse {n}x{n}"] = torch.stack(errors).mean().item()
        if dense:
            figures[f"mse {n}x{n} at {dense[0]}"] = torch.stack(dense_errors).mean().item()
        rows += shown[:SHEET]
    flat = torch.cat(latents).transpose(0, 1).flatten(1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(flat).cpu())  # MPS has none
    figures["latent mean square"] = flat.square().mean().item()
    figures["latent dimensions"] = (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()
    return figures, contact_sheet([(row + 1) / 2 for row in rows], columns=SHEET)


if __name__ == "__main__":
    script(main)
