"""Recipes read into the models' own dataclasses, and what is wrong with one is said in a line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from r2id import R2ID, CrossAttentionR2IR
from r2id.config import Defaults
from r2id.denoisers import DENOISERS
from r2id.resamplers import RESAMPLERS
from train.data.buckets import ShapeSampler
from train.engine.recipe import (
    CrossAttentionRecipe,
    DenoiserRecipe,
    Optimisation,
    Phase,
    ResamplerRecipe,
    read_recipe,
    read_resampler_recipe,
)

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
EPOCH = 55_000  # training images


def read(path: Path):
    return read_resampler_recipe(path) if "_resampler" in path.stem else read_recipe(DenoiserRecipe, path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_its_model_can_be_built(path):
    recipe = read(path)
    models = DENOISERS if isinstance(recipe, DenoiserRecipe) else RESAMPLERS
    with torch.device("meta"):
        model = models[recipe.architecture][1](recipe.model)
    assert model.config == recipe.model


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.toml")) - set(CONFIGS.glob("*_resampler*"))))
def test_a_denoiser_has_a_resampler_of_its_name_that_knows_its_cells_or_needs_none(path):
    recipe = read(path)
    own = [read(other) for other in CONFIGS.glob("*_resampler*") if read(other).name == recipe.name]
    assert recipe.pixels != bool(own)
    low, high = recipe.shape_sampler.cells
    for fewest, most in (resampler.shape_sampler.cells for resampler in own):
        assert fewest <= low <= high <= most


def parameters(model_type: type, config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_type(config).parameters())


def test_the_published_resampler_is_as_published():
    recipe = read_recipe(CrossAttentionRecipe, CONFIGS / "published_resampler.toml")
    assert parameters(CrossAttentionR2IR, recipe.model) == pytest.approx(3.67e6, rel=0.01)
    model = recipe.model
    assert (model.latent_channels, model.width, model.heads) == (64, 192, 6)
    assert (model.encoder_blocks, model.decoder_blocks, model.cell_blocks) == (4, 4, 0)
    assert (model.attention, model.local, model.octaves) == ("linear", False, (-6, 9))
    assert {(phase.pixels_in, phase.pixels_out) for phase in recipe.optimisation.phases} == {(0, 0)}
    assert (recipe.jitter, recipe.outside_fraction, recipe.shape_sampler.cells, recipe.shape_sampler.p_square) == (
        "published",
        0.0,
        (4, 4),
        1.0,
    )
    forty_epochs(recipe.optimisation)


def test_the_published_denoiser_is_as_published():
    recipe = read_recipe(DenoiserRecipe, CONFIGS / "published_r2id.toml")
    model = replace(recipe.model, latent_channels=64, num_classes=10)  # as the script takes them from stage 1
    assert parameters(R2ID, model) == pytest.approx(10.39e6, rel=0.005)
    assert (model.width, model.heads, model.encoder_blocks, model.decoder_blocks) == (192, 6, 8, 8)
    assert (model.noise_width, model.gated, model.prediction_type, model.label_tokens) == (128, False, "epsilon", 1)
    assert (recipe.schedule.name, recipe.schedule.shift_power) == ("cosine", 0.0)
    assert (recipe.shape_sampler.cells, recipe.shape_sampler.p_square) == ((4, 4), 1.0)
    forty_epochs(recipe.optimisation)


def forty_epochs(optimisation):
    assert optimisation.steps * optimisation.batch == 40 * EPOCH
    assert optimisation.warmup * optimisation.batch == EPOCH
    assert [phase.rate for phase in optimisation.phases] == [(1e-3, 1e-5)]
    assert optimisation.ema == 0.999


PIXELS = """
name = "x"
pixels = true
training_size = 28
[[optimisation.phases]]
steps = 3
rate = [1e-3, 1]
"""
MINIMAL = 'name = "x"\n[[optimisation.phases]]\nsteps = 3\nrate = [1e-3, 1]\n'


def test_what_is_not_written_has_the_dataclasses_defaults(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL)
    recipe = read_recipe(DenoiserRecipe, path)
    assert recipe.defaults == Defaults() and recipe.optimisation.batch == 48
    assert recipe.optimisation.phases[0].rate == (1e-3, 1.0)
    path.write_text(MINIMAL + '[defaults]\nsteps = 7\nsampler = "ddim"\nlatent_size = [5, 6]\n')
    assert read_recipe(DenoiserRecipe, path).defaults == Defaults(steps=7, sampler="ddim", latent_size=(5, 6))


def test_a_recipe_in_pixel_space_trains_the_square_image_unless_its_shape_sampler_says_otherwise(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(PIXELS)
    recipe = read_recipe(DenoiserRecipe, path)
    assert recipe.shape_sampler == ShapeSampler(cells=(28, 28), p_square=1.0, p_anisotropic=0.0) and recipe.pixels
    path.write_text(PIXELS + "cells = [14, 14]\n[shape_sampler]\ncells = [16, 28]\n")
    recipe = read_recipe(DenoiserRecipe, path)
    assert recipe.shape_sampler == ShapeSampler(cells=(16, 28)) and recipe.optimisation.phases[0].cells == (14, 14)


def test_the_model_is_that_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setitem(DENOISERS, "strided", (StridedConfig, None))
    path = tmp_path / "recipe.toml"
    text = 'architecture = "strided"\n' + PIXELS.replace("28", "32") + "[defaults]\nlatent_size = [32, 16]\n"
    path.write_text(text + "[model]\nwidth = 5\n")
    assert read_recipe(DenoiserRecipe, path).model == StridedConfig(width=5)
    for wrong, message in (
        (text + "[model]\nheads = 5\n", "model: unknown keys 'heads', known are width"),
        (text.replace("= 32", "= 30"), r"shape_sampler: cells \(30, 30\) must be multiples of 8"),
        (text.replace("16]", "12]"), r"defaults.latent_size: cells \(32, 12\) must be multiples of 8"),
        (text.replace("rate", "cells = [16, 20]\nrate"), r"phases\[0\]: cells \(16, 20\) must be multiples of 8"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_recipe(DenoiserRecipe, path)


@dataclass(frozen=True)
class StridedConfig:
    width: int = 3
    size_multiple: ClassVar[int] = 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('colour = "red"\n' + MINIMAL, "unknown keys 'colour', known are name, "),
        (MINIMAL + "[model]\nwidht = 3\n", "model: unknown keys 'widht', known are "),
        (MINIMAL.replace("steps", "stpes"), r"optimisation.phases\[0\]: unknown keys 'stpes'"),
        (MINIMAL.replace("rate", "# rate"), r"optimisation.phases\[0\]: missing keys 'rate'"),
        ('name = "x"\n', "missing keys 'optimisation'"),
        (MINIMAL.replace("3", "0"), "optimisation: phases: there must be at least one, each of 1 step"),
        (MINIMAL.replace("= 3", '= "3"'), r"optimisation.phases\[0\].steps: must be int, not '3'"),
        (MINIMAL + "[shape_sampler]\ncells = [9, 4]\n", r"shape_sampler: cells \(9, 4\): must be"),
        (MINIMAL + '[model]\nprediction_type = "y"\n', "model: prediction_type 'y': must be"),
        ('architecture = "s9"\n' + MINIMAL, "architecture 's9': must be one of r2id"),
        (MINIMAL + '[defaults]\nsampler = "euler"\n', "defaults.sampler 'euler': must be one of ddim, dpm"),
        (MINIMAL.replace("name", "pixels = true\nname"), "training_size None: give it with pixels = true, and only"),
        (MINIMAL.replace("name", "training_size = 32\nname"), "training_size 32: give it with pixels = true"),
        (MINIMAL.replace("name", "warm_start = 1.5\nname"), "warm_start 1.5: must be 0…1"),
        (MINIMAL + "guide_only = true\n", "model.guide: learns in phases with guide_only = true; give both or neither"),
        (MINIMAL + "[model.guide]\nwidth = 8\nheads = 2\n", "model.guide: learns in phases with guide_only"),
        (MINIMAL + "[model.guide]\nwidth = 8\nheads = 3\n", "model: guide: width 8: must be a multiple of the 3 heads"),
        (MINIMAL + "cells = [9, 4]\n", r"cells \(9, 4\): must be \(fewest, most\)"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(DenoiserRecipe, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["perceptual", "adversarial"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lattice": 48}, r"phases\[0\].lattice 48: {name} needs a multiple of 32, at most decoder_size, 32"),
        ({"lattice": 64}, r"phases\[0\].lattice 64: {name} needs a multiple of 32, at most decoder_size, 32"),
        ({"lattice": 32, "p_square": 0.5}, r"phases\[0\].{name}: needs square frames; set shape_sampler.p_square"),
        ({"lattice": 32, "native": "true"}, r"phases\[0\].{name}: needs square frames"),
    ],
)
def test_windows_are_compared_in_square_frames(tmp_path, name, settings, message):
    path = tmp_path / "recipe.toml"
    text = "native_aspect = {native}\n{MINIMAL}{name} = 0.1\nlattice = {lattice}\n"
    text += "[shape_sampler]\np_square = {p_square}\n"
    values = {"MINIMAL": MINIMAL, "name": name, "native": "false", "p_square": 1.0}
    path.write_text(text.format(**values, lattice=32))
    assert getattr(read_recipe(ResamplerRecipe, path).optimisation.phases[0], name) == 0.1
    path.write_text(text.format(**values | settings))
    with pytest.raises(ValueError, match=message.format(name=name)):
        read_recipe(ResamplerRecipe, path)


def test_settings_take_the_place_of_what_is_written(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL + "[[optimisation.phases]]\nsteps = 4\nrate = [1e-3, 1e-4]\n")
    settings = [
        *("model.width=128", 'schedule.name = "sigmoid"', "optimisation.phases.1.steps=100", "warm_start=1"),
        *(
            "optimisation.phases.0.rate=[0.5, 0.25]",
            "optimisation.phases.0.rate.1 = 1e-2",
            "shape_sampler={p_square = 1}",
        ),
    ]
    recipe = read_recipe(DenoiserRecipe, path, settings)
    assert (recipe.model.width, recipe.schedule.name, recipe.warm_start) == (128, "sigmoid", 1.0)
    assert [phase.steps for phase in recipe.optimisation.phases] == [3, 100]
    assert recipe.optimisation.phases[0].rate == (0.5, 0.01) and recipe.shape_sampler.p_square == 1.0
    phases = read_recipe(DenoiserRecipe, path, ["optimisation.phases=[{steps=5, rate=[1, 1]}]"]).optimisation.phases
    assert [phase.steps for phase in phases] == [5]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.width", "--set model.width: must be KEY=VALUE, such as model.width=128"),
        ("=3", "--set =3: must be KEY=VALUE"),
        ("schedule.name=cosine", """not a TOML value; text needs quotes: --set 'schedule.name="cosine"'"""),
        ("optimisation.phases.1.steps=9", "optimisation.phases has 1 items, so a number from 0 must follow"),
        ("optimisation.phases.first.steps=9", "optimisation.phases has 1 items, so a number from 0 must follow"),
        ("optimisation.phases.steps=9", "optimisation.phases has 1 items, so a number from 0 must follow"),
        ("name.x=9", "--set name.x=9: name is 'x', nothing can follow it"),
        ("model.widht=9", "recipe.toml --set model.widht=9: model: unknown keys 'widht', known are "),
        ("modle.width=9", "recipe.toml --set modle.width=9: unknown keys 'modle', known are "),
        ("model.width=9.5", "recipe.toml --set model.width=9.5: model: width: must be int, not 9.5"),
        ("optimisation.phases.0.steps=0", "phases: there must be at least one, each of 1 step or more"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_in_one_line(tmp_path, setting, message):
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL)
    with pytest.raises(ValueError) as caught:
        read_recipe(DenoiserRecipe, path, [setting])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml: cannot be read \(No such file.*train/configs/ has the recipes"):
        read_recipe(CrossAttentionRecipe, tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(CrossAttentionRecipe, tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.toml: not valid TOML"):
        read_recipe(CrossAttentionRecipe, tmp_path / "binary.toml")


def test_rates_rise_and_then_fall_along_a_cosine_in_every_phase():
    phases = (Phase(steps=100, rate=(1.0, 0.5)), Phase(steps=50, rate=(0.2, 0.0)))
    plain = Optimisation(phases=phases, warmup=0)
    assert plain.steps == 150
    assert [plain.at(step)[0] for step in (0, 99, 100, 149)] == [phases[0], phases[0], phases[1], phases[1]]
    rates = [plain.at(step)[1] for step in range(150)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert (rates[0], rates[25], rates[50], rates[75]) == pytest.approx(
        (1.0, 0.75 + 0.125**0.5 / 2, 0.75, 0.57322), 1e-4
    )
    assert [rates[100], rates[125]] == pytest.approx([0.2, 0.1]) and rates[149] < 1e-3  # slow at both ends
    warm = Optimisation(phases=phases, warmup=10)
    assert [warm.at(step)[1] / rates[step] for step in (0, 4, 9, 120)] == pytest.approx([0.1, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": ()}, "phases"),
        ({"phases": (Phase(0, (1.0, 1.0)),)}, "1 step"),
        ({"batch": 0}, "batch 0, accumulate 1: must be 1"),
        ({"accumulate": 0}, "batch 48, accumulate 0: must be 1"),
        ({"precision": "float8"}, "precision 'float8': must be one of float32, bfloat16, auto"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Optimisation(**{"phases": (Phase(steps=7, rate=(0.02, 0.01)),), **options})
