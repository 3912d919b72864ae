from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r2id.denoisers.r2id import R2ID, R2IDConfig
from r2id.position import Positions, grid_positions

TINY = R2IDConfig(
    latent_channels=3,
    num_classes=4,
    label_tokens=2,
    width=16,
    heads=2,
    encoder_blocks=2,
    decoder_blocks=1,
    noise_width=8,
)
VARIANTS = {
    "softmax": TINY,
    "linear": replace(TINY, attention="linear"),
    "published": replace(TINY, gated=False, attention="linear", label_tokens=1),
}


@pytest.fixture(params=VARIANTS)
def model(request) -> R2ID:
    torch.manual_seed(0)
    model = R2ID(VARIANTS[request.param]).eval().requires_grad_(False)
    for parameter in model.parameters():  # past the zero initialisation
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(model: R2ID, batch: int = 2, size: tuple[int, int] = (3, 4)):
    """Noisy latents, ᾱ, positions and condition tokens."""
    generator = torch.Generator().manual_seed(0)
    noisy_BChw = torch.randn(batch, 3, *size, generator=generator)
    tokens_BND = model.condition(torch.eye(4)[torch.arange(batch) % 4])
    return noisy_BChw, torch.linspace(0.2, 0.7, batch), grid_positions(size, size[1] / size[0]), tokens_BND


def close(a: torch.Tensor, b: torch.Tensor):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_prediction_starts_at_zero(config):
    model = R2ID(config)
    noisy, alpha_bar, positions, tokens = inputs(model)
    assert torch.equal(model(noisy, alpha_bar, positions, [tokens]).prediction, torch.zeros(1, *noisy.shape))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2)])
def test_any_size_and_any_number_of_conditions(model, size):
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    for conditions in ([None], [tokens], [tokens, None], [tokens, None, tokens.flip(0)]):
        output = model(noisy, alpha_bar, positions, conditions)
        assert output.prediction.shape == (len(conditions), *noisy.shape) and output.prediction.isfinite().all()
        assert output.recurrent_state is None


def test_conditions_together_equal_conditions_apart(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    together = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    apart = [model(noisy, alpha_bar, positions, [c]).prediction[0] for c in (tokens, None)]
    close(together, torch.stack(apart))
    assert not torch.allclose(*apart)
    close(model(noisy, alpha_bar, positions, [model.condition.null(2)]).prediction[0], apart[1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_sees_no_condition_runs_once(model, count):
    noisy, alpha_bar, positions, tokens = inputs(model)
    rows = {"encoder": [], "decoder": []}
    for name, calls in rows.items():
        for block in getattr(model, name):
            block.register_forward_hook(lambda module, args, out, calls=calls: calls.append(len(out)))
    model(noisy, alpha_bar, positions, [tokens] * count)
    assert rows == {"encoder": [2, 2], "decoder": [2 * count]}


def test_permuted_cells_give_the_permuted_prediction(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = Positions(positions.absolute[order], positions.relative[order])
    noisy_turned = noisy.flatten(2)[..., order].unflatten(2, (3, 4))
    expected = model(noisy, alpha_bar, positions, [tokens]).prediction.flatten(3)[..., order]
    close(model(noisy_turned, alpha_bar, turned, [tokens]).prediction.flatten(3), expected)
    assert not torch.allclose(model(noisy_turned, alpha_bar, positions, [tokens]).prediction.flatten(3), expected)


def test_a_row_alone_equals_the_row_in_the_batch(model):
    noisy, alpha_bar, positions, tokens = inputs(model, batch=3)
    batch = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    row = model(noisy[1:2], alpha_bar[1:2], positions, [tokens[1:2], None]).prediction
    close(row, batch[:, 1:2])


def test_positions_may_differ_by_row(model):
    noisy, alpha_bar, square, tokens = inputs(model)
    wide = grid_positions((3, 4), 3.0)
    both = (torch.stack(pair) for pair in ((square.absolute, wide.absolute), (square.relative, wide.relative)))
    mixed = model(noisy, alpha_bar, Positions(*both), [tokens]).prediction
    for row, positions in enumerate((square, wide)):
        close(mixed[:, row], model(noisy, alpha_bar, positions, [tokens]).prediction[:, row])


def test_the_noise_level_matters_and_its_ends_are_finite(model):
    noisy, _, positions, tokens = inputs(model)
    ends = [model(noisy, torch.full((2,), a), positions, [tokens]).prediction for a in (0.0, 0.5, 1.0)]
    assert all(end.isfinite().all() for end in ends) and not torch.allclose(ends[0], ends[1])


def test_every_parameter_is_trained():
    torch.manual_seed(0)
    model = R2ID(TINY)
    torch.nn.init.normal_(model.out.weight)
    noisy, alpha_bar, positions, tokens = inputs(model)
    model(noisy, alpha_bar, positions, [tokens, None]).prediction.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert model.condition.table.grad[[0, 1, 4]].isfinite().all()  # two labels and null


def test_the_published_size():
    config = R2IDConfig(
        latent_channels=64,
        label_tokens=1,
        width=192,
        heads=6,
        encoder_blocks=8,
        decoder_blocks=8,
        noise_width=128,
        gated=False,
        attention="linear",
        octaves=(-6, 9),
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in R2ID(config).parameters()) == pytest.approx(10.39e6, rel=0.005)


@pytest.mark.parametrize(
    "options",
    [
        {"latent_channels": 0},
        {"noise_width": 0},
        {"label_tokens": 0},
        {"prediction_type": "eps"},
        {"octaves": (1, 0)},
        {"width": 130},
        {"attention": "flash"},
    ],
)
def test_a_bad_config_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} .*must be"):
        R2ID(R2IDConfig(**options))
