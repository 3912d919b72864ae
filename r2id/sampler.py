"""From noise to a latent: one loop over a solver's steps, with classifier-free guidance, as a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from r2id.denoisers.output import DenoiserOutput
from r2id.limits import check_choice, check_interval
from r2id.schedule import check_prediction_type, noise_from, x0_from


@dataclass(frozen=True)
class Estimate:
    """A denoiser's estimate of x0 (B, C, h, w) and the ᾱ at which it was made."""

    x0: Tensor
    alpha_bar: float


class Solver(Protocol):
    """One step of the reverse process."""

    stochastic: bool  # whether `step` needs fresh noise

    def step(
        self,
        x_BChw: Tensor,
        now: Estimate,
        previous: Estimate | None,
        alpha_bar_next: float,
        noise_BChw: Tensor | None = None,
    ) -> Tensor:
        """x at the ᾱ of `now` → x at ᾱ next, which is larger. `previous`: the estimate of the step before, None in the
        first step."""
        ...


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2020, eqs. 12 and 16). eta: 0 is deterministic, 1 is DDPM; published values above 1 work, since
    1 − ᾱ − σ² is clamped at 0. The noise in x is derived from x0 as given, so clipping x0 moves both."""

    eta: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"eta {self.eta}: must be 0 (deterministic) or more")

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise."""
        return self.eta > 0

    def step(
        self,
        x_BChw: Tensor,
        now: Estimate,
        previous: Estimate | None,
        alpha_bar_next: float,
        noise_BChw: Tensor | None = None,
    ) -> Tensor:
        """See `Solver`. Raises ValueError unless 0 ≤ ᾱ now < ᾱ next ≤ 1, and for eta > 0 without noise."""
        alpha_bar = now.alpha_bar
        if not 0 <= alpha_bar < alpha_bar_next <= 1:
            raise ValueError(f"alpha_bar {alpha_bar:g} to {alpha_bar_next:g}: a step must rise within 0…1")
        if self.stochastic and noise_BChw is None:
            raise ValueError(f"eta {self.eta:g} needs noise: pass some, or set eta to 0")
        variance = self.eta**2 * (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
        direction_BChw = noise_from(now.x0, x_BChw, torch.as_tensor(alpha_bar, dtype=torch.float64))
        kept = math.sqrt(max(0.0, 1 - alpha_bar_next - variance))
        next_BChw = math.sqrt(alpha_bar_next) * now.x0 + kept * direction_BChw
        return next_BChw + math.sqrt(variance) * noise_BChw if self.stochastic else next_BChw


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): a DDIM step from the x0 extrapolated to the middle of the step in
    log-SNR. First order without a step before, after one from ᾱ = 0 (infinitely far in log-SNR) and to ᾱ = 1."""

    stochastic: ClassVar[bool] = False

    def step(
        self,
        x_BChw: Tensor,
        now: Estimate,
        previous: Estimate | None,
        alpha_bar_next: float,
        noise_BChw: Tensor | None = None,
    ) -> Tensor:
        """See `Solver`. Raises ValueError for ᾱ that do not rise."""
        if previous is not None and alpha_bar_next < 1:
            if not 0 <= previous.alpha_bar < now.alpha_bar:
                raise ValueError(
                    f"alpha_bar {previous.alpha_bar:g} of the step before: must be below now, {now.alpha_bar:g}"
                )
            path = torch.tensor([previous.alpha_bar, now.alpha_bar, alpha_bar_next], dtype=torch.float64)
            before, ahead = torch.logit(path).diff().tolist()  # without log_snr's limits: before may be infinite
            now = Estimate(now.x0 + 0.5 * ahead / before * (now.x0 - previous.x0), now.alpha_bar)
        return DDIM().step(x_BChw, now, None, alpha_bar_next)


SAMPLERS = ("ddim", "dpm++")


def solver_of(sampler: str, eta: float = 0.0) -> Solver:
    """The solver of the public interface's names. Raises ValueError for another name, and for eta with "dpm++"."""
    check_choice(sampler, "sampler", SAMPLERS)
    if sampler == "ddim":
        return DDIM(eta)
    if eta != 0:
        raise ValueError(f"eta {eta:g} with dpm++: it adds no noise; set eta to 0 or use the ddim sampler")
    return DPMSolverPP2M()


