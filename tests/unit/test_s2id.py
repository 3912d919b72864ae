from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from denoising import close, inputs, random_model

from r2id.denoisers.s2id import S2ID, AxialAttention, S2IDConfig
from r2id.position import Positions, fourier, jitter, points
from train.engine.recipe import DenoiserRecipe, read_recipe

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
TINY = S2IDConfig(
    latent_channels=3,
    num_classes=4,
    label_tokens=2,
    width=16,
    heads=2,
    encoder_blocks=2,
    decoder_blocks=1,
    noise_width=8,
)
VARIANTS = {"gated": TINY, "film": replace(TINY, gated=False, label_tokens=1)}


@pytest.fixture(params=VARIANTS)
def model(request) -> S2ID:
    return random_model(VARIANTS[request.param])


def reach(change, size: tuple[int, int], place: tuple[int, int]) -> torch.Tensor:
    """Which pixels (H, W) of `change(images (1, 3, H, W))` move with the pixel at `place`."""
    image_1CHW = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    moved_1CHW = image_1CHW.clone()
    moved_1CHW[:, :, place[0], place[1]] += 1
    return (change(moved_1CHW) - change(image_1CHW)).abs().amax(dim=(0, 1)) > 1e-6


def test_axial_attention_sees_the_row_and_the_column_and_nothing_else():
    axial = AxialAttention(3, heads=1).requires_grad_(False)
    size, place = (4, 5), (1, 3)
    cross = torch.zeros(size, dtype=torch.bool)
    cross[place[0]] = cross[:, place[1]] = True

    def once(image_1CHW):
        pixel_1MC = axial(image_1CHW.flatten(2).transpose(1, 2), size)
        return pixel_1MC.transpose(1, 2).unflatten(2, size)

    assert torch.equal(reach(once, size, place), cross)
    assert reach(lambda image: once(once(image)), size, place).all()


def test_axial_attention_is_the_sum_of_plain_attention_along_rows_and_along_columns():
    axial = AxialAttention(4, heads=2).requires_grad_(False)
    image_HWD = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected_HWD = axial.out.bias.expand(3, 5, 4).clone()
    for axis, lines_LSD in enumerate((image_HWD, image_HWD.transpose(0, 1))):
        part = slice(12 * axis, 12 * axis + 12)
        projected = lines_LSD @ axial.project.weight[part].T + axial.project.bias[part]
        query, key, value = (each.unflatten(-1, (2, 2)).transpose(1, 2) for each in projected.split(4, dim=-1))
        weights = torch.softmax(query @ key.transpose(-1, -2) / 2**0.5, dim=-1)
        mixed_LSD = (weights @ value).transpose(1, 2).flatten(2) @ axial.out.weight[:, 4 * axis : 4 * axis + 4].T
        expected_HWD += mixed_LSD.transpose(0, 1) if axis else mixed_LSD
    close(axial(image_HWD.flatten(0, 1)[None], (3, 5))[0].unflatten(0, (3, 5)), expected_HWD)


def test_rows_and_columns_share_no_weights():
    axial = AxialAttention(4, heads=2).requires_grad_(False)
    image_1HWD = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(0))

    def straight_and_turned():
        for pixels in (image_1HWD, image_1HWD.transpose(1, 2)):
            yield axial(pixels.flatten(1, 2), (3, 3)).unflatten(1, (3, 3))

    straight, turned = straight_and_turned()
    assert not torch.allclose(straight, turned.transpose(1, 2))
    for matrix in (axial.project.weight, axial.project.bias, axial.out.weight.T):
        rows, columns = matrix.unflatten(0, (2, -1))
        columns.copy_(rows)  # shared, they would not tell a row from a column
    straight, turned = straight_and_turned()
    close(straight, turned.transpose(1, 2))


def test_two_blocks_reach_every_pixel():
    model = random_model(replace(TINY, encoder_blocks=1))
    _, alpha_bar, positions, tokens = inputs(model, batch=1, size=(4, 5))
    assert reach(lambda image: model(image, alpha_bar, positions, [tokens]).prediction[0], (4, 5), (1, 3)).all()


def test_colour_and_coordinates_are_concatenated_through_one_projection(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    systems, embedding = (positions.absolute, positions.relative), model.position
    features = [fourier(system[:, axis], embedding.frequencies) for axis in (0, 1) for system in systems]
    concatenated = torch.cat((noisy.flatten(2).transpose(1, 2), torch.cat(features, -1).expand(2, -1, -1)), dim=-1)
    matrix = torch.cat((model.token_in.weight, embedding.x.weight, embedding.y.weight), dim=1)
    entered = []
    model.encoder[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    model(noisy, alpha_bar, positions, [tokens])
    close(entered[0], concatenated @ matrix.T + embedding.x.bias)


def test_points_are_taken_as_a_grid_is_and_may_be_jittered_by_row(model):
    noisy, alpha_bar, grid, tokens = inputs(model)
    centres = Positions(grid.absolute, grid.relative)
    expected = model(noisy, alpha_bar, grid, [tokens]).prediction
    close(model(noisy, alpha_bar, centres, [tokens]).prediction, expected)
    generator = torch.Generator().manual_seed(0)
    moved_BM2 = jitter(grid.absolute.expand(2, -1, -1), (1 / 4, 1 / 3), 0.5, generator)
    both = model(noisy, alpha_bar, points(moved_BM2, 4 / 3), [tokens]).prediction
    assert not torch.allclose(both, expected)
    for row in range(2):
        alone = model(noisy, alpha_bar, points(moved_BM2[row], 4 / 3), [tokens]).prediction
        close(alone[:, row], both[:, row])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_is_trained(config):
    model = random_model(config).requires_grad_(True)
    noisy, alpha_bar, positions, tokens = inputs(model)
    model(noisy, alpha_bar, positions, [tokens, None]).prediction.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert model.condition.table.grad[[0, 1, 4]].any(dim=2).all()  # two labels and null


def test_the_published_recipe_is_as_published():
    recipe = read_recipe(DenoiserRecipe, CONFIGS / "published_s2id.toml")
    model, optimisation = recipe.model, recipe.optimisation
    with torch.device("meta"):
        assert sum(p.numel() for p in S2ID(model).parameters()) == pytest.approx(6.1e6, rel=0.01)
    assert (model.width, model.heads, model.encoder_blocks, model.decoder_blocks) == (128, 8, 8, 8)
    assert (model.octaves, model.gated, model.prediction_type, model.jitter) == ((-3, 7), False, "epsilon", 0.5)
    assert (recipe.pixels, recipe.training_size, recipe.schedule.shift_power) == (True, 28, 0.0)
    assert (optimisation.batch, optimisation.warmup, optimisation.ema) == (25, 2400, 0.9995)
    assert optimisation.steps * optimisation.batch == 20 * 55_000  # epochs
    assert [phase.rate for phase in optimisation.phases] == [(1e-3, 1e-5)]


@pytest.mark.parametrize(
    "options",
    [
        {"latent_channels": 0},
        {"noise_width": 0},
        {"label_tokens": 0},
        {"encoder_blocks": 0},
        {"octaves": (1, 0)},
        {"width": 130, "heads": 4},
        {"jitter": -0.5},
    ],
)
def test_a_bad_config_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} .*must be"):
        S2IDConfig(**options)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="^prediction_type 'eps': must be one of v, epsilon, x0"):
        S2IDConfig(prediction_type="eps")
