import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch.testing import assert_close

from r2id.sampler import DDIM, DPMSolverPP2M, Estimate, sample, solver_of
from r2id.schedule import Schedule, noisy

SHAPE = (2, 3, 4, 6)
OURS = {"epsilon": "epsilon", "v_prediction": "v"}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x_BChw, alpha_bar):
    """A fixed random nonlinear function of every value and of the noise level."""
    mixing_CC = normal(x_BChw.shape[1], x_BChw.shape[1], seed=9).to(x_BChw.dtype)
    return torch.tanh(torch.einsum("dc,bchw->bdhw", mixing_CC, x_BChw) + alpha_bar)


class Denoiser:
    """Predicts `function(x, alpha_bar) + mean of the tokens` for every condition and records how it was called."""

    def __init__(self, function=network):
        self.function, self.calls = function, []

    def __call__(self, noisy_BChw, alpha_bar_B, positions, conditions, recurrent_state=None):
        self.calls.append(
            SimpleNamespace(x=noisy_BChw, conditions=conditions, recurrent_state=recurrent_state, positions=positions)
        )
        base_BChw = self.function(noisy_BChw, alpha_bar_B.view(-1, 1, 1, 1))
        offsets = [0.0 if tokens is None else tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1) for tokens in conditions]
        return SimpleNamespace(
            prediction=torch.stack([base_BChw + o for o in offsets]), recurrent_state=len(self.calls)
        )


def path(steps, name="cosine"):
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return {"times": times, "alpha_bars": Schedule(name=name).alpha_bar(times, cells=(4, 6))}


def run(denoiser, noise=None, *, steps=4, sampler="dpm++", eta=0.0, **kwargs):
    noise = normal(*SHAPE) if noise is None else noise
    arguments = {"positions": None, "tokens": None, "prediction_type": "v", **path(steps), **kwargs}
    return list(sample(denoiser, noise, solver=solver_of(sampler, eta), **arguments))


def published_path(scheduler):
    """The scheduler's own timesteps and its own ᾱ there, closed with the clean end."""
    alpha_bars = scheduler.alphas_cumprod[scheduler.timesteps].double()
    times = (scheduler.timesteps.double() + 1) / 1000
    end = torch.ones(1, dtype=torch.float64)
    return {"times": torch.cat([times, 0 * end]), "alpha_bars": torch.cat([alpha_bars, end])}


def close(ours, theirs):
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    "prediction, betas",
    [
        ("epsilon", {"beta_schedule": "linear"}),
        ("v_prediction", {"beta_schedule": "linear"}),
        ("v_prediction", {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}),
    ],
)
def test_ddim_agrees_with_diffusers_step_for_step(prediction, betas, clipped, eta):
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=clipped, timestep_spacing="trailing", set_alpha_to_one=True, **betas
    )
    scheduler.set_timesteps(10)
    noises = normal(10, *SHAPE, seed=1)
    denoiser, remaining = Denoiser(), iter(noises)
    ours = run(
        denoiser,
        prediction_type=OURS[prediction],
        sampler="ddim",
        eta=eta,
        clip=(lambda x0: x0.clamp(-1, 1)) if clipped else None,
        row_noise=lambda: next(remaining),
        **published_path(scheduler),
    )
    x = normal(*SHAPE)
    for step, call, t, noise in zip(ours, denoiser.calls, scheduler.timesteps, noises, strict=True):
        close(call.x, x)
        theirs = scheduler.step(
            network(x, scheduler.alphas_cumprod[t]), t, x, eta, use_clipped_model_output=True, variance_noise=noise
        )
        close(step.x0, theirs.pred_original_sample)
        x = theirs.prev_sample
    close(ours[-1].x0, x)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # inside diffusers, with numpy 2
