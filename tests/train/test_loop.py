"""The loop: its order of images, its parts, its rates, its averages, and what it refuses, warns of and tells."""

from __future__ import annotations

import errno
import importlib.util
import math
import signal
from dataclasses import replace

import pytest
import torch
from small_run import COUNT, EXACT, SMALL, Judged, SmallLoss, compute, same, small, train
from torch import nn

from train.engine import loop
from train.engine.loop import Run, differences, generator
from train.engine.recipe import Optimisation, Phase
from train.engine.state import load_state, states


def test_a_critic_learns_beside_the_model_and_goes_on_where_it_stopped(tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run = small(whole, loss_type=Judged)
    before = run.critic.bias.item()
    train(run)
    assert train(small(parted, loss_type=Judged), send=signal.SIGTERM, at=5)[-1].stopped
    train(small(parted, loss_type=Judged))
    assert same(whole, parted) and run.critic.bias.item() > before and not any("critic" in name for name in run.ema)


def test_a_run_goes_on_with_a_critic_that_it_had_not_before(tmp_path):
    assert train(small(tmp_path), send=signal.SIGTERM, at=5)[-1].stopped
    assert train(small(tmp_path, loss_type=Judged))[-1].step == SMALL.steps


def test_muon_trains_the_matrices_of_blocks_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("torch", minversion="2.9", reason="torch has Muon from 2.9 on")
    whole, parted, muon = tmp_path / "whole", tmp_path / "parted", replace(SMALL, muon=3.0)
    run = small(whole, muon)
    matrices = [parameter for parameter in run.model.parameters() if parameter.ndim == 2]
    others, muons = (group["params"] for group in run.groups())
    assert {*map(id, muons)} == {*map(id, matrices)} and not {*map(id, others)} & {*map(id, matrices)}
    train(run)
    assert [group["lr"] for group in run.groups()] == pytest.approx([SMALL.at(11)[1], 3 * SMALL.at(11)[1]])
    assert train(small(parted, muon), send=signal.SIGTERM, at=5)[-1].stopped
    train(small(parted, muon))
    assert same(whole, parted)


def test_a_run_may_change_its_optimiser(tmp_path):
    """What Muon has not known of a matrix it learns anew; AdamW goes on with all else."""
    pytest.importorskip("torch", minversion="2.9", reason="torch has Muon from 2.9 on")
    assert train(small(tmp_path), send=signal.SIGTERM, at=5)[-1].stopped
    run = small(tmp_path, replace(SMALL, muon=3.0))
    matrix, bias = run.model[0].weight, run.model[0].bias
    known = [parameter in optimiser.state for optimiser in run.optimisers for parameter in (matrix, bias)]
    assert known == [False, True, False, False]
    assert train(run)[-1].step == SMALL.steps


def test_muon_that_torch_lacks_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Muon", None)
    with pytest.raises(ValueError, match=r"muon 3: needs torch 2.9, this is .*; pip install -U torch"):
        small(tmp_path, replace(SMALL, muon=3.0))


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_caller_evaluates_is_saved(tmp_path, asked):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = small(tmp_path)
    for progress in run.train(compute):
        if progress.step == 5:
            signal.raise_signal(asked)
    assert (progress.step, progress.stopped) == (6, True)
    assert load_state(tmp_path).metadata["step"] == 6
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
        assert load_state(tmp_path).metadata["step"] == progress.step
    assert len(states(tmp_path)) == 2
    metadata = load_state(tmp_path).metadata
    cost = metadata.pop("cost")
    recipe = {"sizes": [1, 2], "accumulate": 1}
    assert metadata == {"step": 12, "stream": None, "model": {"width": 16}, "recipe": recipe}
    assert (cost["images"], cost["steps"]) == (48, 12)


def test_another_model_is_refused(tmp_path):
    run = small(tmp_path)
    next(run.train(compute))
    run.save()
    with pytest.raises(ValueError, match="holds another model: width: 16 → 8; give another --out"):
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


def test_a_step_in_parts_is_the_step_as_a_whole(tmp_path):
    for accumulate in (1, 2, 4):
        run = small(tmp_path / str(accumulate), replace(SMALL, accumulate=accumulate), **EXACT)
        seen = train(run)
        assert run.parts == accumulate and run.cost["images"] == 48
        assert seen[-1].metrics["loss"] == pytest.approx(seen[-1].metrics["mse"])
        if accumulate == 1:
            whole, last = run.model.state_dict(), seen[-1].metrics
            continue
        assert seen[-1].metrics["gradient"] == pytest.approx(last["gradient"], rel=1e-4)
        for name, value in run.model.state_dict().items():
            assert torch.allclose(value, whole[name], atol=1e-5)


def test_parts_draw_each_their_own(tmp_path):
    streams = [generator(0, step, part) for step in range(100) for part in range(8)]
    assert len({torch.randint(2**62, (), generator=stream).item() for stream in streams}) == 800
    drawn = []

    def computed(loss, indices, phase, step, part):
        drawn.append((part, len(indices), torch.rand(()).item()))
        return compute(loss, indices, phase, step, part)

    next(small(tmp_path, replace(SMALL, accumulate=2)).train(computed))
    assert [row[:2] for row in drawn] == [(0, 2), (1, 2)] and drawn[0][2] != drawn[1][2]


def test_parts_that_would_not_be_equal_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="batch 4, 10 images: must fill 1 processes x accumulate 3 parts of equal size"
    ):
        small(tmp_path, replace(SMALL, accumulate=3))
    with pytest.raises(ValueError, match="batch 64, 10 images: must fill 1 processes x accumulate 16 parts"):
        small(tmp_path, replace(SMALL, batch=64, accumulate=16))
    assert len(small(tmp_path, replace(SMALL, batch=64, accumulate=4)).batch(0)) == 8  # of 10 images


