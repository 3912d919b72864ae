"""Stage 1: trains R2IR. `python -m train.train_resampler --config train/configs/mnist_resampler.toml`; to resume, the
same command."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.image import contact_sheet
from train.data.images import load_images, stream_images
from train.engine.cli import arguments, draw, run, run_of, script, start_from
from train.engine.recipe import ResamplerRecipe, read_recipe, shape_sampler_of
from train.losses.linear_codec import LinearCodecAlone, fit_linear_codec
from train.losses.resampler import ResamplerLoss

CHECKED = 500  # validation images that are reconstructed at every evaluation
CHUNK = 100  # of them at once, to bound memory
SIZES = (4, 6, 8, 10, 16)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__).parse_args(argv)
    recipe = read_recipe(ResamplerRecipe, args.config, args.set)
    folder = Path(args.out or f"runs/{recipe.name}") / "resampler"
    data = args.data or recipe.data
    load = partial(stream_images, seed=recipe.optimisation.seed) if args.stream else load_images
    load = partial(load, label_column=args.label_column)
    own = recipe.native_aspect
    train = load(data, "train", size=recipe.training_size, max_aspect=recipe.shape_sampler.max_aspect if own else None)
    PartialState().print(train.describe(), flush=True)
    held = load(data, "validation", size=recipe.training_size, limit=CHECKED)
    recipe = replace(recipe, model=replace(recipe.model, channels=train.images.shape[1]))
    if train.background is None and (recipe.outside_fraction or (recipe.shape_sampler.p_square < 1 and not own)):
        remedy = "set outside_fraction = 0, shape_sampler.p_square = 1 (or native_aspect = true)"
        raise ValueError(f"{data}: no known background, so frames cannot be padded; {remedy}")

    torch.manual_seed(recipe.optimisation.seed)
    loss_of = partial(
        ResamplerLoss,
        background=train.background or (0.0,) * recipe.model.channels,
        jitter=recipe.jitter,
        pre_tanh_l2=recipe.pre_tanh_l2,
        outside_fraction=recipe.outside_fraction,
    )
    loss = loss_of(CrossAttentionR2IR(recipe.model))
    frame = None if own else recipe.training_size
    training = run_of(args, recipe, loss, train, folder, model=asdict(recipe.model), data=data)

    seed, device = recipe.optimisation.seed, training.accelerator.device
    train = train.to(device)

    def compute(loss, indices, phase, step, part):
        shape, rng = draw(shape_sampler_of(recipe, phase), seed, step, part, size=frame, device=device)
        images = train.images[indices]
        how = {"consistency": phase.consistency, "decoder_only": phase.decoder_only}
        return loss(images, shape, phase.pixels_in, phase.pixels_out, rng, **how)

    if training.step == 0 and args.start:
        start_from(training, args.start, "resampler")
    elif training.step == 0 and loss.model.linear_codec and recipe.linear_codec_steps and not args.dry_run:
        fit_linear_codec(
            training,
            loss_of(LinearCodecAlone(loss.model)),
            train,
            recipe.shape_sampler,
            size=frame,
            steps=recipe.linear_codec_steps,
        )
    averaged = CrossAttentionR2IR(recipe.model).eval().to(device)

    def evaluated(progress):
        averaged.load_state_dict(training.ema)
        figures, sheet = evaluate(averaged, held.images)
        training.log(figures)
        sheet.save(folder / f"samples-{progress.step:06d}.png")
        return ", ".join(f"{key} {value:.4f}" for key, value in figures.items())

    run(training, compute, evaluated, dry=args.dry_run)


@torch.no_grad()
def evaluate(model: CrossAttentionR2IR, images: Tensor):
    """Mean square error on [-1, 1] at every latent size, latent statistics, and a sheet of reconstructions."""
    device = next(model.parameters()).device
    figures, rows = {}, [*images[:10]]
    for n in SIZES:
        latents, decoded = [], []
        for chunk in images.to(device).split(CHUNK):
            latents.append(model.encode_image(chunk, (n, n)))
            decoded.append(model.decode_image(latents[-1], size=tuple(chunk.shape[2:])).clamp(-1, 1).cpu())
        decoded = torch.cat(decoded)
        figures[f"mse {n}x{n}"] = F.mse_loss(decoded, images).item()
        rows += decoded[:10]
    flat = torch.cat(latents).transpose(0, 1).flatten(1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(flat.cpu()))
    figures["latent mean square"] = flat.square().mean().item()
    figures["latent dimensions"] = (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()
    return figures, contact_sheet([(row + 1) / 2 for row in rows], columns=10)


if __name__ == "__main__":
    script(main)
