"""What each choice is worth, at a small budget: trains the shipped recipes with one thing changed at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from r2id import Pipeline
from r2id.denoisers import DENOISERS
from train.data.images import load_images
from train.engine.assemble import build_pipeline
from train.engine.flops import count_flops
from train.engine.progress import progress_bar
from train.engine.recipe import DenoiserRecipe, read_recipe
from train.engine.state import load_state
from train.evaluation.classifier import accuracy, judge_of, load_classifier, to_classifier_size
from train.evaluation.metrics import bring_to, frechet, judge_features, mean_square, psnr
from train.evaluation.tables import Table, name

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "train" / "configs"
ONE_SIZE = ["shape_sampler.cells=[8, 8]", "shape_sampler.p_anisotropic=0.0", "shape_sampler.p_square=1.0"]
RESAMPLER = {  # what is changed → settings of mnist_cross_attention_resampler.toml
    "as shipped": [],
    "as shipped, another seed": ["optimisation.seed=1"],
    "linear attention": ['model.attention="linear"'],
    "no linear codec beside attention": ["model.linear_codec=false"],
    "no local path: attention alone": ["model.local=false"],
    "no integrated positional encoding": ["model.ipe_sigma=0.0"],
    "jitter keeps the old colour": ['jitter="published"', "outside_fraction=0.0"],
    "no jitter": ['jitter="none"'],
    "one latent size, 8 x 8": ONE_SIZE,
    "square frames only": ["shape_sampler.p_square=1.0"],
    "pixels as wide as cells": ["model.pixel_width=96"],
    "four heads of a pixel": ["model.pixel_heads=4"],
    "wider feed-forward of a pixel": ["model.pixel_mlp_ratio=4"],
    "two decoder blocks": ["model.decoder_blocks=2"],
    "a penalty on disagreement": ["optimisation.phases.0.consistency=2.0"],
}
DENOISER = {  # … of mnist_r2id.toml
    "as shipped": [],
    "as shipped, another seed": ["optimisation.seed=1"],
    "linear attention": ['model.attention="linear"'],
    "noise predicted, not v": ['model.prediction_type="epsilon"'],
    "one latent size, 8 x 8": ONE_SIZE,
    "square frames only": ["shape_sampler.p_square=1.0"],
    "a deviation for every channel": ['deviation="channel"'],
    "as much noise for every size": ["schedule.shift_power=0.0", "schedule.input_scale=0.5"],
}
SMALL = {  # instead of what the recipes say: their denoiser would take thousands of large steps to draw any digit
    "resampler": ["optimisation.batch=32"],
    "denoiser": [
        *("model.width=64", "model.heads=2", "model.encoder_blocks=2", "model.decoder_blocks=2"),
        *("cells_a_step=2048", "optimisation.batch=16", "optimisation.ema=0.99"),
    ],
}
CELLS = ((4, 4), (8, 8), (16, 16))
LARGE = 256  # pixels a side of the output that is compared with that of the training size
COUNTED = 128  # pixels a side of the output whose operations are counted
HELD, COMPARED = 200, 20  # validation images that are decoded, and that are decoded at LARGE


@dataclass(frozen=True)
class Data:
    """Where images come from, and the column of their labels."""

    name: str
    label_column: str | None = None

    @property
    def options(self) -> list[str]:
        """Of a training's command."""
        return ["--data", self.name, *(["--label-column", self.label_column] if self.label_column else [])]

    def held_out(self, limit: int | None = None) -> Tensor:
        """Validation images, at 32 pixels a side."""
        return load_images(self.name, "validation", size=32, limit=limit, label_column=self.label_column).images


def phase(steps: int, **values: object) -> list[str]:
    values = {"steps": steps, "rate": [1e-3, 1e-5], **values}
    return ["optimisation.phases=[{" + ", ".join(f"{key} = {value}" for key, value in values.items()) + "}]"]


def settings(*lines: str) -> list[str]:
    return [part for line in lines for part in ("--set", line)]


def place(root: Path, stage: str, what: str) -> Path:
    return root / stage / "-".join("".join(c if c.isalnum() else " " for c in what).split())


