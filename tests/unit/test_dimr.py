from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import denoising
import pytest
import torch
from denoising import close, random_model
from torch import Tensor, nn

from r2id.denoisers.dimr import DiMR, DiMRConfig, LongSkips, TimeDependentNorm
from r2id.position import Positions, grid_positions, jitter, patch_centres, points
from train.engine.flops import count_flops
from train.engine.recipe import DenoiserRecipe, read_recipe

TINY = DiMRConfig(
    latent_channels=3, num_classes=4, label_tokens=2, patches=(4, 2), widths=(16, 8), blocks=(3, 2), heads=2, kernel=3
)
VARIANTS = {
    "two": TINY,
    "three": replace(TINY, patches=(4, 2, 1), widths=(16, 12, 8), blocks=(2, 1, 2)),
    "one": replace(TINY, patches=(2,), widths=(16,), blocks=(2,)),
}
CONFIGS = Path(__file__).parents[2] / "train" / "configs"
inputs = partial(denoising.inputs, size=(8, 12))


@pytest.fixture(params=VARIANTS)
def model(request) -> DiMR:
    return random_model(VARIANTS[request.param])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_prediction_starts_at_zero(config):
    model = DiMR(config)
    noisy, alpha_bar, positions, tokens = inputs(model)
    output = model(noisy, alpha_bar, positions, [tokens])
    assert all(not prediction.any() for prediction in (output.prediction, *output.pyramid))


