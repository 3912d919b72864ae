from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import denoising
import pytest
import torch
from denoising import close, random_model
from torch import nn

from r2id.denoisers.rin import RIN, RecurrentState, RINConfig, patch_centres
from r2id.position import Positions, grid_positions, jitter, points
from r2id.schedule import x0_from
from train.engine.recipe import DenoiserRecipe, read_recipe

RECIPES = Path(__file__).parents[2] / "train/configs"
TINY = RINConfig(
    latent_channels=3,
    num_classes=4,
    label_tokens=2,
    patch=2,
    interface_width=8,
    num_latents=5,
    latent_width=12,
    blocks=2,
    compute_layers=1,
    heads=2,
    mlp_ratio=2,
)
VARIANTS = {
    "plain": TINY,
    "unscaled": replace(TINY, normalise=False),
    "attention": replace(TINY, interface_attention=True),
    "pixels": replace(TINY, pixel_conditioning=True),
    "dual": replace(TINY, dual_norm=True),
    "all": replace(TINY, interface_attention=True, pixel_conditioning=True, dual_norm=True, prediction_type="epsilon"),
}
inputs = partial(denoising.inputs, size=(4, 6))


@pytest.fixture(params=VARIANTS)
def model(request) -> RIN:
    return random_model(VARIANTS[request.param])


def some_state(model: RIN, count: int, batch: int = 2, size: tuple[int, int] = (4, 6)) -> RecurrentState:
    rng = torch.Generator().manual_seed(1)
    estimate = torch.randn(count, batch, 3, *size, generator=rng) if model.config.pixel_conditioning else None
    return RecurrentState(torch.randn(count, batch, 5, 12, generator=rng), estimate)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_prediction_starts_at_zero(config):
    model = RIN(config)
    noisy, alpha_bar, positions, tokens = inputs(model)
    assert torch.equal(model(noisy, alpha_bar, positions, [tokens]).prediction, torch.zeros(1, *noisy.shape))


def test_a_warm_start_is_a_cold_one_until_its_norm_moves():
    torch.manual_seed(0)
    model = RIN(TINY).requires_grad_(False)
    torch.nn.init.normal_(model.out.weight)
    noisy, alpha_bar, positions, tokens = inputs(model)
    cold = model(noisy, alpha_bar, positions, [tokens])
    assert torch.equal(model(noisy, alpha_bar, positions, [tokens], cold.recurrent_state).prediction, cold.prediction)
    model.self_conditioning_norm.weight.fill_(0.5)
    assert differ(model(noisy, alpha_bar, positions, [tokens], cold.recurrent_state).prediction, cold.prediction)


def test_the_latents_start_where_the_state_says():
    model = random_model(TINY)
    noisy, alpha_bar, positions, tokens = inputs(model)
    recurrent_state, seen = some_state(model, 1), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    model(noisy, alpha_bar, positions, [tokens], recurrent_state)
    model(noisy, alpha_bar, positions, [tokens])
    for tokens_BND, before in zip(seen, (recurrent_state.latents[0], torch.zeros(2, 5, 12)), strict=True):
        close(tokens_BND[:, :5], model.latents + model.self_conditioning_norm(model.self_conditioning(before)))
        close(tokens_BND[:, 5], model.noise_embedding(alpha_bar))
        close(tokens_BND[:, 6:], tokens)


@pytest.mark.parametrize("size", [(2, 2), (4, 10), (12, 2), (16, 16)])
def test_any_size_and_any_number_of_conditions(model, size):
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    for conditions in ([None], [tokens, None], [tokens, None, tokens.flip(0)]):
        output = model(noisy, alpha_bar, positions, conditions)
        again = model(noisy, alpha_bar, positions, conditions, output.recurrent_state)
        for step in (output, again):
            assert step.prediction.shape == (len(conditions), *noisy.shape) and step.prediction.isfinite().all()
            assert step.recurrent_state.latents.shape == (len(conditions), 2, 5, 12)  # whatever the size of the image
        assert differ(output.prediction, again.prediction)


@pytest.mark.parametrize("size", [(5, 4), (4, 7)])
def test_a_size_between_patches_is_refused(size):
    model = random_model(TINY)
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    with pytest.raises(ValueError, match=f"^size {size[0]} x {size[1]}: .*multiples of the patch, 2$"):
        model(noisy, alpha_bar, positions, [tokens])


@pytest.mark.parametrize("warm", [False, True])
def test_conditions_together_equal_conditions_apart(model, warm):
    noisy, alpha_bar, positions, tokens = inputs(model)
    recurrent_state = some_state(model, 2)
    together = model(noisy, alpha_bar, positions, [tokens, None], recurrent_state if warm else None)
    for k, condition in enumerate((tokens, None)):
        own = RecurrentState(
            recurrent_state.latents[k : k + 1],
            None if recurrent_state.estimate is None else recurrent_state.estimate[k : k + 1],
        )
        apart = model(noisy, alpha_bar, positions, [condition], own if warm else None)
        close(apart.prediction[0], together.prediction[k])
        close(apart.recurrent_state.latents[0], together.recurrent_state.latents[k])
        if recurrent_state.estimate is not None:
            close(apart.recurrent_state.estimate[0], together.recurrent_state.estimate[k])
    assert differ(*together.prediction) and differ(*together.recurrent_state.latents)


