"""Phases that learn through the sampler, in a run of the script."""

from __future__ import annotations

import shutil

import torch
from safetensors.torch import load_file, save_file
from scripts import DENOISER, metrics, write

from train import train_denoiser
from train.engine.state import load_state

ROLLOUT = """
[rollout]
epochs = 1
real = 3
steps = [2, 3]

[[rollout.phases]]
steps = {steps}
rate = [0.0, 0.0]
ema = 0.5
distill_cells = [3, 5]
"""


def test_a_rollout_phase_begins_with_the_averages_and_resumes(trained, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.parent / "run", run)
    before = load_state(run / "denoiser").part("ema")
    for steps in (1, 2):
        recipe = write(tmp_path, DENOISER + ROLLOUT.format(steps=steps))
        train_denoiser.main(["--config", recipe, "--data", images, "--out", str(run)])
        state = load_state(run / "denoiser")
        assert state.metadata["step"] == 6 + steps
        for name, value in state.part("model").items():  # a rate of 0 leaves what it began with
            torch.testing.assert_close(value, before[name])
    logged = metrics(run / "denoiser")
    assert {"energy", "read by critics"} <= logged[-1].keys() and logged[-1]["moved"] == 0
    teacher = load_file(run / "denoiser" / "teacher-0.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in teacher.items())


def test_what_a_rollout_phase_moves_is_measured_from_where_it_began(trained, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.parent / "run", run)
    state = load_state(run / "denoiser")
    began = {name: value + 0.1 for name, value in state.part("ema").items()}  # what a stopped run had written
    save_file(began, run / "denoiser" / "teacher-0.safetensors")
    recipe = write(tmp_path, DENOISER + ROLLOUT.format(steps=1))
    train_denoiser.main(["--config", recipe, "--data", images, "--out", str(run)])
    last = metrics(run / "denoiser")[-1]
    assert last["moved"] > 1e-4 and last["loss"] > 9 * last["moved"]
