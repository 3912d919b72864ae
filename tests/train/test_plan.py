"""What a plan changes, that it can be read back as a recipe, and that its model of memory and operations predicts."""

from __future__ import annotations

import math

import pytest
import torch

from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, read_recipe
from train.profiling import plan
from train.profiling.plan import (
    RESAMPLER,
    Load,
    Shapes,
    Stage,
    adapted,
    fitted,
    images_at_once,
    losses_of,
    memory_terms,
    operation_terms,
    terms_of,
)

CPU = torch.device("cpu")
TINY = ["model.width=16", "model.heads=2", "model.harmonics=1", "model.latent_channels=4", "model.encoder_blocks=1"]
LOADS = (Load(1, 8**2, 16, 2), Load(2, 8**2, 16, 2))
BEYOND = Load(3, 40**2, 256, 12)


@pytest.fixture(scope="module")
def recipes():
    first = read_recipe(CrossAttentionRecipe, RESAMPLER, TINY)
    small = ["model.width=16", "model.heads=2", "model.noise_width=16", "model.encoder_blocks=1"]
    second = read_recipe(DenoiserRecipe, plan.DENOISER, [*small, "model.decoder_blocks=1"])
    return first, second


@pytest.fixture(scope="module")
def stages(recipes):
    """Operations are counted. Memory is a known sum: what a process that ran other tests has free, a step this small
    fits into unseen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MEASURED", LOADS)
        patch.setattr(Stage, "memory", lambda self, load: terms_of(memory_terms, [load], self.grid).sum().item())
        pair = adapted(*recipes, 32)
        made = [Stage(name, *parts, grid=True, device=CPU) for name, parts in zip("rd", losses_of(*pair), strict=True)]
        for stage in made:
            stage.measure()
    return made


def test_operations_beyond_what_was_measured_are_predicted(stages):
    for stage in stages:
        assert stage.predicted(BEYOND)[1] == pytest.approx(stage.count_flops(BEYOND), rel=0.1)


def test_weights_of_a_known_sum_are_found():
    terms_PK = terms_of(operation_terms, plan.COUNTED, True)
    weight_K = torch.zeros(terms_PK.shape[1], dtype=torch.float64)
    weight_K[[0, 2, 3]] = torch.tensor([3.0, 50.0, 0.5], dtype=torch.float64)
    found_K = fitted(terms_PK, terms_PK @ weight_K)
    beyond_K = terms_of(operation_terms, [BEYOND], True)[0]
    assert (beyond_K @ found_K).item() == pytest.approx((beyond_K @ weight_K).item(), rel=1e-6)


def test_no_weight_is_negative():
    terms_PK = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    weight_K = fitted(terms_PK, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert (weight_K >= 0).all() and weight_K[0] > 0


@pytest.mark.parametrize("size, cells, pixels_in", [(32, 8, 0), (64, 8, 0), (256, 32, 0), (1024, 64, plan.SOME_PIXELS)])
def test_latents_and_pixels_of_a_size(size, cells, pixels_in):
    recipes = read_recipe(CrossAttentionRecipe, RESAMPLER), read_recipe(DenoiserRecipe, plan.DENOISER)
    first, second = adapted(*recipes, size)
    assert second.defaults.latent_size == (cells, cells)
    assert {phase.pixels_in for phase in first.optimisation.phases} == {pixels_in}
    assert 2 ** first.model.octaves[1] == size
    assert first.model.width % first.model.heads == second.model.width % second.model.heads == 0
    if size == 32:
        assert first == recipes[0] and second.model.width == recipes[1].model.width


def test_more_budget_takes_more_images(stages):
    shapes = Shapes(Load(1, 1024, 64, 8), (Load(1, 1024, 64, 8),))
    needed = [plan.most_memory(stages[0], shapes, n) for n in (1, 4, 12)]
    assert needed == sorted(needed)
    assert [images_at_once(stages[0], shapes, 12, budget) for budget in needed] == [1, 4, 12]
    with pytest.raises(ValueError, match=r"--budget-memory \S+: one image takes the r \S+; raise it"):
        images_at_once(stages[0], shapes, 12, 0.5 * stages[0].state)


def test_large_latents_take_fewer_images():
    shapes = Shapes(Load(1, 64, 0, 4), (Load(1, 64, 0, 4), Load(1, 64, 0, 8)))
    assert [load.batch for load in shapes.at_most(8)] == [8, 2]
    assert [load.batch for load in shapes.at_most(1)] == [1, 1]


def test_a_plan_reads_back_as_recipes(tmp_path, monkeypatch):
    config = tmp_path / "tiny.toml"
    text = RESAMPLER.read_text(encoding="utf-8")
    config.write_text(text.replace("width = 96", "width = 16").replace("heads = 3", "heads = 2"), encoding="utf-8")
    monkeypatch.setattr(Stage, "measure", lambda self: None)
    monkeypatch.setattr(Stage, "memory", lambda self, load: 1e6)
    monkeypatch.setattr(Stage, "count_flops", lambda self, load: 1e9)
    monkeypatch.setattr(Stage, "predicted", lambda self, load: (1e7 * load.batch, 1.1e9))
    settings, costs, errors, arguments = plan.plan(128, config, 0.2, CPU)
    images = [row["images at once"] for row in costs.plain()["rows"]]
    assert images[0] == 16 and 96 % images[1] == 0 and images[1] < 16  # what fits, a divisor of the batch
    assert [round(row["error"], 3) for row in errors.plain()["rows"]] == [29.0, 0.1, 29.0, 0.1]
    changed = {row[1]: row[3] for row in settings.rows if row[0] == "resampler"}
    for kind, path, (_, line) in zip(
        (CrossAttentionRecipe, DenoiserRecipe), (config, plan.DENOISER), arguments.rows, strict=True
    ):
        recipe = read_recipe(kind, path, [part.strip("' ") for part in line.split("--set ")[1:]])
        assert recipe.optimisation.accumulate > 1
        if kind is CrossAttentionRecipe:
            assert recipe.training_size == 128 and str(recipe.model.width) == changed["model.width"]
            assert all(math.isqrt(phase.pixels_out) > 16 for phase in recipe.optimisation.phases)
