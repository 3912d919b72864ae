"""What the denoiser's loss compares with what."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from r2id import R2ID, R2IDConfig
from r2id.condition import LabelCondition, one_hot
from r2id.denoisers.output import DenoiserOutput
from r2id.denoisers.r2id import GuideConfig
from r2id.position import grid_positions
from r2id.schedule import Schedule, noise_from, target
from train.losses.denoiser import DenoiserLoss, DenoiserLosses, blended, coarse_error
from train.losses.latent_space import CleanLatents

CELLS, ASPECT = (4, 7), 14 / 8


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(count: int = 8, cells: tuple[int, int] = CELLS, aspect: float = ASPECT, channels: int = 3) -> CleanLatents:
    x0_BChw = torch.randn(count, channels, *cells, generator=rng(7))
    return CleanLatents(x0_BChw, [(aspect, count)], range(count))


class Oracle(nn.Module):
    """Knows the clean latents, so its prediction is exact; keeps what it was called with."""

    def __init__(self, prediction_type: str, *, jitter: float):
        super().__init__()
        self.config = SimpleNamespace(prediction_type=prediction_type, jitter=jitter)
        self.condition = LabelCondition(10, tokens=2, width=4)
        self.x0, self.pyramid, self.states = None, (), []

    def forward(self, noisy_BChw, alpha_bar_B, positions, conditions, recurrent_state=None):
        self.seen = SimpleNamespace(alpha_bar=alpha_bar_B, positions=positions, tokens=conditions[0], noisy=noisy_BChw)
        noise = noise_from(self.x0, noisy_BChw, alpha_bar_B)
        prediction = target(self.config.prediction_type, self.x0, noise, alpha_bar_B)
        self.states.append(recurrent_state)
        return DenoiserOutput(prediction[None], recurrent_state=len(self.states), pyramid=self.pyramid)


def loss_of(prediction_type="v", *, x0=None, schedule=None, jitter=0.0, label_dropout=0.0, **settings) -> DenoiserLoss:
    torch.manual_seed(0)
    model = Oracle(prediction_type, jitter=jitter)
    model.x0 = latents().x0_BChw if x0 is None else x0
    how = {"label_dropout": label_dropout, "jitter_grid": 8, **settings}
    return DenoiserLoss(model, schedule or Schedule(), **how)


@pytest.mark.parametrize("prediction_type", ["v", "epsilon", "x0"])
def test_a_perfect_denoiser_has_no_loss(prediction_type):
    loss, labels = loss_of(prediction_type), torch.arange(8)
    error, parts = loss([latents()], labels, rng())
    assert error < 1e-6 and parts["mse"] < 1e-6
    loss.model.x0 = torch.zeros_like(loss.model.x0)
    assert loss([latents()], labels, rng())[0] > 0.05


def test_logit_normal_times_are_half_of_them_within_a_standard_deviation():
    loss = loss_of(times="logit-normal", noise_per_image=4, x0=latents().x0_BChw.repeat(4, 1, 1, 1))
    loss([latents()], torch.arange(8), rng())
    t = 2 / math.pi * torch.acos(loss.model.seen.alpha_bar.double().sqrt())  # of the cosine schedule without shift
    within = (torch.logit(t).abs() < 0.6745).double().mean()  # half of a standard normal's
    assert within == pytest.approx(0.5, abs=0.07) and 0 < t.min() < 0.15 and 0.85 < t.max() < 1


def test_times_are_stratified_and_shifted_by_the_cells():
    loss = loss_of(schedule=Schedule(shift_power=1.0))
    loss([latents()], torch.arange(8), rng())
    seen = loss.model.seen
    edges = Schedule(shift_power=1.0).alpha_bar(torch.arange(9, dtype=torch.float64) / 8, cells=CELLS)
    assert (seen.alpha_bar <= edges[:-1]).all() and (seen.alpha_bar >= edges[1:]).all()  # one time an eighth
    assert seen.positions.grid == CELLS
    assert torch.equal(seen.positions.relative, grid_positions(CELLS, ASPECT).relative)


def test_noises_of_one_latent_are_at_times_far_apart():
    loss, labels = loss_of(x0=latents().x0_BChw.repeat(4, 1, 1, 1), noise_per_image=4), torch.arange(8)
    assert loss([latents()], labels, rng())[0] < 1e-6
    seen = loss.model.seen
    assert torch.equal(seen.tokens, loss.model.condition.table[labels].repeat(4, 1, 1))
    assert torch.equal(seen.alpha_bar, seen.alpha_bar.sort(descending=True).values)  # an eighth of a fourth each
    noise = noise_from(loss.model.x0, seen.noisy, seen.alpha_bar).unflatten(0, (4, 8))
    assert noise[0].sub(noise[1]).abs().mean() > 0.5


def test_sizes_of_a_step_count_by_their_images():
    small = CleanLatents(torch.zeros(1, 3, 4, 4), [(1.0, 1)], [2])
    large = CleanLatents(torch.zeros(3, 3, 5, 5), [(1.0, 2), (1.25, 1)], [0, 3, 1])
    loss, seen = loss_of(), []

    class Offset(Oracle):
        def forward(self, noisy_BChw, *inputs):
            seen.append((inputs[0], inputs[2][0]))
            self.x0 = torch.full_like(noisy_BChw, 1.0 if len(noisy_BChw) == 1 else 3.0)
            return super().forward(noisy_BChw, *inputs)

    loss.model = Offset("x0", jitter=0.0)
    total, parts = loss([small, large], torch.tensor([4, 5, 6, 7]), rng())
    assert total.item() == parts["mse"].item() == pytest.approx((1 * 1 + 3 * 9) / 4)
    assert torch.equal(seen[0][1], loss.model.condition.table[[6]])
    assert torch.equal(seen[1][1], loss.model.condition.table[[4, 7, 5]])


def test_a_teacher_says_what_is_wanted():
    loss, labels = loss_of(), torch.arange(8)
    teacher = loss_of(x0=loss.model.x0 + 0.3).model
    usual, moved = loss([latents()], labels, rng())[0], loss([latents()], labels, rng(), teacher=teacher)[0]
    assert usual < 1e-6 < 1e-3 < moved
    loss.model.x0 = teacher.x0
    assert loss([latents()], labels, rng(), teacher=teacher)[0] == 0  # whatever the latents


def test_dropped_and_missing_labels_are_the_null_condition():
    labels = torch.tensor([3, -1, 0, 9, 1, 2, -1, 5])

    def tokens(label_dropout):
        loss = loss_of(label_dropout=label_dropout)
        loss([latents()], labels, rng())
        return loss.model.seen.tokens, loss.model.condition.table

    kept, table = tokens(0.0)
    assert torch.equal(kept, table[labels])  # -1 is the last row, the null condition
    dropped, table = tokens(1.0)
    assert torch.equal(dropped, table[-1:].expand(8, -1, -1))
    some, table = tokens(0.5)
    null = (some == table[-1]).flatten(1).all(dim=1)
    assert 2 < null.sum() < 8 and torch.equal(some[~null], table[labels[~null]])


def test_a_label_on_a_scale_is_also_given_as_what_it_lies_between():
    order = [4, 1, 3, 0]  # 2 is not on the scale
    place = torch.tensor([3.0, 1.0, 0.0, 2.0, 0.0])  # of each label
    labels = torch.arange(-1, 5).repeat(500)
    plain = one_hot(labels, 5)
    mixed = blended(plain, order, rng())
    torch.testing.assert_close(mixed @ place, plain @ place)
    torch.testing.assert_close(mixed.sum(dim=1), plain.sum(dim=1))
    assert mixed.min() >= 0
    changed = (mixed != plain).any(dim=1)
    assert set(labels[changed].tolist()) == {1, 3}  # no blend lies at an end
    assert 0.1 < changed[labels == 1].float().mean() < 0.9
    assert {tuple(row.nonzero().flatten().tolist()) for row in mixed[changed]} == {(0, 1), (0, 4), (3, 4)}


def test_blends_are_what_the_model_sees():
    loss = loss_of(order=range(10))
    loss([latents()], torch.full((8,), 5), rng())
    seen, table = loss.model.seen.tokens, loss.model.condition.table
    alone = (seen == table[5]).flatten(1).all(dim=1)
    assert 0 < alone.sum() < 8


def test_the_condition_is_trained_with_the_denoiser():
    model = R2ID(R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    loss = DenoiserLoss(model, Schedule(), label_dropout=0.0, jitter_grid=8)
    DenoiserLosses(model, denoising=loss)("denoising", [latents(4)], torch.arange(4), rng())[0].backward()
    assert model.condition.table.grad[:4].abs().amin(dim=(1, 2)).max() > 0


@pytest.mark.parametrize("guide_only", [False, True])
def test_a_guide_and_its_model_learn_apart(guide_only):
    config = R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8)
    model = R2ID(replace(config, guide=GuideConfig(width=8, heads=2, encoder_blocks=1)))
    loss = DenoiserLoss(model, Schedule(), label_dropout=0.1, jitter_grid=8)
    DenoiserLosses(model, denoising=loss)("denoising", [latents(4)], torch.arange(4), rng(), guide_only=guide_only)[
        0
    ].backward()
    learns = {name.startswith("guide.") for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns == {guide_only}


def test_jitter_moves_every_position_by_cells_of_the_finest_grid():
    square = latents(cells=(4, 4), aspect=1.0)
    for sigma in (0.0, 0.25, 0.5):
        loss = loss_of(x0=square.x0_BChw, jitter=sigma)
        loss([square], torch.arange(8), rng())
        positions, centres = loss.model.seen.positions, grid_positions((4, 4), 1.0)
        if sigma == 0:
            assert positions.grid == (4, 4) and torch.equal(positions.absolute, centres.absolute)
        else:
            moved = (positions.absolute - centres.absolute) * 8  # in cells of the finest grid, not of this one
            assert positions.grid is None and moved.shape == (8, 16, 2)
            assert moved.std() == pytest.approx(sigma, rel=0.15)


def test_a_warm_start_hands_on_the_state_of_a_pass_without_gradient():
    def states(share: float, seed: int) -> list:
        loss = loss_of(warm_start=share)
        loss([latents()], torch.arange(8), rng(seed))
        return loss.model.states

    assert states(0.0, 0) == [None] and states(1.0, 0) == [None, 1]
    warm = [len(states(0.5, seed)) - 1 for seed in range(60)]
    assert 15 < sum(warm) < 45


def test_only_the_second_pass_of_a_warm_start_has_a_gradient():
    loss, enabled = loss_of(warm_start=1.0), []
    loss.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    loss([latents()], torch.arange(8), rng())
    assert enabled == [False, True]


def test_every_scale_of_a_pyramid_is_compared_at_unit_variance():
    noise = torch.randn(64, 1, 16, 16, generator=rng())
    for k in (2, 4):
        summed = F.avg_pool2d(noise, k) * k**2
        assert coarse_error(summed / k, noise) < 1e-12
        assert coarse_error(torch.zeros_like(summed), noise) == pytest.approx(1 / k**2, rel=0.1)
    square = latents(4, cells=(8, 8), aspect=1.0, channels=1)
    loss = loss_of(x0=square.x0_BChw)
    alone = loss([square], torch.arange(4), rng())[0]
    loss.model.pyramid = (torch.full((1, 4, 1, 4, 4), 100.0),)
    both, parts = loss([square], torch.arange(4), rng())
    assert both - alone == pytest.approx(100**2 / 4, rel=0.1) and parts["mse"] == alone