@pytest.mark.parametrize("steps", [1, 2, 6, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpm_solver_agrees_with_diffusers_step_for_step(prediction, steps):
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=prediction, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint"
    )
    scheduler.set_timesteps(steps)
    denoiser = Denoiser()
    ours = run(denoiser, prediction_type=OURS[prediction], sampler="dpm++", **published_path(scheduler))
    x = normal(*SHAPE)
    for step, call, t in zip(ours, denoiser.calls, scheduler.timesteps, strict=True):
        close(call.x, x)
        x = scheduler.step(network(x, scheduler.alphas_cumprod[t]), t, x).prev_sample
        close(step.x0, scheduler.model_outputs[-1])
    close(ours[-1].x0, x)


def test_dpm_solver_is_nearer_to_the_exact_solution_than_ddim():
    """For data N(0, s²) the best estimate of x0 is known, and so is where the path from a noise ends: at s·noise."""
    s, noise = 0.3, normal(*SHAPE, dtype=torch.float64)

    def best_x0(x, alpha_bar):
        alpha_bar = alpha_bar.double()
        return alpha_bar.sqrt() * s**2 * x / (alpha_bar * s**2 + 1 - alpha_bar)

    def error(sampler):
        result = run(Denoiser(best_x0), noise, steps=20, prediction_type="x0", sampler=sampler)[-1].x0
        return (result - s * noise).abs().max().item()

    assert error("dpm++") < 0.01 < error("ddim") < 0.1


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 1.0), ("ddim", 2.0), ("dpm++", 0.0)])
@pytest.mark.parametrize("prediction_type", ["v", "x0", "epsilon"])
@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
def test_zero_terminal_snr_is_finite(name, prediction_type, sampler, eta):
    arguments = path(5, name)
    assert arguments["alpha_bars"][0] == 0
    steps = run(
        Denoiser(),
        prediction_type=prediction_type,
        sampler=sampler,
        eta=eta,
        row_noise=lambda: normal(*SHAPE),
        **arguments,
    )
    assert all(step.x0.isfinite().all() for step in steps)


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 1.0), ("dpm++", 0.0)])
def test_a_certain_denoiser_is_believed(sampler, eta):
    x0 = normal(*SHAPE, seed=3)
    steps = run(
        Denoiser(lambda x, _: x0), prediction_type="x0", sampler=sampler, eta=eta, row_noise=lambda: normal(*SHAPE)
    )
    assert_close(steps[-1].x0, x0)


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_ddim_keeps_the_variance_until_eta_exceeds_one(eta):
    x0, noise, fresh = normal(3, 100_000, 1, 1, 1, dtype=torch.float64)
    alpha_bar = torch.tensor(0.2, dtype=torch.float64)
    x = DDIM(eta).step(noisy(x0, noise, alpha_bar), Estimate(x0, 0.2), None, 0.6, fresh)
    sigma2 = eta**2 * (0.4 / 0.8) * (1 - 0.2 / 0.6)
    assert x.var().item() == pytest.approx(0.6 + max(0.4, sigma2), rel=0.02)


def test_dpm_solver_is_first_order_without_history_and_to_the_clean_end():
    (x, x0, before), solver = normal(3, *SHAPE), DPMSolverPP2M()
    now = Estimate(x0, 0.3)
    first = DDIM().step(x, now, None, 0.6)
    assert_close(solver.step(x, now, None, 0.6), first)
    assert_close(solver.step(x, now, Estimate(before, 0.0), 0.6), first)
    assert not torch.allclose(solver.step(x, now, Estimate(before, 0.1), 0.6), first)
    assert_close(solver.step(x, now, Estimate(before, 0.1), 1.0), x0)


def test_steps_count_from_one_and_keep_the_dtype():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        steps = run(Denoiser(), normal(*SHAPE).to(dtype), steps=3)
        assert [(step.index, step.steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
        assert all(step.x0.shape == SHAPE and step.x0.dtype == dtype for step in steps)


def test_row_noise_is_drawn_once_between_two_steps():
    draws = []
    run(Denoiser(), steps=4, sampler="ddim", eta=0.5, row_noise=lambda: draws.append(1) or normal(*SHAPE))
    assert len(draws) == 3


def test_gradients_are_kept_where_they_are_asked_for():
    scale = torch.ones((), requires_grad=True)
    assert not any(step.x0.requires_grad for step in run(Denoiser(lambda x, _: scale * x)))
    assert torch.is_grad_enabled()
    *_, last = run(Denoiser(lambda x, _: scale * x), gradients=True)
    last.x0.sum().backward()
    assert scale.grad.abs() > 0


def test_a_caller_decides_which_steps_have_gradients():
    scale = torch.ones((), requires_grad=True)

    def some(x, alpha_bar):
        with torch.set_grad_enabled(alpha_bar[0].item() < 0.5):
            return scale * x

    free, held = Denoiser(some), Denoiser(lambda x, _: scale.detach() * x)
    assert_close(run(free, gradients=True)[-1].x0, run(held)[-1].x0)
    assert [call.x.requires_grad for call in free.calls] == [False, True, True, True]


def kinds(denoiser):
    return ["+".join("null" if tokens is None else "cond" for tokens in call.conditions) for call in denoiser.calls]


@pytest.mark.parametrize("guidance, kind", [(1.0, "cond"), (0.0, "null"), (2.5, "cond+null"), (-1.0, "cond+null")])
def test_guidance_asks_only_for_what_it_needs_in_one_call(guidance, kind):
    denoiser = Denoiser()
    run(denoiser, tokens=normal(2, 4, 8), guidance=guidance, steps=3)
    assert kinds(denoiser) == [kind] * 3


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 4.0])
def test_guidance_is_null_plus_g_times_the_difference(guidance):
    tokens = normal(2, 4, 8)
    step = run(Denoiser(), tokens=tokens, guidance=guidance, steps=1, prediction_type="x0")[0]
    null = network(normal(*SHAPE), 0.0)
    assert_close(step.x0, null + guidance * tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1))