def test_rates_reach_the_optimiser_and_the_metrics(tmp_path):
    run = small(tmp_path, Optimisation(phases=(Phase(25, (0.02, 0.01)),), batch=4, evaluate_every=10))
    evaluated = []
    for progress in run.train(compute):
        assert [group["lr"] for group in run.groups()] == [run.optimisation.at(progress.step - 1)[1]]
        assert bool(progress.metrics) == (progress.step in (10, 20, 25))
        evaluated += [progress.step] * progress.evaluation
    assert evaluated == [10, 20, 25]
    assert {"loss", "mse", "rate", "gradient", "images/s"} == progress.metrics.keys()
    assert progress.metrics["rate"] == run.optimisation.at(24)[1]


def test_averaged_weights_forget_as_their_decay_says(tmp_path):
    """Of weights that jump once, the average has gone all the way but for decay per step since."""
    optimisation = Optimisation(phases=(Phase(120, (0.0, 0.0)),), batch=4, ema=0.9, weight_decay=0.0)
    run, jumped = small(tmp_path, optimisation, **EXACT), None
    for progress in run.train(compute):
        if progress.step == 90:
            before = {name: value.clone() for name, value in run.ema.items()}
            with torch.no_grad():
                jumped = [parameter.add_(1) for parameter in run.model.parameters()]
        if progress.step == 97:
            break
    assert jumped
    for name, value in run.ema.items():
        assert torch.allclose(value, before[name] + 1 - 0.9**7, atol=1e-5)


def test_a_phase_may_keep_a_share_of_the_averages_that_it_began_with(tmp_path):
    first, last = SMALL.phases
    train(small(tmp_path / "first", replace(SMALL, phases=(first,))))
    train(small(tmp_path / "free", SMALL))
    keeping = replace(SMALL, phases=(first, replace(last, kept=0.25)))
    assert train(small(tmp_path / "kept", keeping), send=signal.SIGTERM, at=9)[-1].stopped
    train(small(tmp_path / "kept", keeping))
    began, free, kept = (load_state(tmp_path / name).part("ema") for name in ("first", "free", "kept"))
    for name, value in kept.items():
        torch.testing.assert_close(value, 0.25 * began[name] + 0.75 * free[name], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="kept must be at least 0 and less than 1"):
        replace(SMALL, phases=(replace(last, kept=1.0),))


def test_averaged_weights_have_a_short_memory_at_first(tmp_path):
    run = small(tmp_path, Optimisation(phases=SMALL.phases, batch=4, ema=0.9999))
    began = {name: value.clone() for name, value in run.ema.items()}
    train(run)
    moved = run.model.state_dict()
    assert all((run.ema[name] - moved[name]).abs().max() < (began[name] - moved[name]).abs().max() for name in moved)


def test_the_loss_falls(tmp_path):
    optimisation = Optimisation(phases=(Phase(150, (0.02, 0.001)),), batch=5, warmup=5, ema=0.9)
    run = small(tmp_path, optimisation, dropout=0.0)
    errors = [progress.metrics["mse"] for progress in run.train(compute) if progress.metrics]
    assert len(errors) == 6  # every 25 steps
    assert errors[-1] < 0.2 * errors[0] and errors[-1] < 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_state(tmp_path, bad):
    run = small(tmp_path)

    def computed(loss, indices, phase, step, part):
        value, metrics = compute(loss, indices, phase, step, part)
        return value * (bad if step == 4 else 1), metrics

    with pytest.raises(FloatingPointError, match=f"^step 4: the loss is {bad}, .*; the last state on disk is good"):
        for progress in run.train(computed):
            if progress.step == 2:
                run.save()
    assert load_state(tmp_path).metadata["step"] == 2


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_lost(tmp_path):
    run = small(tmp_path)

    def computed(loss, indices, phase, step, part):
        value, metrics = compute(loss, indices, phase, step, part)
        steep = (value - value.detach()).sqrt()  # its slope at 0 is infinite
        return value + steep if step == 4 else value, metrics

    with pytest.raises(
        FloatingPointError, match=r"^step 4: the loss is \d+\.\d+, the gradient's norm (nan|inf); the last"
    ):
        list(run.train(computed))
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