@dataclass(frozen=True)
class SampleStep:
    """One step done: index 1…steps and the estimate of x0 (B, C, h, w); at the last step that is the result."""

    index: int
    steps: int
    x0: Tensor


def sample(
    denoiser: Callable[..., DenoiserOutput],
    noise_BChw: Tensor,
    *,
    positions: object,
    tokens: Tensor | None,
    times: Tensor,
    alpha_bars: Tensor,
    prediction_type: str,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    solver: Solver | None = None,
    clip: Callable[[Tensor], Tensor] | None = None,
    row_noise: Callable[[], Tensor] | None = None,
    gradients: bool = False,
) -> Iterator[SampleStep]:
    """Noise (B, C, h, w) → the steps to a clean latent, in the noise's dtype.

    denoiser: called as a `Denoiser` is; alpha_bar_B is float32. Its recurrent state goes to the next step, unless
        guidance begins or ends in between. A caller that wants other calls for some steps, or gradients in some only,
        gives a function of its own.
    tokens: the condition (B, N, D), or None for the null condition alone, whatever the guidance.
    times, alpha_bars: (steps + 1,) float64; t falls from noise to clean, ᾱ rises to exactly 1.
    guidance: g of null + g·(cond − null) where t is in guidance_interval, 1 elsewhere; 1 asks the denoiser for the
        condition only, 0 for null only, else both in one call.
    solver: DPMSolverPP2M() by default. clip: bounds every estimate of x0. row_noise: returns noise like noise_BChw;
        needed by stochastic solvers. gradients: whether steps are differentiable.

    Raises ValueError at once, before the first step, for a bad argument.
    """
    solver = DPMSolverPP2M() if solver is None else solver
    check_prediction_type(prediction_type)
    if solver.stochastic and row_noise is None:
        raise ValueError(f"{solver} needs noise: pass row_noise, or set eta to 0")
    _check_path(times, alpha_bars)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance {guidance}: must be a finite number, 1 for none")
    low, high = check_interval(guidance_interval)
    if noise_BChw.ndim != 4:
        raise ValueError(f"noise {tuple(noise_BChw.shape)}: must be (B, C, h, w)")
    if tokens is not None and len(tokens) != len(noise_BChw):
        raise ValueError(f"tokens for {len(tokens)} rows, noise for {len(noise_BChw)}: give one row of each an image")

    path, steps = alpha_bars.tolist(), len(alpha_bars) - 1
    weights = [guidance if low <= t <= high else 1.0 for t in times.tolist()]

    def run() -> Iterator[SampleStep]:
        x_BChw, previous, recurrent_state = noise_BChw, None, None
        for i in range(steps):
            if i > 0 and weights[i] != weights[i - 1]:
                recurrent_state = None  # it belongs to the conditions of the step before
            alpha_bar_B = x_BChw.new_full((len(x_BChw),), path[i], dtype=torch.float32)
            output = denoiser(x_BChw, alpha_bar_B, positions, _conditions(tokens, weights[i]), recurrent_state)
            recurrent_state = output.recurrent_state
            prediction_BChw = _guide(output.prediction.to(x_BChw.dtype), weights[i])
            x0_BChw = x0_from(prediction_type, prediction_BChw, x_BChw, alpha_bars[i])
            now = Estimate(x0_BChw if clip is None else clip(x0_BChw), path[i])
            yield SampleStep(index=i + 1, steps=steps, x0=now.x0)
            if i + 1 == steps:
                return  # a step to ᾱ = 1 is x0 itself
            noise = row_noise() if solver.stochastic else None
            x_BChw, previous = solver.step(x_BChw, now, previous, path[i + 1], noise), now

    return run() if gradients else torch.no_grad()(run)()


def _conditions(tokens: Tensor | None, weight: float) -> tuple[Tensor | None, ...]:
    if tokens is None or weight == 0:
        return (None,)
    return (tokens,) if weight == 1 else (tokens, None)


def _guide(prediction_KBChw: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), with g = 1 for none."""
    if len(prediction_KBChw) == 1:
        return prediction_KBChw[0]
    condition_BChw, null_BChw = prediction_KBChw
    return null_BChw + weight * (condition_BChw - null_BChw)


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
