"""Noise schedules and the forward process, as pure functions.

ᾱ is the share of signal in the variance: noisy = √ᾱ·x0 + √(1 − ᾱ)·noise. Time t runs from 0 (clean) to 1 (noise).
Functions of t or ᾱ compute in the dtype they are given: give float64, since float32 cannot hold 1 − ᾱ near t = 0.
Functions of images take ᾱ as one number or one a row, and return the dtype and the device of the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from r2id.limits import check_choice, check_float

PREDICTION_TYPES = ("v", "epsilon", "x0")
LOG_SNR_LIMIT = 20.0
# Below the last ᾱ of the linear β schedule (4e-5), so that no published schedule without ᾱ = 0 is altered.
MIN_SIGNAL = 1e-5
# Below 1 − ᾱ after the first of 1,000 steps of every schedule here.
MIN_NOISE = 1e-8


def alpha_bar_cosine(t_B: Tensor) -> Tensor:
    """t in [0, 1] → ᾱ = cos²(πt/2), exactly 1 at t = 0 and 0 at t = 1.

    Nichol & Dhariwal 2021 without their offset, which only keeps the first of many discrete βs from vanishing.
    """
    return torch.sin(math.pi / 2 * (1 - t_B)) ** 2  # the sine is exact at both ends, the cosine is not


def alpha_bar_sigmoid(t_B: Tensor) -> Tensor:
    """t in [0, 1] → ᾱ of the sigmoid schedule (−3, 3, τ = 1), exactly 1 at t = 0 and 0 at t = 1.

    Jabri et al. 2022, (σ(3) − σ(6t − 3)) / (σ(3) − σ(−3)), rewritten so that the ends are exact.
    """
    signal_B, noise_B = torch.sinh(3 * (1 - t_B)), torch.sinh(3 * t_B)
    return signal_B / (signal_B + noise_B)


def alpha_bar_linear(t_B: Tensor) -> Tensor:
    """t in [0, 1] → ᾱ of β rising linearly from 0.1 to 20, exactly 1 at t = 0 and 4.3e-5 at t = 1.

    Ho et al. 2020 in continuous time (Song et al. 2021, VP).
    """
    return torch.exp(-0.1 * t_B - (20 - 0.1) / 2 * t_B**2)


def log_snr(alpha_bar: Tensor) -> Tensor:
    """ᾱ in [0, 1] → log(ᾱ / (1 − ᾱ)), clamped to ±20 so that both ends are finite."""
    return torch.logit(alpha_bar).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def shift_log_snr(alpha_bar: Tensor, *, shift: float) -> Tensor:
    """ᾱ → the ᾱ whose log-SNR is `shift` higher; 0 and 1 stay exactly what they are."""
    return alpha_bar / (alpha_bar + (1 - alpha_bar) * math.exp(-shift))


ALPHA_BARS = {"cosine": alpha_bar_cosine, "sigmoid": alpha_bar_sigmoid, "linear": alpha_bar_linear}


@dataclass(frozen=True)
class Schedule:
    """A schedule and its shift: log-SNR moves by −shift_power·log(√(h·w) / shift_base) for h × w latent cells.

    More cells carry redundant signal, so they need more noise (Hoogeboom et al. 2023, with shift_power 2); 0 is none.
    input_scale b, the factor of x0 before noise (Chen 2023), moves log-SNR by 2·log b; x0 itself keeps its scale.
    Raises ValueError for an unknown name, a shift_base or input_scale that is not positive or a negative shift_power.
    """

    name: str = "cosine"
    shift_base: float = 6.0
    shift_power: float = 1.0
    input_scale: float = 1.0

    def __post_init__(self):
        check_choice(self.name, "schedule", ALPHA_BARS)
        check_float(self.shift_base, "shift_base", 1e-3, 1e6)  # with the other two, exp(shift) stays finite
        check_float(self.shift_power, "shift_power", 0.0, 16.0)
        check_float(self.input_scale, "input_scale", 1e-3, 1e3)

    def alpha_bar(self, t_B: Tensor, *, cells: tuple[int, int]) -> Tensor:
        """t in [0, 1] → ᾱ in [0, 1] for a latent of `cells` (h, w). Raises ValueError for cells below 1."""
        h, w = cells
        if h < 1 or w < 1:
            raise ValueError(f"cells ({h}, {w}): both must be 1 or more")
        shift = 2 * math.log(self.input_scale) - self.shift_power * math.log(math.sqrt(h * w) / self.shift_base)
        return shift_log_snr(ALPHA_BARS[self.name](t_B), shift=shift)

    def time_at_equal_noise(self, t: float, *, cells: tuple[int, int], at: tuple[int, int]) -> float:
        """t in [0, 1] at `cells` → the t at `at` whose ᾱ is the same, to 2⁻¹⁶ and within [0, 1]."""
        if cells == at:
            return t
        alpha_bar = self.alpha_bar(torch.tensor([t], dtype=torch.float64), cells=cells)
        falling = self.alpha_bar(torch.linspace(0, 1, 2**16 + 1, dtype=torch.float64), cells=at)
        return min(1.0, torch.searchsorted(-falling, -alpha_bar).item() / 2**16)


def noisy(x0_BChw: Tensor, noise_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """Clean and noise (B, C, h, w), ᾱ (B,) or () → √ᾱ·x0 + √(1 − ᾱ)·noise."""
    return _root(alpha_bar_B, x0_BChw) * x0_BChw + _root(1 - alpha_bar_B, x0_BChw) * noise_BChw


def target(prediction_type: str, x0_BChw: Tensor, noise_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """The target of a model of this prediction type; v = √ᾱ·noise − √(1 − ᾱ)·x0 (Salimans & Ho 2022)."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise_BChw
    if prediction_type == "x0":
        return x0_BChw
    return _root(alpha_bar_B, x0_BChw) * noise_BChw - _root(1 - alpha_bar_B, x0_BChw) * x0_BChw


def x0_from(prediction_type: str, prediction_BChw: Tensor, noisy_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """Prediction of a model of this prediction type and its input (B, C, h, w) → its estimate of x0, finite at every ᾱ.

    Only epsilon divides by √ᾱ: there ᾱ is at least 1e-5 in the divisor, so at ᾱ = 0 the estimate is a guess that
    the sampler's clipping must bound.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "x0":
        return prediction_BChw
    noise_part_BChw = _root(1 - alpha_bar_B, noisy_BChw) * prediction_BChw
    if prediction_type == "epsilon":
        return (noisy_BChw - noise_part_BChw) / _root(alpha_bar_B.clamp(min=MIN_SIGNAL), noisy_BChw)
    return _root(alpha_bar_B, noisy_BChw) * noisy_BChw - noise_part_BChw


def noise_from(x0_BChw: Tensor, noisy_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """The noise that makes noisy out of x0; 1 − ᾱ is at least 1e-8 in the divisor, so it is finite at ᾱ = 1."""
    signal_BChw = _root(alpha_bar_B, noisy_BChw) * x0_BChw
    return (noisy_BChw - signal_BChw) / _root((1 - alpha_bar_B).clamp(min=MIN_NOISE), noisy_BChw)


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError for a name that is not one of PREDICTION_TYPES."""
    check_choice(prediction_type, "prediction_type", PREDICTION_TYPES)


def _root(variance_B: Tensor, like_BChw: Tensor) -> Tensor:
    """√variance, one a row, shaped to multiply `like`. The dtype changes before the device: not all hold float64."""
    root_B = variance_B.sqrt().to(like_BChw.dtype).to(like_BChw.device)
    return root_B.reshape(-1, *[1] * (like_BChw.ndim - 1))
