"""What a plan changes, that it can be read back as a recipe, and that its model of memory and operations predicts."""

from __future__ import annotations

import math

import pytest
import torch

from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, ResamplerRecipe, read_recipe
from train.profiling import plan, step_cost
from train.profiling.plan import CONFIGS, denoiser_of, stages_of
from train.profiling.plan_settings import SOME_PIXELS, adapted, images_of_step
from train.profiling.step_cost import GRID, LATTICE, Load, Stage, StageLoads, fitted, parts_of, rows_of

CPU = torch.device("cpu")
LOADS = (Load(1, 8**2, 4**2, 2), Load(2, 8**2, 4**2, 2))
BEYOND = Load(3, 40**2, 16**2, 12)
CROSS, R2IR = CONFIGS / "cifar10_resampler.toml", CONFIGS / "letters_resampler.toml"
NARROW = ["model.width=16", "model.heads=2", "model.encoder_blocks=1", "model.decoder_blocks=1"]
TINY = {
    CrossAttentionRecipe: (CROSS, [*NARROW, "model.harmonics=1", "model.latent_channels=4"]),
    ResamplerRecipe: (R2IR, [*NARROW, "model.encoder_harmonics=2", "model.features=4", "model.latent_channels=4"]),
}


def pair_of(kind: type):
    config, settings = TINY[kind]
    denoiser = read_recipe(DenoiserRecipe, denoiser_of(config), [*NARROW, "model.noise_width=16"])
    return read_recipe(kind, config, settings), denoiser


