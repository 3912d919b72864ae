"""Runs of the scripts with models of a few channels: recipes, and both stages with the export."""

from __future__ import annotations

import json
from pathlib import Path

from train import export, train_denoiser, train_resampler

RESAMPLER = """
name = "small"
encoder_size = 16
decoder_size = 16
lattice = 12

[shape_sampler]
cells = [3, 5]

[model]
latent_channels = 3
width = 16
heads = 2
encoder_blocks = 1
decoder_blocks = 1
encoder_harmonics = 2
decoder_harmonics = 2
features = 4
pixel_width = 8

[optimisation]
batch = 6
warmup = 5
evaluate_every = 25

[[optimisation.phases]]
steps = 25
rate = [3e-3, 3e-3]

[[optimisation.phases]]
steps = 5
rate = [3e-3, 1e-4]
"""

SMALL_DENOISER = """
[model]
width = 16
heads = 2
encoder_blocks = 1
decoder_blocks = 1
noise_width = 8

[optimisation]
batch = 6
warmup = 5
"""
DENOISER = f"""
name = "small"

[shape_sampler]
cells = [3, 5]
{SMALL_DENOISER}
[[optimisation.phases]]
steps = 6
rate = [3e-3, 1e-4]

[defaults]
steps = 3
guidance = 2.5
sampler = "ddim"
latent_size = [4, 5]
"""
PIXELS = f"""
name = "small"
pixels = true
training_size = 16

[schedule]
shift_power = 0.0
input_scale = 0.8
{SMALL_DENOISER}
[[optimisation.phases]]
steps = 25
rate = [3e-3, 1e-3]
cells = [8, 8]

[[optimisation.phases]]
steps = 5
rate = [1e-3, 1e-4]

[defaults]
steps = 2
latent_size = [16, 16]
"""


def metrics(folder: Path) -> list[dict]:
    """What a stage has logged."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write(folder: Path, text: str) -> str:
    """A recipe as a file. → its path."""
    path = folder / f"{'resampler' if 'lattice' in text else 'denoiser'}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def train(folder: Path, images: str, resampler: str = RESAMPLER, denoiser: str = DENOISER) -> Path:
    """Both stages and the export. → the weights' folder, beside `run`."""
    run = str(folder / "run")
    train_resampler.main(["--config", write(folder, resampler), "--data", images, "--out", run])
    train_denoiser.main(["--config", write(folder, denoiser), "--data", images, "--out", run])
    export.main([run, str(folder / "weights")])
    return folder / "weights"
