"""What the entry points share: the bar, the cost of a run before it begins, and errors of one line."""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
from dataclasses import replace

import pytest
import torch
from scripts import PIXELS, RESAMPLER
from small_run import SMALL, compute, small, train

from train import train_denoiser, train_resampler
from train.engine.cli import clock, dry_run, script, train_with_progress
from train.engine.progress import progress_bar
from train.engine.recipe import Phase
from train.engine.state import load_state


def printed(capfd) -> str:
    return "".join(capfd.readouterr())


def test_a_run_is_followed_to_its_end(tmp_path, capfd):
    evaluated = []

    def evaluate(progress) -> str:
        evaluated.append(progress.step)
        return f"sheet {progress.metrics['mse']:.4f}"

    train_with_progress(small(tmp_path, replace(SMALL, evaluate_every=10)), compute, evaluate)
    text = printed(capfd)
    assert evaluated == [10, 12] and re.search(r"10: sheet \d\.\d{4}", text)
    assert re.search(r"12/12 .*loss=\d\.\d{4}, gradient=\d+\.?\d*, images=[\d.]+/s", text)
    train_with_progress(small(tmp_path), compute, evaluate)
    assert "all 12 steps are done; more steps or another --out go on" in printed(capfd)


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_holds_as_much_of_a_long_bar_as_of_a_short_one(leave, capfd):
    def lines(count: int) -> int:
        with progress_bar(total=count, leave=leave) as bar:
            for step in range(count):
                bar.set_postfix({"loss": step}, refresh=False)
                bar.update()
        return capfd.readouterr().err.count("\n")

    assert lines(5_000) == lines(10) == (3 if leave else 0)


def test_what_changed_is_told_when_a_run_goes_on(tmp_path, capfd):
    train(small(tmp_path), send=signal.SIGTERM, at=4)
    train_with_progress(small(tmp_path, replace(SMALL, accumulate=2)), compute, str)
    assert "changed since step 5, from here on as it is now: recipe.accumulate: 1 → 2" in printed(capfd)
    assert load_state(tmp_path).metadata["recipe"]["accumulate"] == 2


def test_the_cost_is_that_of_the_phases():
    run = small(None, replace(SMALL, phases=(Phase(2, (0.1, 0.1)), Phase(6000, (0.1, 0.1)))))
    steps = []

    def computed(loss, indices, phase, step, part):
        steps.append(step)
        value, metrics = compute(loss, indices, phase, step, part)
        if step > 1:  # 4e7 operations forward, as many for the one gradient asked for
            value = value + (torch.zeros(4, 1000, requires_grad=True) @ torch.zeros(1000, 5000)).sum()
        return value, metrics

    header, size, first, second, total = dry_run(run, computed)
    assert "device cpu, precision float32" in header
    assert size == "97 parameters; 4 images a step in 1 parts"  # (4 + 1) · 16 + 16 + 1
    assert set(steps) == {0, 1, 2, 2002, 4002}
    cost = r"phase 0: 2 steps, 0\.0 GFLOP and [\d.e-]+ s a step, [\d,]+ MB at most, 0 s"
    assert re.fullmatch(cost, first), first
    assert second.startswith("phase 1: 6,000 steps, 0.1 GFLOP")
    assert total.startswith("in all: 6,002 steps, 0.5 TFLOP, ") and total.endswith("without evaluations")
    assert [clock(seconds) for seconds in (4.4, 61, 3660, 360_000)] == [
        "4 s",
        "0 h 01 min",
        "1 h 01 min",
        "100 h 00 min",
    ]


class InductorError(RuntimeError):
    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("batch 0: must be 1"), "error: batch 0: must be 1"),
        (FloatingPointError("step 4"), "error: step 4"),
        (OSError(errno.ENOSPC, "No space left on device"), r"make room, then the same command goes on"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs"),
            "error: .*Permission denied: 'runs'; give another --out, or set HF_HOME .* or TMPDIR .* to a folder that",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system: '/x'; give another --out"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), "TMPDIR .* to a folder that can be"),
        (torch.OutOfMemoryError("Tried 2 GiB.\nmore"), "error: Tried 2 GiB.; raise optimisation.accumulate or lower"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you\nmore"), "memory: you; raise optimisation.accum"),
        (InductorError("No working C++ compiler found\nmore"), "optimisation.compile: No working C.*; install a C.*"),
        (NotImplementedError("'aten::x' is not implemented for the MPS device.\n"), "; set PYTORCH_ENABLE_MPS_FALLB"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit, match=message) as caught:
        script(main)
    assert "\n" not in caught.value.code


def test_a_fault_of_the_program_is_not_hidden():
    def main():
        raise KeyError("key")

    with pytest.raises(KeyError):
        script(main)


def test_control_c_says_that_nothing_is_lost(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        script(main)
    assert caught.value.code == 130 and "the same command goes on from there" in capsys.readouterr().err


def test_an_output_that_lacks_a_character_goes_on(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    script(lambda: print("accumulate: 1 → 2", flush=True))
    assert printed.getvalue().strip() == b"accumulate: 1 ? 2"


def test_a_dry_run_of_a_script_takes_settings_and_writes_nothing(images, tmp_path, capfd):
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RESAMPLER, encoding="utf-8")
    command = ["--config", str(recipe), "--data", images, "--out", str(run), "--dry-run"]
    train_resampler.main([*command, "--set", "optimisation.accumulate=3"])
    lines = capfd.readouterr().out.splitlines()[-4:]
    assert "parameters; 6 images a step in 3 parts" in lines[0]
    for line, begin in zip(lines[1:], ("phase 0: 25 steps, ", "phase 1: 5 steps, ", "in all: 30 steps, "), strict=True):
        assert line.startswith(begin)
    assert not run.exists()
    recipe.write_text(PIXELS, encoding="utf-8")
    train_denoiser.main(command)
    assert "in all: 30 steps" in capfd.readouterr().out and not run.exists()