def train(stage: str, config: str, folder: Path, data: Data, lines: list[str]) -> None:
    """Trains a stage in a process of its own, which Ctrl-C lets save its state. Raises ValueError where it fails."""
    once = ["optimisation.evaluate_every=1000000", "optimisation.warmup=50"]
    where = ["--config", str(CONFIGS / config), *data.options, "--out", str(folder.resolve()), "--track", "none"]
    command = [sys.executable, "-m", f"train.train_{stage}", *where, *settings(*once, *lines)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
    if code:
        raise ValueError(f"{folder}: the training of its {stage} ended with status {code}; the same command goes on")


def shift(side: int, size: int) -> tuple[float, float, float, float]:
    """The region whose pixels' centres lie where edge-aligned coordinates put them: the first and last pixel of every
    output at the same two places, those of the training size."""
    pitch = (1 - 1 / size) / (side - 1)
    first = 0.5 / size - pitch / 2
    return first, first, 1 - first, 1 - first


def agreement(pipe: Pipeline, images_NCHW: Tensor, *, edges: bool = False) -> float:
    """PSNR between images decoded at LARGE and reduced, and decoded at the training size. edges: see `shift`."""
    size, pairs = pipe.config.encoder_size, []
    for part in images_NCHW.split(8):
        latent = pipe.encode(part, latent_size=pipe.config.defaults.latent_size)
        region = {"region": shift(LARGE, size)} if edges else {}
        large = pipe.resample(latent, size=(LARGE, LARGE), **region)
        pairs.append((bring_to(large, size), pipe.resample(latent, size=(size, size))))
    return psnr(mean_square(pairs))


def cost(pipe: Pipeline, *, side: int = COUNTED) -> float:
    """Floating-point operations of a pixel, of so many a side."""
    latent = pipe.encode(torch.zeros(1, pipe.config.channels, 8, 8), latent_size=(8, 8))
    with count_flops() as counter:
        pipe.resample(latent, size=(side, side))
    return counter.get_total_flops() / side**2


def resamplers(root: Path, data: Data, steps: int, lines: list[str]) -> Iterator[Table]:
    held = (data.held_out(HELD) + 1) / 2
    rows = []
    columns = {"R2IR": "{}"} | {f"MSE {name(cells)}": "{:.4f}" for cells in CELLS}
    columns |= {f"{LARGE} against 32 (dB)": "{:.1f}", "MFLOP a pixel": "{:.3f}"}
    title = f"{steps} steps of 32 images each; {HELD} validation images, {COMPARED} for agreement"
    for what, changed in RESAMPLER.items():
        folder = place(root, "resampler", what)
        start = phase(steps, pixels_in=0, pixels_out=256, consistency=0.0)
        train("resampler", "mnist_cross_attention_resampler.toml", folder, data, start + lines + changed)
        pipe = untrained(folder)
        errors = []
        for cells in CELLS:
            parts = progress_bar(held.split(50), what)
            decoded = ((pipe.resample(pipe.encode(p, latent_size=cells), size=(32, 32)), p) for p in parts)
            errors.append(4 * mean_square(decoded))
        rows.append((what, *errors, agreement(pipe, held[:COMPARED]), cost(pipe) / 1e6))
        if len(rows) == 1:
            edges = agreement(pipe, held[:COMPARED], edges=True)
            rows.append(("edge-aligned coordinates (the same weights)", *errors, edges, cost(pipe) / 1e6))
        yield Table(title, columns, rows)


def untrained(folder: Path) -> Pipeline:
    """A run's resampler beside a denoiser that was never trained."""
    stage_1 = load_state(folder / "resampler")
    recipe = read_recipe(DenoiserRecipe, CONFIGS / "mnist_r2id.toml")
    channels = stage_1.metadata["model"]["latent_channels"]
    config = replace(recipe.model, latent_channels=channels, num_classes=len(stage_1.metadata["labels"]))
    moments = {"latent_mean": [0.0] * channels, "latent_std": [1.0] * channels}
    metadata = stage_1.metadata | moments | {"recipe": asdict(recipe), "model": asdict(config)}
    return build_pipeline(stage_1, metadata, DENOISERS[recipe.architecture][1](config).state_dict())


def denoisers(root: Path, data: Data, steps: int, count: int, run: Path, lines: list[str]) -> Iterator[Table]:
    judge, labels_N = load_classifier(judge_of("mnist")), torch.arange(count) % 10
    real_NF = judge_features(judge, data.held_out())
    rows = []
    columns = {"R2ID": "{}"}
    for cells in CELLS:
        columns |= {f"read as the label {name(cells)}": "{:.1%}", f"Fréchet {name(cells)}": "{:.2f}"}
    title = f"{steps} steps, on the latents of {run}; {count} images"
    for what, changed in DENOISER.items():
        folder = place(root, "denoiser", what)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "resampler").exists():
            (folder / "resampler").symlink_to((run / "resampler").resolve())
        train("denoiser", "mnist_r2id.toml", folder, data, [*phase(steps), "rollout.phases=[]", *lines, *changed])
        state = load_state(folder / "denoiser")
        pipe = build_pipeline(load_state(folder / "resampler"), state.metadata, state.part("ema"))
        figures = []
        for cells in CELLS:
            parts = [
                pipe.resample(pipe.diffuse(part.tolist(), latent_size=cells, seed=50 * i), size=(32, 32))
                for i, part in enumerate(progress_bar(labels_N.split(50), what))
            ]
            generated_NCHW = to_classifier_size(torch.cat(parts) * 2 - 1)
            distance = frechet(judge_features(judge, generated_NCHW), real_NF)
            figures += [accuracy(judge, generated_NCHW, labels_N), distance]
        rows.append((what, *figures))
        yield Table(title, columns, rows)
