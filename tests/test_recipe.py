"""Recipes read into the models' own dataclasses, and what is wrong with one is said in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r2id import R2ID, R2IR
from r2id.pipeline import Defaults
from train.recipe import DenoiserRecipe, ResamplerRecipe, read_recipe

CONFIGS = Path(__file__).parents[1] / "train" / "configs"
EPOCH = 55_000  # training images


def kind_of(path: Path) -> type:
    return ResamplerRecipe if path.stem.endswith("_resampler") else DenoiserRecipe


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_its_model_can_be_built(path):
    recipe = read_recipe(kind_of(path), path)
    with torch.device("meta"):
        model = R2IR(recipe.model) if kind_of(path) is ResamplerRecipe else R2ID(recipe.model)
    assert model.config == recipe.model
    stages = [read_recipe(kind_of(other), other) for other in CONFIGS.glob(f"{recipe.name}_*.toml")]
    assert {stage.name for stage in stages} == {recipe.name}  # both stages are one run
    assert {type(stage) for stage in stages} == {ResamplerRecipe, DenoiserRecipe}
    assert len({stage.law.cells for stage in stages}) == 1


def parameters(model_type: type, config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_type(config).parameters())


def test_the_published_resampler_is_as_published():
    recipe = read_recipe(ResamplerRecipe, CONFIGS / "published_resampler.toml")
    assert parameters(R2IR, recipe.model) == pytest.approx(3.67e6, rel=0.01)
    model = recipe.model
    assert (model.latent_channels, model.width, model.heads) == (64, 192, 6)
    assert (model.encoder_blocks, model.decoder_blocks, model.cell_blocks) == (4, 4, 0)
    assert (model.attention, model.local, model.octaves) == ("linear", False, (-6, 9))
    assert (recipe.jitter, recipe.margin, recipe.law.cells, recipe.law.square) == ("published", 0.0, (4, 4), 1.0)
    forty_epochs(recipe.optimisation)


def test_the_published_denoiser_is_as_published():
    recipe = read_recipe(DenoiserRecipe, CONFIGS / "published_r2id.toml")
    model = replace(recipe.model, latent_channels=64, labels=10)  # as the script takes them from stage 1
    assert parameters(R2ID, model) == pytest.approx(10.39e6, rel=0.005)
    assert (model.width, model.heads, model.encoder_blocks, model.decoder_blocks) == (192, 6, 8, 8)
    assert (model.noise_width, model.gated, model.objective, model.label_tokens) == (128, False, "epsilon", 1)
    assert (recipe.schedule.name, recipe.schedule.shift_power) == ("cosine", 0.0)
    assert (recipe.law.cells, recipe.law.square) == ((4, 4), 1.0)
    forty_epochs(recipe.optimisation)


def forty_epochs(optimisation):
    assert optimisation.steps * optimisation.batch == 40 * EPOCH
    assert optimisation.warmup * optimisation.batch == EPOCH
    assert [phase.rate for phase in optimisation.phases] == [(1e-3, 1e-5)]
    assert {(phase.pixels_in, phase.pixels_out) for phase in optimisation.phases} == {(0, 0)}
    assert optimisation.ema == 0.999


MINIMAL = 'name = "x"\n[[optimisation.phases]]\nsteps = 3\nrate = [1e-3, 1]\n'


def test_what_is_not_written_has_the_dataclasses_defaults(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL)
    recipe = read_recipe(DenoiserRecipe, path)
    assert recipe.defaults == Defaults() and recipe.optimisation.batch == 48
    assert recipe.optimisation.phases[0].rate == (1e-3, 1.0)
    path.write_text(MINIMAL + '[defaults]\nsteps = 7\nsampler = "ddim"\nlatent_size = [5, 6]\n')
    assert read_recipe(DenoiserRecipe, path).defaults == Defaults(steps=7, sampler="ddim", latent_size=(5, 6))


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
        (MINIMAL + "[law]\ncells = [9, 4]\n", r"law: cells \(9, 4\): must be"),
        (MINIMAL + '[model]\nobjective = "y"\n', "model: objective 'y': must be"),
        ('system = "s9"\n' + MINIMAL, "system 's9': must be one of r2id"),
        (MINIMAL + '[defaults]\nsampler = "euler"\n', "defaults.sampler 'euler': must be one of ddim, dpm"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(DenoiserRecipe, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_not_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml: cannot be read \(No such file.*train/configs/ has the recipes"):
        read_recipe(ResamplerRecipe, tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(ResamplerRecipe, tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.toml: not valid TOML"):
        read_recipe(ResamplerRecipe, tmp_path / "binary.toml")
