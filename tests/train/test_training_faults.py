"""Training in processes of its own: killed at every line of a save, asked to stop, shared by two, in half precision.

One process imports everything and forks the others, since the imports take longer than all the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import EXACT, SMALL, compute, same, small, train

from r2id import checkpoint
from train.engine import state
from train.engine.state import load_state, states

SAVING = {function.__code__ for function in (state.save_state, state.flush, checkpoint._write)}
HALVES = replace(SMALL, accumulate=2)


# in the processes


def everything(folder: Path) -> None:
    """All that the tests look at afterwards, below the folder; `results.json` tells how the processes ended."""
    importlib.import_module("torch._dynamo")  # as every optimiser does, which takes seconds
    results = {
        "save": forked(killed_saves, folder)[0],
        "killed": forked(stopped, folder / "killed", signal.SIGKILL)[0],
        "asked": forked(stopped, folder / "asked", signal.SIGTERM)[0],
        "half": forked(half, folder / "half")[0],
        "ranks": forked(rank, folder, ranks=2),
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def forked(function: Callable, *arguments, ranks: int = 1) -> list[int]:
    """Exit codes of processes that run this, or minus the signals that ended them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for number in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        signal.alarm(500)  # ends one that waits for another in vain
        try:
            os.environ.update(environment)
            if ranks > 1:
                names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "ACCELERATE_USE_CPU": "true"}
                os.environ.update({name: str(value) for name, value in names.items()})
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def stopped(folder: Path, number: int) -> None:
    train(small(folder), save_at=3, send=number, at=8)


def killed_saves(folder: Path) -> None:
    """`save-NNN`: a run of steps 2 and 4, killed before line NNN of the save of step 6."""
    run = small(folder / "before")
    for progress in run.train(compute):
        if progress.step in (2, 4):
            run.save()
        if progress.step == 6:
            break
    line = 0
    while forked(killed_save, run, shutil.copytree(folder / "before", folder / f"save-{line:03}"), line)[0]:
        line += 1


def killed_save(run, folder: Path, line: int) -> None:
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if event == "line" and frame.f_code in SAVING:
            if lines == line:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return trace if frame.f_code in SAVING or frame.f_code.co_name in ("save", "save_tensors") else None

    run.folder = folder
    sys.settrace(trace)
    run.save()


def half(folder: Path) -> None:
    run, seen = small(folder, replace(SMALL, precision="bfloat16"), **EXACT), set()
    run.model.register_forward_hook(lambda model, inputs, output: seen.add(output.dtype))
    train(run)
    assert seen == {torch.bfloat16}


def rank(folder: Path) -> None:
    """What two processes do together; each writes the parameters it ends with."""
    number = os.environ["RANK"]

    def keep(run, name: str) -> None:
        checkpoint.save_module(run.model, folder / name / f"rank-{number}.safetensors")

    for name, options in (("exact", EXACT), ("drawn", {})):
        run = small(folder / name, **options)
        train(run)
        keep(run, name)
    run = small(folder / "asked-one")
    seen = train(run, send=signal.SIGTERM, at=8 if number == "1" else -1)
    assert seen[-1].stopped
    keep(run, "asked-one")

    def bad(loss, indices, phase, step, part):
        value, metrics = compute(loss, indices, phase, step, part)
        return value * (float("nan") if (step, part) == (4, 1) else 1), metrics

    with pytest.raises(FloatingPointError, match="^step 4: "):
        list(small(folder / "bad").train(bad))
    with pytest.raises(ValueError, match="processes found different states; give an --out that all of them share"):
        small(folder / ("exact" if number == "0" else "elsewhere"), **EXACT)


# in the test


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """The folder that `everything` filled, with runs of this process beside it to compare with."""
    folder = tmp_path_factory.mktemp("faults")
    program = f"import pathlib, test_training_faults as t; t.everything(pathlib.Path({str(folder)!r}))"
    paths = os.pathsep.join(str(folder) for folder in list(Path(__file__).parents)[:3])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert (folder / "results.json").exists(), done.stderr
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    wanted = {"save": 0, "killed": -signal.SIGKILL, "asked": 0, "half": 0, "ranks": [0, 0]}
    assert results == wanted, done.stderr
    train(small(folder / "whole"))
    return folder


def test_a_run_killed_at_any_line_of_a_save_ends_as_one_that_was_not(ended):
    left = {}
    for folder in sorted(ended.glob("save-*")):
        names = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
        left.setdefault(names, folder)
        steps = [int(path.name[6:]) for path in states(folder)]
        assert load_state(folder).metadata["step"] == steps[-1]  # whole, or pytest makes the warning an error
        assert steps in ([2, 4], [2, 4, 6], [4, 6])
    assert len(list(ended.glob("save-*"))) > 25
    # Whatever the kills left, a run goes on from it: before the save, within each file, renamed, pruned.
    assert len(left) >= 5
    for folder in left.values():
        run = small(folder)
        assert run.step in (4, 6)
        train(run)
        assert same(folder, ended / "whole")
        assert [path.name for path in folder.iterdir() if path.name.startswith("tmp-")] == []


@pytest.mark.parametrize(("name", "step"), [("killed", 3), ("asked", 9)])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(ended, name, step):
    run = small(ended / name)
    assert run.step == step
    seen = train(run)
    assert [progress.step for progress in seen] == list(range(step + 1, 13))
    assert same(ended / "whole", ended / name)
    assert not train(small(ended / name))  # nothing is left to do


def test_half_precision_computes_in_it_and_keeps_the_weights_in_single(ended):
    plain = ended / "plain"
    train(small(plain, **EXACT))
    read, exact = load_state(ended / "half").tensors, load_state(plain).tensors
    assert {name: value.dtype for name, value in read.items()} == {name: value.dtype for name, value in exact.items()}
    apart = [(value - exact[name]).abs().max() for name, value in read.items() if name.startswith("model.")]
    assert 0 < max(apart) < 0.02


def ranks(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters, which are those of both ranks and of the newest state."""
    first, second = (checkpoint.load_tensors(folder / f"rank-{number}.safetensors") for number in (0, 1))
    for name, value in load_state(folder).part("model").items():
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], value)
    return first


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_two_processes_do_as_one_with_the_doubled_batch(ended):
    train(small(ended / "one", **EXACT))
    one, two = load_state(ended / "one"), load_state(ended / "exact")
    assert near(ranks(ended / "exact"), one.part("model")) and near(one.part("ema"), two.part("ema"))
    assert near(one.part("optimiser"), two.part("optimiser"))
    assert two.metadata["cost"]["images"] == one.metadata["cost"]["images"] == 48
    assert two.metadata["cost"]["operations"] == one.metadata["cost"]["operations"] > 0


def test_two_processes_draw_as_one_does_for_two_parts(ended):
    train(small(ended / "parts", HALVES))
    assert near(ranks(ended / "drawn"), load_state(ended / "parts").part("model"))
    assert not near(ranks(ended / "drawn"), load_state(ended / "whole").part("model"))


def test_one_process_that_is_asked_to_stop_stops_both_and_one_goes_on_for_them(ended):
    ranks(ended / "asked-one")
    run = small(ended / "asked-one", HALVES)
    assert run.step == 9
    train(run)
    assert near(run.model.state_dict(), ranks(ended / "drawn"))