@pytest.mark.parametrize(("variant", "scales"), [("two", [2]), ("three", [4, 2]), ("one", [])])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (12, 4)])
def test_a_pyramid_of_every_coarser_scale(variant, scales, size):
    model = random_model(VARIANTS[variant])
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    for conditions in ([None], [tokens], [tokens, None, tokens.flip(0)]):
        output = model(noisy, alpha_bar, positions, conditions)
        assert output.prediction.shape == (len(conditions), *noisy.shape) and output.prediction.isfinite().all()
        height, width = size
        shapes = [(len(conditions), 2, 3, height // k, width // k) for k in scales]
        assert [prediction.shape for prediction in output.pyramid] == shapes
        assert output.recurrent_state is None


@pytest.mark.parametrize("size", [(8, 10), (6, 8), (3, 3)])
def test_a_size_that_is_no_multiple_is_refused_in_a_line(size):
    model = random_model(TINY)
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    with pytest.raises(ValueError, match=r"^size \(\d+, \d+\): height and width must be multiples of 4.*$") as error:
        model(noisy, alpha_bar, positions, [tokens])
    assert "\n" not in str(error.value)


def test_conditions_together_equal_conditions_apart(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    together = model(noisy, alpha_bar, positions, [tokens, None])
    apart = [model(noisy, alpha_bar, positions, [condition]) for condition in (tokens, None)]
    close(together.prediction, torch.cat([output.prediction for output in apart]))
    for level, prediction in enumerate(together.pyramid):
        close(prediction, torch.cat([output.pyramid[level] for output in apart]))
    assert not torch.allclose(*together.prediction)
    close(model(noisy, alpha_bar, positions, [model.condition.null(2)]).prediction, apart[1].prediction)


def test_a_row_alone_equals_the_row_in_the_batch(model):
    noisy, alpha_bar, positions, tokens = inputs(model, batch=3)
    batch = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    row = model(noisy[1:2], alpha_bar[1:2], positions, [tokens[1:2], None]).prediction
    close(row, batch[:, 1:2])


def test_the_noise_level_matters_at_every_scale_and_its_ends_are_finite(model):
    noisy, _, positions, tokens = inputs(model)
    ends = [model(noisy, torch.full((2,), a), positions, [tokens]) for a in (0.0, 0.5, 1.0)]
    for predictions in zip(*((end.prediction, *end.pyramid) for end in ends), strict=True):
        assert all(prediction.isfinite().all() for prediction in predictions)
        assert not torch.allclose(predictions[0], predictions[1])


def test_the_norm_goes_from_one_pair_of_parameters_to_the_other():
    torch.manual_seed(0)
    norm = TimeDependentNorm(6).requires_grad_(False)
    tokens = torch.randn(1, 5, 6)
    normed = nn.functional.layer_norm(tokens, (6,))
    close(norm(tokens, torch.tensor([1.0])), normed)  # at first it is a plain LayerNorm, whatever the noise
    for parameter in (norm.clean, norm.noise, norm.offset):
        nn.init.normal_(parameter)
    for time, (scale, shift) in ((100.0, norm.clean), (-100.0, norm.noise)):
        close(norm(tokens, torch.tensor([time])), normed * scale + shift)
    norm.slope[0, 0], norm.slope[1, 3] = 2.0, -1.0
    mix = torch.sigmoid(norm.slope * 0.5 + norm.offset)
    assert len(mix.unique()) == mix.numel()  # every channel has its own course
    scale, shift = norm.noise + mix * (norm.clean - norm.noise)
    close(norm(tokens, torch.tensor([0.5])), normed * scale + shift)
    apart = [norm(tokens, torch.tensor([time])) for time in (0.5, -2.0)]
    close(norm(tokens.repeat(2, 1, 1), torch.tensor([0.5, -2.0])), torch.cat(apart))


def test_time_is_log_snr_over_four():
    """Liu et al.'s scale: most of the change lies where signal and noise are within e^16 of each other."""
    model, seen = random_model(TINY), []
    model.heads[-1].norm.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    noisy, alpha_bar, positions, tokens = inputs(model)
    model(noisy, alpha_bar, positions, [tokens, None])
    close(seen[0], (torch.log(alpha_bar / (1 - alpha_bar)) / 4).repeat(2))


@pytest.mark.parametrize("variant", ["two", "three"])
def test_the_label_reaches_the_last_branch_by_the_cascade_alone(variant):
    model = random_model(VARIANTS[variant])
    noisy, alpha_bar, positions, tokens = inputs(model)
    whole = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    assert not torch.allclose(*whole)
    model.transformer.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    cut = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    assert not torch.allclose(whole, cut)
    assert torch.equal(*cut)


class Add(nn.Module):
    """Stands for a block: adds a number and keeps what came in."""

    def __init__(self, number: float, seen: list[float]):
        super().__init__()
        self.number, self.seen = number, seen

    def forward(self, tokens_RND: Tensor, time_R: Tensor) -> Tensor:
        self.seen.append(tokens_RND.item())
        return tokens_RND + self.number


@pytest.mark.parametrize(("count", "expected"), [(4, [0, 1, 3, 1]), (5, [0, 1, 3, 3, 1]), (1, [0])])
def test_long_skips_are_mirrored(count, expected):
    seen = []
    skips = LongSkips([Add(2.0**i, seen) for i in range(count)], 1).requires_grad_(False)
    assert len(skips.joins) == count // 2
    for join in skips.joins:
        join.weight.copy_(torch.tensor([[0.0, 1.0]]))  # takes the skip, drops what comes up the row
        join.bias.zero_()
    skips(torch.zeros(1, 1, 1), torch.zeros(1))
    assert seen == expected
    for join in skips.joins:
        join.weight.fill_(1.0)
    assert skips(torch.zeros(1, 1, 1), torch.zeros(1)).item() == sum(2**i for i in range(count)) + sum(
        2 ** (i + 1) - 1 for i in range(count // 2)
    )


@pytest.mark.parametrize("variant", ["two", "three"])
def test_every_pixel_has_a_part_in_every_coarse_value(variant):
    model = random_model(VARIANTS[variant])
    noisy, alpha_bar, positions, tokens = inputs(model, batch=1)
    noisy.requires_grad_()
    for value in (0, -1):
        coarse = model(noisy, alpha_bar, positions, [tokens]).pyramid[0].flatten()
        (gradient,) = torch.autograd.grad(coarse[value], noisy)
        assert (gradient != 0).all()


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_a_token_lies_at_the_mean_of_its_pixels(aspect):
    pixels, tokens = grid_positions((8, 12), aspect, sigma=0.5), grid_positions((2, 3), aspect, sigma=0.5 / 16)
    found = patch_centres(pixels, (8, 12), 4)
    close(found.absolute, tokens.absolute)
    close(found.relative, tokens.relative)
    assert found.grid == (2, 3)
    close(torch.tensor(found.ipe_sigma), torch.tensor(tokens.ipe_sigma))
    moved = points(pixels.absolute + torch.tensor([[[0.1, 0.0]], [[0.0, -0.2]]]), aspect)
    found = patch_centres(moved, (8, 12), 4)
    close(found.absolute, tokens.absolute + torch.tensor([[[0.1, 0.0]], [[0.0, -0.2]]]))
    assert found.grid is None and found.ipe_sigma is None


def test_ipe_sigma_is_the_deviation_of_jittered_tokens():
    grid = grid_positions((8, 8), 1.0, sigma=0.5)
    generator = torch.Generator().manual_seed(0)
    moved = points(jitter(grid.absolute.expand(500, -1, -1), (1 / 8, 1 / 8), 0.5, generator), 1.0)
    centres, found = patch_centres(grid, (8, 8), 4), patch_centres(moved, (8, 8), 4)
    offsets = found.absolute - centres.absolute
    assert offsets.std().item() == pytest.approx(centres.ipe_sigma[0][0], rel=0.05)


def test_positions_matter_and_may_differ_by_row(model):
    noisy, alpha_bar, square, tokens = inputs(model)
    wide = grid_positions((8, 12), 3.0)
    both = (torch.stack(pair) for pair in ((square.absolute, wide.absolute), (square.relative, wide.relative)))
    mixed = model(noisy, alpha_bar, Positions(*both), [tokens]).prediction
    apart = [model(noisy, alpha_bar, positions, [tokens]).prediction for positions in (square, wide)]
    assert not torch.allclose(*apart)
    for row, prediction in enumerate(apart):
        close(mixed[:, row], prediction[:, row])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_is_trained(config):
    torch.manual_seed(0)
    model = DiMR(config)
    for head in model.heads:
        nn.init.normal_(head.out.weight)
    noisy, alpha_bar, positions, tokens = inputs(model)
    output = model(noisy, alpha_bar, positions, [tokens, None])
    sum(prediction.square().mean() for prediction in (output.prediction, *output.pyramid)).backward()
    ends = {key for key, p in model.named_parameters() if key.endswith((".slope", ".offset"))}
    blind = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert blind <= ends  # where both ends of a norm are still equal, the way between them does not matter
    assert model.condition.table.grad[[0, 1, 4]].any(dim=(1, 2)).all()  # two labels and null


def parameters(config: DiMRConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in DiMR(config).parameters())


def test_the_published_size():
    model = read_recipe(DenoiserRecipe, CONFIGS / "published_dimr.toml").model
    assert parameters(model) == pytest.approx(505e6, rel=0.01)
    assert parameters(replace(model, widths=(1152, 576), blocks=(57, 29))) == pytest.approx(1.06e9, rel=0.01)  # G/2R


def test_the_small_size():
    recipe = read_recipe(DenoiserRecipe, CONFIGS / "mnist_dimr.toml")
    config = replace(recipe.model, latent_channels=1, num_classes=10)
    assert 4 * parameters(config) < 2**23  # bytes
    model, size = DiMR(config).requires_grad_(False), (recipe.training_size, recipe.training_size)
    with count_flops() as counter:
        model(torch.zeros(1, 1, *size), torch.tensor([0.5]), grid_positions(size, 1.0), [None])
    images = recipe.optimisation.steps * recipe.optimisation.batch
    assert images >= 60_000
    assert 3 * counter.get_total_flops() * images < 75e12  # a backward pass is two forward ones


@pytest.mark.parametrize(
    "options",
    [
        {"patches": (4,)},
        {"patches": (), "widths": (), "blocks": ()},
        {"patches": (4, 4)},
        {"patches": (4, 3)},
        {"patches": (2, 4)},
        {"widths": (128, 0)},
        {"blocks": (0, 2)},
        {"latent_channels": 0},
        {"label_tokens": 0},
        {"gated_mlp_ratio": 0},
        {"kernel": 6},
        {"prediction_type": "eps"},
        {"octaves": (1, 0)},
        {"jitter": -0.5},
        {"widths": (130, 64), "heads": 4},
    ],
)
def test_a_bad_config_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options)).rstrip('s')}.*must"):
        DiMR(DiMRConfig(**options))
