"""The loop: its order of images, its rates, its averages, and that stopping it changes nothing."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from train.loop import Optimisation, Phase, Progress, Run, generator, operations
from train.state import load_state, states

COUNT = 10  # rows of data: with a batch of 4 two batches an epoch
SMALL = Optimisation(
    phases=(Phase(steps=7, rate=(0.02, 0.01)), Phase(steps=5, rate=(0.01, 0.001))), batch=4, warmup=3, save_every=1e9
)


class SmallLoss(nn.Module):
    """Regression of a fixed function of noisy rows: dropout and noise as well, so all kinds of randomness occur."""

    def __init__(self, *, dropout: float = 0.3, width: int = 16):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        noisy = rows + 0.01 * torch.randn(rows.shape, generator=rng)
        error = (self.model(noisy)[:, 0] - rows.sum(dim=1)).square().mean()
        return error, {"mse": error.detach()}


def small(folder: Path, optimisation: Optimisation = SMALL, **options) -> Run:
    torch.set_num_threads(1)
    torch.manual_seed(optimisation.seed)
    return Run(
        SmallLoss(**options), optimisation, count=COUNT, folder=folder, about={"model": options, "sizes": (1, 2)}
    )


def compute(loss, indices, phase, step):
    rng = generator(SMALL.seed, step)
    rows = torch.linspace(-1, 1, 4 * COUNT).view(COUNT, 4).cos()
    return loss(rows[indices], rng)


def train(run: Run, *, save_at: int = -1, send: int = 0, at: int = -1) -> list[Progress]:
    """Trains to the end, saves after a step, and sends this process a signal in the middle of another."""

    def computed(loss, indices, phase, step):
        if step == at:
            signal.raise_signal(send)
        return compute(loss, indices, phase, step)

    seen = []
    for progress in run.train(computed):
        seen.append(progress)
        if progress.step == save_at:
            run.save()
    return seen


def same(first: Path, second: Path) -> bool:
    a, b = load_state(first), load_state(second)
    times = [state.about["spent"].pop("seconds") for state in (a, b)]
    assert min(times) > 0 and a.about == b.about and a.tensors.keys() == b.tensors.keys()
    return all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())


@pytest.mark.parametrize(("number", "code", "left"), [(signal.SIGKILL, -signal.SIGKILL, 3), (signal.SIGTERM, 0, 9)])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, number, code, left):
    train(small(tmp_path / "whole"))
    arguments = f"save_at=3, send={int(number)}, at=8"
    program = f"import pathlib, test_loop as t; t.train(t.small(pathlib.Path({str(tmp_path / 'cut')!r})), {arguments})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=60
    )
    assert done.returncode == code, done.stderr.decode()
    assert load_state(tmp_path / "cut").about["step"] == left
    run = small(tmp_path / "cut")
    assert run.step == left
    seen = train(run)
    assert [progress.step for progress in seen] == list(range(left + 1, 13))
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert not train(small(tmp_path / "cut"))  # nothing is left to do


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_caller_evaluates_is_saved(tmp_path, asked):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = small(tmp_path)
    for progress in run.train(compute):
        if progress.step == 5:
            signal.raise_signal(asked)
    assert (progress.step, progress.stopped) == (6, True)
    assert load_state(tmp_path).about["step"] == 6
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_handlers_of_signals_come_back_whatever_ends_the_loop(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = small(tmp_path)
    progress = run.train(compute)
    next(progress)
    assert signal.getsignal(signal.SIGTERM) != before
    progress.close()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyError):
        list(run.train(lambda *_: {}["nothing"]))
    assert signal.getsignal(signal.SIGTERM) == before


def test_states_are_kept_by_time_and_pruned(tmp_path):
    run = small(tmp_path, Optimisation(phases=SMALL.phases, batch=4, save_every=0.0))
    for progress in run.train(compute):
        assert load_state(tmp_path).about["step"] == progress.step
    assert len(states(tmp_path)) == 2
    about = load_state(tmp_path).about
    spent = about.pop("spent")
    assert about == {"step": 12, "model": {}, "sizes": [1, 2]}
    assert (spent["images"], spent["steps"]) == (48, 12)


def test_another_model_is_refused(tmp_path):
    run = small(tmp_path)
    next(run.train(compute))
    run.save()
    with pytest.raises(ValueError, match="holds another model: {}; give another --out"):
        small(tmp_path, width=8)


def test_every_image_is_seen_once_an_epoch_in_an_order_of_seed_and_step(tmp_path):
    twelve = small(tmp_path, Optimisation(phases=SMALL.phases, batch=5))
    epochs = [torch.cat([twelve.batch(2 * epoch), twelve.batch(2 * epoch + 1)]) for epoch in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(COUNT))
    assert len({tuple(order.tolist()) for order in epochs}) == 3
    train(twelve)
    assert torch.equal(twelve.batch(1), epochs[0][5:])  # whatever was done in between
    other = small(tmp_path / "other", Optimisation(phases=SMALL.phases, batch=5, seed=1))
    assert not torch.equal(other.batch(0), twelve.batch(0))
    uneven = small(tmp_path / "uneven")  # 10 = 4 + 4 + 2: the two left over wait for another order
    assert len(torch.cat([uneven.batch(0), uneven.batch(1)]).unique()) == 8
    large = small(tmp_path / "large", Optimisation(phases=SMALL.phases, batch=64))
    assert sorted(large.batch(3).tolist()) == list(range(COUNT))


def test_rates_rise_and_then_fall_along_a_cosine_in_every_phase():
    phases = (Phase(steps=100, rate=(1.0, 0.5), pixels_in=9), Phase(steps=50, rate=(0.2, 0.0)))
    plain = Optimisation(phases=phases, warmup=0)
    assert plain.steps == 150
    rates = [plain.at(step)[1] for step in range(150)]
    for phase, start in zip(phases, (0, 100), strict=True):
        high, low = phase.rate
        for step in range(phase.steps):
            assert plain.at(start + step)[0] is phase
            expected = low + (high - low) * (1 + math.cos(math.pi * step / phase.steps)) / 2
            assert rates[start + step] == pytest.approx(expected)
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.75) and rates[100] == 0.2
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))
    warm = Optimisation(phases=phases, warmup=10)
    assert [warm.at(step)[1] / rates[step] for step in (0, 4, 9, 120)] == pytest.approx([0.1, 0.5, 1, 1])


def test_rates_reach_the_optimiser_and_the_metrics(tmp_path):
    run = small(tmp_path, Optimisation(phases=(Phase(25, (0.02, 0.01)),), batch=4, evaluate_every=10))
    evaluated = []
    for progress in run.train(compute):
        assert run.optimiser.param_groups[0]["lr"] == run.optimisation.at(progress.step - 1)[1]
        assert bool(progress.metrics) == (progress.step == 25)
        evaluated += [progress.step] * progress.evaluation
    assert evaluated == [10, 20, 25]
    assert {"mse", "rate", "gradient", "images/s"} == progress.metrics.keys()


def test_the_averaged_weights_are_the_running_mean(tmp_path):
    run = small(tmp_path, Optimisation(phases=SMALL.phases, batch=4, ema=0.6))
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    for progress in run.train(compute):
        decay = min(0.6, (1 + progress.step) / (10 + progress.step))
        for name, value in run.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in expected.items():
        assert torch.allclose(run.ema[name], value, atol=1e-6)
        assert not torch.allclose(run.ema[name], run.model.state_dict()[name], atol=1e-6)


def test_the_loss_falls(tmp_path):
    optimisation = Optimisation(phases=(Phase(150, (0.02, 0.001)),), batch=5, warmup=5, ema=0.9)
    run = small(tmp_path, optimisation, dropout=0.0)
    errors = [progress.metrics["mse"] for progress in run.train(compute) if progress.metrics]
    assert len(errors) == 6
    assert errors[-1] < 0.2 * errors[0] and errors[-1] < 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_state(tmp_path, bad):
    run = small(tmp_path)

    def computed(loss, indices, phase, step):
        value, metrics = compute(loss, indices, phase, step)
        return value * (bad if step == 4 else 1), metrics

    with pytest.raises(FloatingPointError, match=f"^step 4: the loss is {bad}; the last state on disk is good"):
        for progress in run.train(computed):
            if progress.step == 2:
                run.save()
    assert load_state(tmp_path).about["step"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"phases": ()}, "phases"), ({"phases": (Phase(0, (1.0, 1.0)),)}, "1 step"), ({"batch": 0}, "batch 0: must be 1")],
)
def test_a_recipe_that_cannot_be_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Optimisation(**{"phases": SMALL.phases, **options})


@pytest.mark.parametrize("groups", [1, 16])
def test_a_backward_pass_counts_twice_the_forward_pass(groups):
    convolution, x = nn.Conv2d(16, 16, 7, padding=3, groups=groups), torch.randn(2, 16, 8, 8, requires_grad=True)
    with operations() as forward:
        y = convolution(x)
    with operations() as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * y.numel() * 16 // groups * 49
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
