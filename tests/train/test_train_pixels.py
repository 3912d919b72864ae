"""Pixel space needs one stage, and what training cost is exported."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from PIL import Image
from scripts import PIXELS, write

from r2id import Pipeline
from r2id.position import grid_positions
from train import export, train_denoiser
from train.engine.flops import count_flops
from train.engine.state import load_state, save_state


def test_a_pixel_space_system_needs_one_stage(trained_on_pixels):
    files = ["README.md", "config.json", "denoiser.safetensors", "samples.png"]
    assert sorted(path.name for path in trained_on_pixels.iterdir()) == files
    pipe = Pipeline.from_pretrained(trained_on_pixels, device="cpu")
    config = pipe.config
    assert (config.resampler, config.channels, config.denoiser.latent_channels) == (None, 1, 1)
    assert (config.encoder_size, config.trained_cells, config.trained_aspects) == (16, (16, 16), (1, 1))
    assert (config.latent_mean, config.latent_std, config.background, config.fit) == ((0,), (1,), (0,), "contain")
    assert config.schedule.input_scale == 0.8
    latent = pipe.diffuse([3, "7"], seed=1)
    assert latent.tensor.shape == (2, 1, 16, 16)
    assert pipe.resample(latent, size=(40, 24)).shape == (2, 1, 40, 24)
    with Image.open(trained_on_pixels.parent / "run" / "denoiser" / "samples-000030.png") as sheet:
        assert sheet.width > 640 and sheet.height > 320


def test_what_training_cost_is_exported(trained, trained_on_pixels):
    small = Pipeline.from_pretrained(trained_on_pixels, device="cpu").config.training
    assert (small.images, small.steps) == (30 * 6, 30) and small.seconds > 0
    both = Pipeline.from_pretrained(trained, device="cpu").config.training
    cost = [load_state(trained.parent / "run" / stage).metadata["cost"] for stage in ("resampler", "denoiser")]
    assert asdict(both) == {key: cost[0][key] + cost[1][key] for key in cost[0]} and both.steps == 36


def test_operations_are_those_of_all_steps(trained_on_pixels):
    state = load_state(trained_on_pixels.parent / "run" / "denoiser")
    model = Pipeline.from_pretrained(trained_on_pixels, device="cpu").denoiser.requires_grad_(True)
    counts = []
    for side in (8, 16):
        with count_flops() as counter:
            tokens = model.condition(torch.eye(10)[:6])
            inputs = torch.zeros(6, 1, side, side), torch.full((6,), 0.5), grid_positions((side, side), 1.0)
            model(*inputs, (tokens,)).prediction.sum().backward()
        counts.append(counter.get_total_flops())
    # The first of 20 steps is counted for all of them: steps 1 and 21, both in the phase of small images.
    assert state.metadata["cost"]["operations"] == pytest.approx(30 * counts[0], rel=0.02)
    assert counts[1] > 4 * counts[0]  # attention is counted too


def test_a_run_that_began_without_counting_goes_on_and_its_cost_is_unknown(trained_on_pixels, images, tmp_path):
    state = load_state(trained_on_pixels.parent / "run" / "denoiser")
    del state.metadata["cost"]
    save_state(tmp_path / "run" / "denoiser", state)
    longer = PIXELS.replace("steps = 5", "steps = 7")
    train_denoiser.main(["--config", write(tmp_path, longer), "--data", images, "--out", str(tmp_path / "run")])
    assert load_state(tmp_path / "run" / "denoiser").metadata["step"] == 32
    export.main([str(tmp_path / "run"), str(tmp_path / "weights")])
    assert Pipeline.from_pretrained(tmp_path / "weights", device="cpu").config.training is None