def test_a_row_alone_equals_the_row_in_the_batch(model):
    noisy, alpha_bar, positions, tokens = inputs(model, batch=3)
    batch = model(noisy, alpha_bar, positions, [tokens, None])
    row = model(noisy[1:2], alpha_bar[1:2], positions, [tokens[1:2], None])
    close(row.prediction, batch.prediction[:, 1:2])
    close(row.recurrent_state.latents, batch.recurrent_state.latents[:, 1:2])


def test_the_parts_run_in_order():
    model, calls = random_model(replace(TINY, interface_attention=True)), []
    for index, block in enumerate(model.blocks):
        for name in ("read", "compute", "interface_attention", "write"):
            part = getattr(block, name)
            part.register_forward_hook(lambda *_, index=index, name=name: calls.append((index, name)))
    noisy, alpha_bar, positions, tokens = inputs(model)
    model(noisy, alpha_bar, positions, [tokens])
    assert calls == [(index, name) for index in (0, 1) for name in ("read", "compute", "interface_attention", "write")]


def test_the_interface_learns_of_the_latents_only_from_what_is_written(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    others = model(noisy, 1 - alpha_bar, positions, [tokens.flip(0)]).prediction
    assert differ(model(noisy, alpha_bar, positions, [tokens]).prediction, others)
    for block in model.blocks:
        block.write.cross_attention.out.weight.zero_()
    deaf = [model(noisy, a, positions, [c]).prediction for a, c in ((alpha_bar, tokens), (1 - alpha_bar, None))]
    close(*deaf)


def test_the_latents_learn_of_the_image_only_from_what_is_read():
    model = random_model(TINY)
    noisy, alpha_bar, positions, tokens = inputs(model)
    seen, other = (model(x, alpha_bar, positions, [tokens]).recurrent_state.latents for x in (noisy, noisy.flip(0)))
    assert differ(seen, other)
    for block in model.blocks:
        block.read.cross_attention.out.weight.zero_()
    close(*(model(x, alpha_bar, positions, [tokens]).recurrent_state.latents for x in (noisy, noisy.flip(0))))


def test_a_normalised_input_has_no_scale():
    for config, same in ((TINY, True), (VARIANTS["unscaled"], False)):
        model = random_model(config)
        noisy, alpha_bar, positions, tokens = inputs(model)
        scale = torch.tensor([0.3, 5.0]).view(2, 1, 1, 1)
        once, scaled = (model(x, alpha_bar, positions, [tokens]).prediction for x in (noisy, noisy * scale))
        assert differ(once, scaled) != same
    model = random_model(TINY)
    assert model(torch.ones_like(noisy), alpha_bar, positions, [tokens]).prediction.isfinite().all()


def influence(config: RINConfig) -> torch.Tensor:
    """How far the first patch's prediction moves as the last patch's input does, nothing being written to either."""
    model = random_model(replace(config, normalise=False))
    for block in model.blocks:
        block.write.cross_attention.out.weight.zero_()
    noisy, alpha_bar, positions, tokens = inputs(model)
    other = noisy.clone()
    other[..., -2:, -2:] += 1
    first, second = (model(x, alpha_bar, positions, [tokens]).prediction for x in (noisy, other))
    return (first - second)[..., :2, :2].abs().max()


def test_only_interface_attention_passes_patches_each_other():
    assert influence(TINY) == 0
    assert influence(VARIANTS["attention"]) > 1e-3


@pytest.mark.parametrize("prediction_type", ["v", "epsilon", "x0"])
def test_pixel_conditioning_carries_the_estimate_of_x0(prediction_type):
    model = random_model(replace(TINY, pixel_conditioning=True, prediction_type=prediction_type))
    noisy, alpha_bar, positions, tokens = inputs(model)
    output = model(noisy, alpha_bar, positions, [tokens, None])
    for prediction, estimate in zip(output.prediction, output.recurrent_state.estimate, strict=True):
        close(estimate, x0_from(prediction_type, prediction, noisy, alpha_bar).clamp(-3, 3))
    moved = replace(output.recurrent_state, estimate=-output.recurrent_state.estimate)
    differing = [
        model(noisy, alpha_bar, positions, [tokens, None], c).prediction for c in (output.recurrent_state, moved)
    ]
    assert differ(*differing)
    assert random_model(TINY)(noisy, alpha_bar, positions, [tokens]).recurrent_state.estimate is None


def test_dual_norm_forgets_a_patch_s_brightness_and_contrast():
    for config, same in ((VARIANTS["dual"], True), (TINY, False)):
        model = random_model(replace(config, normalise=False))
        noisy, alpha_bar, positions, tokens = inputs(model)
        other = noisy.clone()
        other[..., :2, :2] = other[..., :2, :2] * 3 + 0.5
        assert differ(*(model(x, alpha_bar, positions, [tokens]).prediction for x in (noisy, other))) != same


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("warm", [False, True])
def test_every_parameter_is_trained(config, warm):
    model = random_model(config).requires_grad_(True)
    noisy, alpha_bar, positions, tokens = inputs(model)
    recurrent_state = some_state(model, 2) if warm else None
    model(noisy, alpha_bar, positions, [tokens, None], recurrent_state).prediction.square().sum().backward()
    untouched = (
        ("self_conditioning.",) if not warm else ()
    )  # but never without a gradient, which data-parallel training needs
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad.abs().max() > 0 or name.startswith(untouched)), name


