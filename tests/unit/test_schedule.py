import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from r2id.schedule import (
    ALPHA_BARS,
    PREDICTION_TYPES,
    Schedule,
    alpha_bar_cosine,
    alpha_bar_linear,
    alpha_bar_sigmoid,
    log_snr,
    noise_from,
    noisy,
    shift_log_snr,
    target,
    x0_from,
)

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", ALPHA_BARS)
@pytest.mark.parametrize("cells", [(1, 1), (4, 4), (6, 9), (64, 64)])
def test_signal_only_falls_and_begins_at_exactly_one(name, cells):
    alpha_bar = Schedule(name=name).alpha_bar(TIMES, cells=cells)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0] == 1 and alpha_bar[-1] >= 0
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha_bar", [alpha_bar_cosine, alpha_bar_sigmoid])
def test_ends_are_exact(alpha_bar, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert alpha_bar(ends).tolist() == [1.0, 0.0]
    assert alpha_bar(ends).dtype == dtype


def test_schedules_are_the_published_ones():
    assert_close(alpha_bar_cosine(TIMES), torch.cos(math.pi / 2 * TIMES) ** 2)
    low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    assert_close(alpha_bar_sigmoid(TIMES), (high - torch.sigmoid(6 * TIMES - 3)) / (high - low))
    discrete = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod.double()
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert_close(alpha_bar_linear(times), discrete, atol=1e-3, rtol=0.1)


def test_log_snr_is_finite_and_invertible():
    assert log_snr(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-20.0, 0.0, 20.0]
    inner = TIMES[1:-1]
    assert_close(log_snr(inner).sigmoid(), inner)


def test_shift_is_a_constant_in_log_snr_and_keeps_the_ends():
    for shift in (-2.0, 0.0, 0.7):
        shifted = shift_log_snr(TIMES, shift=shift)
        assert shifted[0] == 0 and shifted[-1] == 1
        assert_close(log_snr(shifted[1:-1]) - log_snr(TIMES[1:-1]), torch.full_like(TIMES[1:-1], shift))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_more_cells_get_more_noise_by_their_number_alone(power):
    schedule, half = Schedule(shift_power=power), torch.tensor([0.5], dtype=torch.float64)
    levels = [log_snr(schedule.alpha_bar(half, cells=(side, side))).item() for side in (3, 6, 12)]
    assert levels == pytest.approx([power * math.log(2), 0.0, -power * math.log(2)])
    assert_close(schedule.alpha_bar(TIMES, cells=(4, 9)), schedule.alpha_bar(TIMES, cells=(6, 6)))


def test_power_zero_is_no_shift():
    assert_close(Schedule(shift_power=0).alpha_bar(TIMES, cells=(16, 16)), alpha_bar_cosine(TIMES))


@pytest.mark.parametrize("name", ALPHA_BARS)
def test_a_scaled_input_has_the_signal_to_noise_ratio_of_the_scaled_image(name):
    plain, scaled = (Schedule(name=name, shift_power=0, input_scale=b).alpha_bar(TIMES, cells=(8, 8)) for b in (1, 0.5))
    inner = slice(1, -1)
    assert_close(scaled[inner] / (1 - scaled[inner]), 0.5**2 * plain[inner] / (1 - plain[inner]))
    assert scaled[0] == 1 and (scaled[-1] == 0) == (plain[-1] == 0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversions_round_trip(prediction_type, dtype):
    x0, noise = torch.randn(2, 5, 3, 4, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    alpha_bar_B = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    x = noisy(x0, noise, alpha_bar_B)
    estimate = x0_from(prediction_type, target(prediction_type, x0, noise, alpha_bar_B), x, alpha_bar_B)
    assert x.dtype == estimate.dtype == dtype
    assert_close(estimate, x0, atol=1e-5, rtol=1e-5)
    assert_close(noise_from(estimate, x, alpha_bar_B), noise, atol=1e-4, rtol=1e-4)
    assert_close(noisy(x0[:1], noise[:1], alpha_bar_B[0]), x[:1])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_conversions_are_finite_at_both_ends(prediction_type):
    x0, noise, prediction = torch.randn(3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ends_B = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = noisy(x0, noise, ends_B)
    assert_close(x, torch.stack([noise[0], x0[1]]))
    assert x0_from(prediction_type, prediction, x, ends_B).isfinite().all()
    assert noise_from(x0, x, ends_B).isfinite().all()


@pytest.mark.parametrize("name", ALPHA_BARS)
@pytest.mark.parametrize("cells, at", [((4, 4), (8, 8)), ((8, 8), (4, 4)), ((6, 9), (16, 16))])
def test_same_noise_has_the_same_alpha_bar_at_other_cells(name, cells, at):
    schedule = Schedule(name=name, shift_base=4.0, shift_power=2.0)
    for t in (0.05, 0.2, 0.5, 0.9):
        there = schedule.time_at_equal_noise(t, cells=cells, at=at)
        both = [schedule.alpha_bar(torch.tensor(v, dtype=torch.float64), cells=c) for v, c in ((t, cells), (there, at))]
        assert_close(*both, atol=1e-4, rtol=0)
        assert (there < t) == (math.prod(at) > math.prod(cells))  # more cells have that much noise earlier
        assert schedule.time_at_equal_noise(t, cells=cells, at=cells) == t
    assert (
        schedule.time_at_equal_noise(0.0, cells=cells, at=at) == 0.0
        and schedule.time_at_equal_noise(1.0, cells=cells, at=at) <= 1.0
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Schedule(name="cosin"), "'cosin'.*cosine, sigmoid, linear"),
        (lambda: Schedule(shift_base=0), "shift_base 0"),
        (lambda: Schedule(shift_base=math.inf), "shift_base inf"),
        (lambda: Schedule(shift_power=-1), "shift_power -1"),
        (lambda: Schedule(shift_power=math.nan), "shift_power nan"),
        (lambda: Schedule(input_scale=0.0), "input_scale 0.0: must be a number"),
        (lambda: Schedule(input_scale=math.nan), "input_scale nan"),
        (lambda: Schedule().alpha_bar(TIMES, cells=(0, 4)), r"cells \(0, 4\)"),
        (lambda: target("eps", TIMES, TIMES, TIMES), "'eps'.*v, epsilon, x0"),
        (lambda: x0_from("eps", TIMES, TIMES, TIMES), "'eps'.*v, epsilon, x0"),
    ],
)
def test_bad_input_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
