"""From noise to a latent: DDIM(η) and DPM-Solver++(2M) with classifier-free guidance, as a generator of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .limits import check_interval, short_repr
from .schedule import check_prediction_type, noise_from, x0_from

SAMPLERS = ("ddim", "dpm++")


@dataclass(frozen=True)
class SampleStep:
    """One step done: index 1…steps and the estimate of x0 (B, C, h, w); at the last step that is the result."""

    index: int
    steps: int
    x0: Tensor


def ddim_step(
    x_BChw: Tensor,
    x0_BChw: Tensor,
    alpha_bar_now: float,
    alpha_bar_next: float,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """x at ᾱ now and the estimate of x0 → x at ᾱ next, where 0 ≤ now < next ≤ 1.

    Eqs. 12 and 16 of Song et al. 2020. The noise in x is derived from x0 as given, so clipping x0 moves both. Published
    η above 1 work: 1 − ᾱ − σ² is held at 0. Raises ValueError for ᾱ out of order, η < 0, or η > 0 without noise.
    """
    if not 0 <= alpha_bar_now < alpha_bar_next <= 1:
        raise ValueError(f"alpha_bar {alpha_bar_now:g} to {alpha_bar_next:g}: a step must rise within 0…1")
    _check_eta(eta, noise)
    variance = eta**2 * (1 - alpha_bar_next) / (1 - alpha_bar_now) * (1 - alpha_bar_now / alpha_bar_next)
    noise_BChw = noise_from(x0_BChw, x_BChw, torch.as_tensor(alpha_bar_now, dtype=torch.float64))
    kept = math.sqrt(max(0.0, 1 - alpha_bar_next - variance))
    next_BChw = math.sqrt(alpha_bar_next) * x0_BChw + kept * noise_BChw
    return next_BChw + math.sqrt(variance) * noise if eta > 0 else next_BChw


def dpm_step(
    x_BChw: Tensor,
    x0_BChw: Tensor,
    x0_previous_BChw: Tensor | None,
    alpha_bar_now: float,
    alpha_bar_next: float,
    alpha_bar_previous: float | None,
) -> Tensor:
    """x at ᾱ now, the estimates of x0 now and one step before → x at ᾱ next (DPM-Solver++(2M), Lu et al. 2022).

    Algorithm 2 there is a DDIM step from the x0 extrapolated to the middle of the step in log-SNR. First order without
    a step before, after one from ᾱ = 0 (infinitely far in log-SNR) and to ᾱ = 1. Raises ValueError for ᾱ out of order.
    """
    if x0_previous_BChw is not None and alpha_bar_next < 1:
        if alpha_bar_previous is None or not 0 <= alpha_bar_previous < alpha_bar_now:
            raise ValueError(f"alpha_bar_previous {alpha_bar_previous}: must be from 0 to below now, {alpha_bar_now:g}")
        alpha_bars = torch.tensor([alpha_bar_previous, alpha_bar_now, alpha_bar_next], dtype=torch.float64)
        before, ahead = torch.logit(alpha_bars).diff().tolist()  # without log_snr's limits: before may be infinite
        x0_BChw = x0_BChw + 0.5 * ahead / before * (x0_BChw - x0_previous_BChw)
    return ddim_step(x_BChw, x0_BChw, alpha_bar_now, alpha_bar_next)


def sample(
    denoiser: Callable,
    noise_BChw: Tensor,
    *,
    positions: object,
    tokens: Tensor | None,
    times: Tensor,
    alpha_bars: Tensor,
    prediction_type: str,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    sampler: str = "dpm++",
    eta: float = 0.0,
    clip: Callable[[Tensor], Tensor] | None = None,
    row_noise: Callable[[], Tensor] | None = None,
    gradients: bool = False,
) -> Iterator[SampleStep]:
    """Noise (B, C, h, w) → the steps to a clean latent, in the noise's dtype; without gradients unless asked for.

    denoiser: `denoiser(noisy, alpha_bar_B, positions, conditions, recurrent_state)` → `DenoiserOutput`; alpha_bar_B is
        float32. The recurrent state goes to the next step, unless guidance begins or ends in between.
    tokens: the condition (B, N, D), or None for the null condition alone, whatever the guidance.
    times, alpha_bars: (steps + 1,) float64, t falling from noise to clean, ᾱ rising to exactly 1.
    guidance: g of null + g·(cond − null) where t is in guidance_interval, 1 elsewhere; 1 asks the denoiser for the
        condition only, 0 for null only, else both in one call.
    clip: bounds every estimate of x0, in latent units. row_noise: draws noise like noise_BChw, needed where η > 0.

    Raises ValueError at once, before the first step, for a bad argument.
    """
    check_prediction_type(prediction_type)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {short_repr(sampler)} is unknown: choose one of {', '.join(SAMPLERS)}")
    if eta != 0 and sampler == "dpm++":
        raise ValueError(f"eta {eta:g} with dpm++: it adds no noise; set eta to 0 or use the ddim sampler")
    _check_eta(eta, row_noise)
    _check_path(times, alpha_bars)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance {guidance}: must be a finite number, 1 for none")
    lo, hi = check_interval(guidance_interval)
    if noise_BChw.ndim != 4:
        raise ValueError(f"noise {tuple(noise_BChw.shape)}: must be (B, C, h, w)")
    if tokens is not None and len(tokens) != len(noise_BChw):
        raise ValueError(f"tokens for {len(tokens)} rows, noise for {len(noise_BChw)}: give one row of each a picture")

    path, steps = alpha_bars.tolist(), len(alpha_bars) - 1
    weights = [guidance if lo <= t <= hi else 1.0 for t in times.tolist()]

    def run() -> Iterator[SampleStep]:
        x_BChw, x0_BChw, recurrent_state = noise_BChw, None, None
        for i in range(steps):
            conditions = _conditions(tokens, weights[i])
            if i > 0 and weights[i] != weights[i - 1]:
                recurrent_state = None  # it belongs to the conditions of the step before
            alpha_bar_B = x_BChw.new_full((len(x_BChw),), path[i], dtype=torch.float32)
            output = denoiser(x_BChw, alpha_bar_B, positions, conditions, recurrent_state)
            recurrent_state = output.recurrent_state
            prediction_BChw = _guide(output.prediction.to(x_BChw.dtype), weights[i])
            x0_previous_BChw, x0_BChw = x0_BChw, x0_from(prediction_type, prediction_BChw, x_BChw, alpha_bars[i])
            if clip is not None:
                x0_BChw = clip(x0_BChw)
            yield SampleStep(index=i + 1, steps=steps, x0=x0_BChw)
            if i + 1 == steps:
                return  # a step to ᾱ = 1 is x0 itself
            if sampler == "ddim":
                noise = row_noise() if eta > 0 else None
                x_BChw = ddim_step(x_BChw, x0_BChw, path[i], path[i + 1], eta=eta, noise=noise)
            else:
                before = path[i - 1] if i > 0 else None
                x_BChw = dpm_step(x_BChw, x0_BChw, x0_previous_BChw, path[i], path[i + 1], before)

    return run() if gradients else torch.no_grad()(run)()


def _conditions(tokens: Tensor | None, weight: float) -> tuple[Tensor | None, ...]:
    if tokens is None or weight == 0:
        return (None,)
    return (tokens,) if weight == 1 else (tokens, None)


def _guide(prediction_KBChw: Tensor, weight: float) -> Tensor:
    """Ho & Salimans 2022, with g = 1 for none."""
    if len(prediction_KBChw) == 1:
        return prediction_KBChw[0]
    condition_BChw, null_BChw = prediction_KBChw
    return null_BChw + weight * (condition_BChw - null_BChw)


def _check_eta(eta: float, noise: object) -> None:
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"eta {eta}: must be 0 (deterministic) or more")
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta:g} needs noise: pass some, or set eta to 0")


def _check_path(times: Tensor, alpha_bars: Tensor) -> None:
    if times.ndim != 1 or times.shape != alpha_bars.shape or len(times) < 2:
        shapes = f"times {tuple(times.shape)} and alpha_bars {tuple(alpha_bars.shape)}"
        raise ValueError(f"{shapes}: both must be (steps + 1,), with 1 step or more")
    if not (times.dtype == alpha_bars.dtype == torch.float64):
        raise ValueError(f"times {times.dtype} and alpha_bars {alpha_bars.dtype}: both must be torch.float64")
    if not (0 <= times[-1] and times[0] <= 1 and (times.diff() < 0).all()):
        raise ValueError(f"times from {times[0]:g} to {times[-1]:g}: must fall at every step, within 1…0")
    if not (alpha_bars[0] >= 0 and alpha_bars[-1] == 1 and (alpha_bars.diff() > 0).all()):
        raise ValueError(f"alpha_bars from {alpha_bars[0]:g} to {alpha_bars[-1]:g}: must rise at every step, up to 1")
