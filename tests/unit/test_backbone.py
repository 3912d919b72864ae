"""What R2ID and S2ID share: any size, any number of conditions, rows and conditions that do not see one another."""

from __future__ import annotations

import pytest
import torch
from denoising import MODELS, close, inputs, random_model
from test_r2id import VARIANTS as R2ID_VARIANTS
from test_s2id import VARIANTS as S2ID_VARIANTS
from torch import nn

VARIANTS = {f"r2id {name}": config for name, config in R2ID_VARIANTS.items()}
VARIANTS |= {f"s2id {name}": config for name, config in S2ID_VARIANTS.items()}


@pytest.fixture(params=VARIANTS)
def model(request) -> nn.Module:
    return random_model(VARIANTS[request.param])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_prediction_starts_at_zero(config):
    model = MODELS[type(config)](config)
    noisy, alpha_bar, positions, tokens = inputs(model)
    assert torch.equal(model(noisy, alpha_bar, positions, [tokens]).prediction, torch.zeros(1, *noisy.shape))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2)])
def test_any_size_and_any_number_of_conditions(model, size):
    noisy, alpha_bar, positions, tokens = inputs(model, size=size)
    for conditions in ([None], [tokens], [tokens, None], [tokens, None, tokens.flip(0)]):
        output = model(noisy, alpha_bar, positions, conditions)
        assert output.prediction.shape == (len(conditions), *noisy.shape) and output.prediction.isfinite().all()
        assert output.recurrent_state is None and output.pyramid == ()


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


def test_a_row_alone_equals_the_row_in_the_batch(model):
    noisy, alpha_bar, positions, tokens = inputs(model, batch=3)
    batch = model(noisy, alpha_bar, positions, [tokens, None]).prediction
    row = model(noisy[1:2], alpha_bar[1:2], positions, [tokens[1:2], None]).prediction
    close(row, batch[:, 1:2])


def test_the_noise_level_matters_and_its_ends_are_finite(model):
    noisy, _, positions, tokens = inputs(model)
    ends = [model(noisy, torch.full((2,), a), positions, [tokens]).prediction for a in (0.0, 0.5, 1.0)]
    assert all(end.isfinite().all() for end in ends) and not torch.allclose(ends[0], ends[1])
