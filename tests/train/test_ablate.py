"""The ablations: every row is a recipe, and what is trained once is not trained again."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from train import ablate, train_denoiser, train_resampler
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, read_recipe
from train.evaluation import ablation
from train.profiling import equal_time


@pytest.mark.parametrize(
    ("table", "kind", "config", "how"),
    [
        (ablation.RESAMPLER, CrossAttentionRecipe, "mnist_cross_attention_resampler.toml", {"pixels_out": 256}),
        (ablation.DENOISER, DenoiserRecipe, "mnist_r2id.toml", {}),
    ],
    ids=["resampler", "denoiser"],
)
def test_every_row_changes_the_recipe(table, kind, config, how):
    start = ablation.phase(10, **how)
    recipes = [read_recipe(kind, ablation.CONFIGS / config, start + lines) for lines in table.values()]
    assert len({repr(recipe) for recipe in recipes}) == len(table)
    assert all(recipe.optimisation.steps == 10 for recipe in recipes)


def test_edge_aligned_coordinates_keep_the_outermost_pixels_in_place():
    for side in (32, 100, 256):
        left, top, right, bottom = ablation.shift(side, 32)
        pitch = (right - left) / side
        assert left + pitch / 2 == pytest.approx(0.5 / 32) and right - pitch / 2 == pytest.approx(31.5 / 32)
        assert (left, right) == (top, bottom)


def in_this_process(command, cwd):
    """Instead of a process of its own, whose imports take longer than all the rest."""
    scripts = {"train.train_resampler": train_resampler, "train.train_denoiser": train_denoiser}
    scripts[command[2]].main(command[3:])
    return subprocess.Popen([sys.executable, "-c", ""], cwd=cwd)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(Popen=in_this_process))


def test_a_training_that_fails_is_named(tmp_path, monkeypatch):
    failing = SimpleNamespace(Popen=lambda command, cwd: subprocess.Popen([sys.executable, "-c", "exit(3)"]))
    monkeypatch.setattr(ablation, "subprocess", failing)
    with pytest.raises(ValueError, match="run: the training of its denoiser ended with status 3; the same command"):
        ablation.train("denoiser", "mnist_r2id.toml", tmp_path / "run", ablation.Data("data"), [])


def test_every_training_takes_the_column_of_the_labels(tmp_path, monkeypatch):
    commands = []

    def noted(command, cwd):
        commands.append(command)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(Popen=noted))
    for data in (ablation.Data("images", "breed"), ablation.Data("images")):
        ablation.train("resampler", "mnist_cross_attention_resampler.toml", tmp_path, data, [])
    given = [command[command.index("--data") :][:4] for command in commands]
    assert given[0] == ["--data", "images", "--label-column", "breed"] and "--label-column" not in commands[1]


def test_tables_are_kept_and_so_is_what_was_trained(images, tmp_path, monkeypatch, quick):
    small = ["model.width=24", "model.heads=2", "optimisation.batch=4"]
    first = [*small, "linear_codec_steps=3"]
    monkeypatch.setattr(ablation, "RESAMPLER", {"as shipped": first, "half": [*first, "model.harmonics=2"]})
    second = {"as shipped": small, "epsilon": [*small, 'model.prediction_type="epsilon"']}
    monkeypatch.setattr(ablation, "DENOISER", second)
    monkeypatch.setattr(ablation, "CELLS", ((4, 4),))
    command = ["--data", images, "--out", str(tmp_path), "--steps", "2", "--denoiser-steps", "2", "--generated", "20"]

    def run() -> tuple[dict, list[str]]:
        """When each state was written, and the tables."""
        ablate.main(command)
        states = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state.safetensors")}
        return states, [(tmp_path / f"{stage}.md").read_text(encoding="utf-8") for stage in ("resampler", "denoiser")]

    states, tables = run()
    assert len(states) == 4 and all("| as shipped |" in table for table in tables)
    assert "edge-aligned" in tables[0] and "| epsilon |" in tables[1] and "nan" not in "".join(tables)
    torch.manual_seed(1)
    assert run() == (states, tables)


def test_rows_of_equal_time_differ_in_one_thing_and_see_the_same_latents():
    config = str(ablation.CONFIGS / "letters_resampler.toml")
    rows = equal_time.recipes(config, 10, [])
    assert len({repr(recipe) for recipe in rows.values()}) == len(rows) == len(equal_time.R2IR) + 1
    assert all(recipe.optimisation.steps == 10 for recipe in rows.values())
    assert {recipe.model.latent_channels for recipe in rows.values()} == {24}
    cross = rows[equal_time.CROSS_ATTENTION]
    assert isinstance(cross, CrossAttentionRecipe) and cross.training_size == 128
    assert cross.model.octaves == (-2, 7) and cross.shape_sampler.cells == rows["as shipped"].shape_sampler.cells
    with pytest.raises(ValueError, match="of r2ir-cross-attention; give one of r2ir"):
        equal_time.recipes(str(ablation.CONFIGS / "mnist_cross_attention_resampler.toml"), 10, [])


def test_rows_train_for_as_many_steps_as_fit(images, tmp_path, monkeypatch):
    taken = {"r2ir": 0.5, "r2ir-cross-attention": 1.0}
    monkeypatch.setattr(equal_time, "TIMED", 1)
    for constant, value in (("CELLS", ((4, 4),)), ("DENSE_CELLS", (4, 4)), ("HELD", 6), ("DENSE", 3)):
        monkeypatch.setattr(equal_time, constant, value)
    measured = equal_time.step_seconds

    def constant_seconds(recipe, train):
        assert measured(recipe, train) > 0
        return taken[recipe.architecture]

    monkeypatch.setattr(equal_time, "step_seconds", constant_seconds)
    sizes = ["encoder_size=8", "decoder_size=32", "lattice=8", "model.width=24", "model.heads=2"]
    sizes += ["model.latent_channels=4", "optimisation.batch=4", "optimisation.precision='float32'"]
    command = ["--config", str(ablation.CONFIGS / "letters_resampler.toml"), "--data", images, "--out", str(tmp_path)]
    command += ["--seconds", "1", *ablation.settings(*sizes)]
    ablate.main(command)
    table = (tmp_path / "r2ir.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[4:]]
    assert [row[:2] for row in rows] == [*([what, "2"] for what in equal_time.R2IR), [equal_time.CROSS_ATTENTION, "1"]]
    assert "| 8 from 4×4 (dB) | against targets at 16 from 4×4 (dB) | kFLOP a point |" in table and "nan" not in table
    taken.clear()  # what is trained is not timed or trained again
    ablate.main(command)
    assert (tmp_path / "r2ir.md").read_text(encoding="utf-8") == table