@pytest.mark.parametrize("chosen", ["bfloat16", "float32"])
def test_auto_takes_the_precision_that_multiplies_faster(tmp_path, monkeypatch, capsys, chosen):
    seen = set()
    monkeypatch.setattr(loop, "faster_precision", lambda device: (chosen, "as measured"))
    run = small(tmp_path, replace(SMALL, precision="auto"))
    run.model.register_forward_hook(lambda model, inputs, output: seen.add(output.dtype))
    next(run.train(compute))
    assert f"precision: {chosen}, as measured" in capsys.readouterr().out
    assert seen == {getattr(torch, chosen)} and {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_a_full_disk_is_warned_of_and_tried_again(tmp_path, monkeypatch):
    run = small(tmp_path, replace(SMALL, save_every=0.0))
    write, full = loop.save_state, {3, 4, 12}

    def writing(folder, state):
        if state.metadata["step"] in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, state)

    monkeypatch.setattr(loop, "save_state", writing)
    fault = r"step {} could not be saved \(No space left on device\); make room, "
    with pytest.warns(UserWarning, match=fault.format("[34]") + "training goes on and tries again") as warned:
        with pytest.raises(OSError, match=fault.format(12) + "then the same command goes on from the state before"):
            for progress in run.train(compute):
                last = load_state(tmp_path).metadata["step"]
                assert last == (2 if progress.step in full else progress.step)
    assert (len(warned), load_state(tmp_path).metadata["step"]) == (2, 11)
    monkeypatch.undo()
    train(small(tmp_path))
    train(small(tmp_path / "whole"))
    assert same(tmp_path, tmp_path / "whole")


def test_what_changed_since_the_state_is_told(tmp_path):
    train(small(tmp_path), send=signal.SIGTERM, at=4)
    assert small(tmp_path).changed == []
    run = small(tmp_path, replace(SMALL, accumulate=2))
    assert (run.step, run.changed) == (5, ["recipe.accumulate: 1 → 2"])
    old = {"a": [{"b": 1}, {"b": 2}], "c": [1, 2], "d": {"e": "x"}}
    new = {"a": [{"b": 1}, {"b": 3}], "c": [1], "d": 4, "f": True}
    wanted = ["a.1.b: 2 → 3", "c.1: 2 → None", "d: {'e': 'x'} → 4", "f: None → True"]
    assert differences(old, new) == wanted and differences(old, old) == []
    assert loop.listed(wanted, most=2) == "a.1.b: 2 → 3, c.1: 2 → None and 2 more"


def test_a_stream_is_read_in_order_and_on_from_where_it_was(tmp_path):
    class Places:
        sought = None

        def position(self, place):
            return place // 8, (0, 0, place)

        def seek(self, block, begin):
            self.sought = block, begin

    def streamed(data: str) -> Run:
        metadata = {"model": {}, "data": data}
        return Run(SmallLoss(), SMALL, count=None, folder=tmp_path, metadata=metadata, track="none", stream=Places())

    run = streamed("shards")
    assert torch.cat([run.batch(step) for step in range(5)]).tolist() == list(range(20))
    list(run.train(lambda loss, indices, *rest: compute(loss, indices % COUNT, *rest)))
    assert run.stream.sought is None and load_state(tmp_path).metadata["stream"] == [6, [0, 0, 48]]
    assert streamed("shards").stream.sought == (6, [0, 0, 48])
    assert streamed("others").stream.sought is None  # its places are other ones


def test_a_run_without_a_folder_reads_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = small(None)
    run.update(compute)
    assert run.step == 1 and not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_said_in_a_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(ValueError, match="track wandb: it is not installed; pip install wandb, or --track none"):
        Run(SmallLoss(), SMALL, count=COUNT, folder=tmp_path, metadata={"model": {}}, track="wandb")
    assert not list(tmp_path.iterdir())


def test_a_compiled_step_is_the_same_step(tmp_path, monkeypatch):
    compiled, graphs = nn.Module.compile, []

    def eagerly(graph, _):  # the default backend needs a C++ compiler and minutes
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda module, **how: compiled(module, **how, backend=eagerly))
    short = replace(SMALL, phases=(Phase(steps=3, rate=(0.02, 0.01)),))
    train(small(tmp_path / "plain", short, **EXACT))
    assert not graphs
    train(small(tmp_path / "compiled", replace(short, compile=True), **EXACT))
    assert graphs  # though operations are counted in the first step, without them
    plain, other = (load_state(tmp_path / name) for name in ("plain", "compiled"))
    assert plain.tensors.keys() == other.tensors.keys()
    assert all(torch.allclose(value, other.tensors[name], atol=1e-5) for name, value in plain.tensors.items())
    assert plain.metadata["cost"]["operations"] == other.metadata["cost"]["operations"] > 0