@pytest.fixture(scope="module", params=TINY, ids=["cross-attention", "r2ir"])
def stages(request):
    """Operations are counted. Memory is a known sum: what a process that ran other tests has free, a step this small
    fits into unseen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_cost, "MEASURED", LOADS)
        patch.setattr(Stage, "memory", lambda self, load: sum(self.terms.memory(load)))
        made = list(stages_of(*adapted(*pair_of(request.param), 256), CPU))
        for stage in made:
            stage.measure()
    return made


def test_operations_beyond_what_was_measured_are_predicted(stages):
    assert [stage.name for stage in stages] == ["resampler", "denoiser"]
    for stage in stages:
        assert stage.predicted(BEYOND)[1] == pytest.approx(stage.count_flops(BEYOND), rel=0.1)


@pytest.mark.parametrize("terms", [GRID, LATTICE])
def test_weights_of_a_known_sum_are_found(terms):
    terms_PK = rows_of(terms.operations, step_cost.COUNTED)
    weight_K = torch.zeros(terms_PK.shape[1], dtype=torch.float64)
    weight_K[[0, 2, 3]] = torch.tensor([3.0, 50.0, 0.5], dtype=torch.float64)
    found_K = fitted(terms_PK, terms_PK @ weight_K)
    beyond_K = rows_of(terms.operations, [BEYOND])[0]
    assert (beyond_K @ found_K).item() == pytest.approx((beyond_K @ weight_K).item(), rel=1e-6)


def test_no_weight_is_negative():
    terms_PK = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    weight_K = fitted(terms_PK, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert (weight_K >= 0).all() and weight_K[0] > 0


@pytest.mark.parametrize("size, cells, pixels_in", [(32, 8, 0), (64, 8, 0), (256, 32, 0), (1024, 64, SOME_PIXELS)])
def test_latents_and_pixels_of_a_size_with_cross_attention(size, cells, pixels_in):
    recipes = read_recipe(CrossAttentionRecipe, CROSS), read_recipe(DenoiserRecipe, denoiser_of(CROSS))
    first, second = adapted(*recipes, size)
    assert second.defaults.latent_size == (cells, cells)
    assert {phase.pixels_in for phase in first.optimisation.phases} == {pixels_in}
    assert 2 ** first.model.octaves[1] == size
    assert first.model.width % first.model.heads == second.model.width % second.model.heads == 0
    if size == 32:
        assert first == recipes[0] and second.model.width == recipes[1].model.width


@pytest.mark.parametrize("size, seen, cells", [(512, 64, 8), (1024, 128, 8), (2048, 256, 16), (8192, 1024, 64)])
def test_latents_and_densities_of_a_size(size, seen, cells):
    recipes = read_recipe(ResamplerRecipe, R2IR), read_recipe(DenoiserRecipe, denoiser_of(R2IR))
    first, second = adapted(*recipes, size)
    assert (first.decoder_size, first.encoder_size) == (size, seen)
    assert second.defaults.latent_size == (cells, cells)
    assert second.model.latent_channels == first.model.latent_channels
    assert first.shape_sampler.cells == second.shape_sampler.cells == (cells // 2, min(64, 2 * cells))
    if size == 1024:
        assert first == recipes[0] and second.model.width == recipes[1].model.width
    with pytest.raises(ValueError, match="--plan 1026: must be a multiple of 8, the recipe's decoder_size"):
        adapted(*recipes, 1026)


def test_a_denoiser_is_planned_with_the_recipe_beside_the_resamplers(tmp_path):
    assert denoiser_of(R2IR).name == "letters_r2id.toml"
    assert denoiser_of(tmp_path / "resampler.toml") == denoiser_of(tmp_path / "own.toml") == plan.DENOISER


def test_less_budget_takes_more_parts(stages):
    loads = StageLoads(Load(1, 1024, 64, 8), (Load(1, 1024, 64, 8),))
    needed = [step_cost.most_memory(stages[0], loads, n) for n in (1, 4, 12)]
    assert needed == sorted(needed)
    assert [parts_of(stages[0], loads, 12, 12, budget) for budget in needed] == [12, 3, 1]
    assert parts_of(stages[0], loads, 4, 12, needed[0]) == 4  # a step of fewer images than the batch
    with pytest.raises(ValueError, match=r"--budget-memory \S+: one image takes the resampler \S+; raise it"):
        parts_of(stages[0], loads, 12, 12, 0.5 * stages[0].state)


def test_a_step_of_the_denoiser_keeps_its_images():
    recipes = read_recipe(ResamplerRecipe, R2IR), read_recipe(DenoiserRecipe, denoiser_of(R2IR))
    assert images_of_step(recipes[0]) == recipes[0].optimisation.batch
    at_8, at_16 = (adapted(*recipes, size)[1] for size in (1024, 2048))
    assert images_of_step(at_8) == images_of_step(at_16) == at_8.cells_a_step // (64 * at_8.noise_per_image)
    assert at_8.cells_a_step == recipes[1].cells_a_step == at_16.cells_a_step // 4


def test_large_latents_take_fewer_images():
    loads = StageLoads(Load(1, 64, 0, 4), (Load(1, 64, 0, 4), Load(1, 64, 0, 8)))
    assert [load.batch for load in loads.at_most(8)] == [8, 2]
    assert [load.batch for load in loads.at_most(1)] == [1, 1]


@pytest.mark.parametrize("kind, size", [(CrossAttentionRecipe, 128), (ResamplerRecipe, 2048)])
def test_a_plan_reads_back_as_recipes(kind, size, tmp_path, monkeypatch):
    path, _ = TINY[kind]
    config, text = tmp_path / "tiny.toml", path.read_text(encoding="utf-8")
    width, heads = ("96", "3") if kind is CrossAttentionRecipe else ("160", "5")
    config.write_text(
        text.replace(f"width = {width}", "width = 16").replace(f"heads = {heads}", "heads = 2"), encoding="utf-8"
    )
    monkeypatch.setattr(Stage, "measure", lambda self: None)
    monkeypatch.setattr(Stage, "memory", lambda self, load: 1e6)
    monkeypatch.setattr(Stage, "count_flops", lambda self, load: 1e9)
    monkeypatch.setattr(Stage, "predicted", lambda self, load: (1e7 * load.batch, 1.1e9))
    settings, costs, errors, arguments = plan.plan(size, config, 0.2, CPU)
    rows = [(row["images a step"], row["images at once"]) for row in costs.plain()["rows"]]
    assert all(images % at_once == 0 and 1 < at_once < images for images, at_once in rows)  # what fits
    assert [round(row["error"], 3) for row in errors.plain()["rows"]] == [29.0, 0.1, 29.0, 0.1]
    changed = {row[1]: row[3] for row in settings.rows if row[0] == "resampler"}
    for recipe_type, path, (_, line) in zip(
        (kind, DenoiserRecipe), (config, plan.DENOISER), arguments.rows, strict=True
    ):
        recipe = read_recipe(recipe_type, path, [part.strip("' ") for part in line.split("--set ")[1:]])
        assert recipe.optimisation.accumulate > 1
        if recipe_type is kind:
            key = "training_size" if kind is CrossAttentionRecipe else "decoder_size"
            assert getattr(recipe, key) == size == int(changed[key])
            assert str(recipe.model.width) == changed["model.width"]
        if recipe_type is CrossAttentionRecipe:
            assert all(math.isqrt(phase.pixels_out) > 16 for phase in recipe.optimisation.phases)
