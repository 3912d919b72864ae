from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from denoising import close, inputs, random_model

from r2id.denoisers.r2id import R2ID, GuideConfig, R2IDConfig
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
GUIDED = replace(TINY, guide=GuideConfig(width=8, heads=2, encoder_blocks=1, decoder_blocks=1))


@pytest.fixture(params=VARIANTS)
def model(request) -> R2ID:
    return random_model(VARIANTS[request.param])


def test_permuted_cells_give_the_permuted_prediction(model):
    noisy, alpha_bar, positions, tokens = inputs(model)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = Positions(positions.absolute[order], positions.relative[order])
    noisy_turned = noisy.flatten(2)[..., order].unflatten(2, (3, 4))
    expected = model(noisy, alpha_bar, positions, [tokens]).prediction.flatten(3)[..., order]
    close(model(noisy_turned, alpha_bar, turned, [tokens]).prediction.flatten(3), expected)
    assert not torch.allclose(model(noisy_turned, alpha_bar, positions, [tokens]).prediction.flatten(3), expected)


def test_positions_may_differ_by_row(model):
    noisy, alpha_bar, square, tokens = inputs(model)
    wide = grid_positions((3, 4), 3.0)
    both = (torch.stack(pair) for pair in ((square.absolute, wide.absolute), (square.relative, wide.relative)))
    mixed = model(noisy, alpha_bar, Positions(*both), [tokens]).prediction
    for row, positions in enumerate((square, wide)):
        close(mixed[:, row], model(noisy, alpha_bar, positions, [tokens]).prediction[:, row])


def test_a_guide_answers_the_null_condition_where_it_is_asked_for_beside_another():
    model = random_model(GUIDED)
    noisy, alpha_bar, positions, tokens = inputs(model)
    guided, null = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    close(guided, model(noisy, alpha_bar, positions, [tokens]).prediction[0])
    close(null, model.guide(noisy, alpha_bar, positions, [None]).prediction[0])
    own = model(noisy, alpha_bar, positions, [None]).prediction[0]
    assert not torch.allclose(null, own, atol=1e-2)
    close(model(noisy, alpha_bar, positions, [None, tokens]).prediction, torch.stack([null, guided]))


@pytest.mark.parametrize("config", [TINY, GUIDED])
def test_every_parameter_is_trained(config):
    torch.manual_seed(0)
    model = R2ID(config)
    for part in (model, model.guide) if model.guide else (model,):
        torch.nn.init.normal_(part.out.weight)
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