def test_a_patch_lies_in_the_middle_of_its_pixels():
    pixels = grid_positions((4, 6), 1.5, sigma=0.5)
    centres, expected = patch_centres(pixels, (4, 6), 2), grid_positions((2, 3), 1.5)
    assert centres.grid == expected.grid
    close(centres.absolute, expected.absolute)
    close(centres.relative, expected.relative)
    close(torch.tensor(centres.ipe_sigma), torch.tensor(pixels.ipe_sigma) / 2)
    loose = patch_centres(points(pixels.absolute.expand(2, -1, -1), 1.5), (4, 6), 2)
    assert loose.grid is None and loose.ipe_sigma is None
    close(loose.relative, expected.relative.expand(2, -1, -1))


def test_integrated_encoding_is_the_mean_over_the_jitter():
    model = random_model(TINY)
    sigma, size = 0.5, (4, 4)
    pixels, rng = grid_positions(size, 1.0, sigma=sigma), torch.Generator().manual_seed(0)
    moved = jitter(pixels.absolute.expand(20_000, -1, -1), (0.25, 0.25), sigma, rng)
    mean = model.patch_position(patch_centres(points(moved, 1.0), size, 2)).mean(dim=0)
    smooth, sharp = (
        model.patch_position(patch_centres(p, size, 2)).flatten(0, 1) for p in (pixels, grid_positions(size, 1.0))
    )
    assert (smooth - mean).abs().max() < 0.03 < (sharp - mean).abs().max()


def test_positions_may_differ_by_row(model):
    noisy, alpha_bar, square, tokens = inputs(model)
    wide = grid_positions((4, 6), 3.0)
    both = (torch.stack(pair) for pair in ((square.absolute, wide.absolute), (square.relative, wide.relative)))
    mixed = model(noisy, alpha_bar, Positions(*both), [tokens, None]).prediction
    for row, positions in enumerate((square, wide)):
        close(mixed[:, row], model(noisy, alpha_bar, positions, [tokens, None]).prediction[:, row])


def test_the_noise_level_matters_and_its_ends_are_finite(model):
    noisy, _, positions, tokens = inputs(model)
    ends = [model(noisy, torch.full((2,), a), positions, [tokens]) for a in (0.0, 0.5, 1.0)]
    assert all(end.prediction.isfinite().all() for end in ends) and differ(ends[0].prediction, ends[1].prediction)
    if model.config.pixel_conditioning:
        assert all(end.recurrent_state.estimate.abs().max() <= 3 for end in ends)


@pytest.mark.parametrize(
    "name, channels, labels, millions",
    [("published_rin", 3, 102, 105.95), ("published_rin_celeba", 3, 0, 4.166), ("mnist_rin", 1, 10, 1.689)],
)
def test_the_sizes_of_the_recipes(name, channels, labels, millions):
    """No count of parameters was published for these sizes, so the counts are this code's own."""
    recipe = read_recipe(DenoiserRecipe, RECIPES / f"{name}.toml")
    config = replace(recipe.model, latent_channels=channels, num_classes=labels)
    with torch.device("meta"):
        assert parameters(RIN(config)) == pytest.approx(millions * 1e6, rel=0.001)
    assert recipe.pixels and recipe.warm_start == 0.9


def test_the_published_blocks():
    """The smaller port's blocks are torch's own attention and feed-forwards of four times the width, which can be
    counted; what comes before and after them differs by positions, class and warm start."""

    def layer(width: int, context: int) -> int:
        attention = nn.MultiheadAttention(width, 4, kdim=context, vdim=context)
        return parameters(attention) + 8 * width**2 + 5 * width + 2 * 2 * width  # feed-forward, two norms

    recipe = read_recipe(DenoiserRecipe, RECIPES / "published_rin_celeba.toml")
    with torch.device("meta"):
        published = 2 * (layer(256, 128) + layer(256, 256) + layer(128, 256))
        assert parameters(RIN(recipe.model).blocks) == pytest.approx(published, rel=0.001)


@pytest.mark.parametrize(
    "options",
    [
        {"latent_channels": 0},
        {"patch": 0},
        {"num_latents": 0},
        {"compute_layers": 0},
        {"prediction_type": "eps"},
        {"octaves": (1, 0)},
        {"jitter": -0.5},
    ],
)
def test_a_bad_config_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} .*must be"):
        RIN(RINConfig(**options))