def test_without_tokens_only_null_is_asked_for():
    denoiser = Denoiser()
    run(denoiser, tokens=None, guidance=3.0, steps=2)
    assert kinds(denoiser) == ["null"] * 2


def test_guidance_interval_includes_its_ends_and_leaves_the_condition_elsewhere():
    denoiser = Denoiser()  # at t = 1, 0.75, 0.5, 0.25
    run(denoiser, tokens=normal(2, 4, 8), guidance=2.0, guidance_interval=(0.5, 0.75), steps=4)
    assert kinds(denoiser) == ["cond", "cond+null", "cond+null", "cond"]
    assert [call.recurrent_state for call in denoiser.calls] == [None, None, 2, None]


def test_recurrent_state_and_positions_are_handed_from_step_to_step():
    denoiser, positions = Denoiser(), object()
    run(denoiser, positions=positions, tokens=normal(2, 4, 8), guidance=2.0, steps=4)
    assert [call.recurrent_state for call in denoiser.calls] == [None, 1, 2, 3]
    assert all(call.positions is positions for call in denoiser.calls)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_every_estimate_is_clipped_and_the_next_step_starts_from_it(sampler):
    free, clipped = Denoiser(lambda x, _: 9 * x), Denoiser(lambda x, _: 9 * x)
    assert run(free, prediction_type="x0", sampler=sampler)[0].x0.abs().max() > 1
    steps = run(clipped, prediction_type="x0", sampler=sampler, clip=lambda x0: x0.clamp(-1, 1))
    assert all(step.x0.abs().max() == 1 for step in steps)
    start, end = path(4)["alpha_bars"][:2].tolist()
    assert_close(clipped.calls[1].x, DDIM().step(normal(*SHAPE), Estimate(steps[0].x0, start), None, end))


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.5), ("dpm++", 0.0)])
def test_a_row_alone_equals_the_row_in_the_batch(sampler, eta):
    noise, draw = normal(*SHAPE), normal(*SHAPE, seed=5)
    both = run(Denoiser(), noise, sampler=sampler, eta=eta, row_noise=lambda: draw)[-1].x0
    alone = run(Denoiser(), noise[1:], sampler=sampler, eta=eta, row_noise=lambda: draw[1:])[-1].x0
    assert_close(both[1:], alone)


FALLING = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prediction_type": "noise"}, "'noise'.*v, epsilon, x0"),
        ({"solver": DDIM(0.5)}, r"eta=0\.5\) needs noise"),
        ({"guidance": math.inf}, "guidance inf"),
        ({"guidance_interval": (0.8, 0.2)}, r"\(0\.8, 0\.2\)"),
        ({"guidance_interval": (-0.1, 0.2)}, r"guidance_interval -0\.1"),
        ({"tokens": normal(3, 4, 8)}, "3 rows, noise for 2"),
        ({"noise": normal(3, 4, 6)}, r"\(3, 4, 6\)"),
        ({"times": FALLING[:1], "alpha_bars": FALLING[:1]}, "1 step or more"),
        ({"times": FALLING}, r"times \(3,\) and alpha_bars \(5,\)"),
        ({"times": FALLING.float(), "alpha_bars": FALLING.flip(0).float()}, "float64"),
        ({"times": FALLING.flip(0), "alpha_bars": FALLING.flip(0)}, "times from 0 to 1"),
        ({"times": FALLING * 2, "alpha_bars": FALLING.flip(0)}, "times from 2 to 0"),
        ({"times": FALLING, "alpha_bars": FALLING}, "alpha_bars from 1 to 0"),
        ({"times": FALLING, "alpha_bars": FALLING.flip(0) * 0.9}, r"alpha_bars from 0 to 0\.9"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(arguments, message):
    denoiser = Denoiser()
    arguments = {"noise_BChw": arguments.pop("noise", normal(*SHAPE)), **path(4), **arguments}
    with pytest.raises(ValueError, match=message):
        sample(denoiser, **{"positions": None, "tokens": None, "prediction_type": "v", **arguments})
    assert not denoiser.calls


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda x: DDIM().step(x, Estimate(x, 0.5), None, 0.5), r"alpha_bar 0\.5 to 0\.5"),
        (lambda x: DDIM().step(x, Estimate(x, 0.5), None, 1.1), r"alpha_bar 0\.5 to 1\.1"),
        (lambda x: DDIM(0.1).step(x, Estimate(x, 0.2), None, 0.5), "needs noise"),
        (lambda x: DPMSolverPP2M().step(x, Estimate(x, 0.5), Estimate(x, 0.6), 0.7), r"alpha_bar 0\.6 of the step"),
        (lambda x: solver_of("euler"), "'euler'.*ddim, dpm"),
        (lambda x: solver_of("dpm++", 0.5), r"eta 0\.5 with dpm.*ddim"),
        (lambda x: solver_of("ddim", -1.0), "eta -1"),
        (lambda x: solver_of("ddim", math.nan), "eta nan"),
    ],
)
def test_a_solver_refuses_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act(normal(*SHAPE))
