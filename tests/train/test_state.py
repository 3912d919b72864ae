"""States survive a crash at any moment, and what is damaged is passed over."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from train.engine import state as module
from train.engine.state import KEEP, State, load_state, save_state, states


def state(step: int) -> State:
    tensors = {
        "model.weight": torch.full((2, 3), float(step)),
        "model.bias": torch.zeros(2),
        "ema.weight": torch.ones(1),
    }
    return State(tensors, {"step": step, "recipe": {"name": "small"}})


def steps(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in states(folder)]


def test_a_state_reads_back_as_it_was_written(tmp_path):
    assert load_state(tmp_path / "nothing") is None
    written = save_state(tmp_path / "run", state(7))
    read = load_state(tmp_path / "run")
    assert written.name == "state-00000007"
    assert read.metadata == state(7).metadata
    assert read.tensors.keys() == state(7).tensors.keys()
    assert all(torch.equal(value, state(7).tensors[name]) for name, value in read.tensors.items())
    assert read.part("model").keys() == {"weight", "bias"}
    assert read.part("optimiser") == {}


def test_only_the_newest_states_stay(tmp_path):
    for step in (5, 50, 200, 1000):
        save_state(tmp_path, state(step))
    assert KEEP == 2
    assert steps(tmp_path) == [200, 1000]
    assert {path.name for path in tmp_path.iterdir()} == {"state-00000200", "state-00001000"}
    save_state(tmp_path, state(1000))  # the same step again replaces it
    assert steps(tmp_path) == [200, 1000]


def test_a_crash_before_the_rename_leaves_the_older_state(tmp_path, monkeypatch):
    save_state(tmp_path, state(1))

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, state(2))
    assert load_state(tmp_path).metadata["step"] == 1
    save_state(tmp_path, state(3))  # clears away what the crash left
    assert {path.name for path in tmp_path.iterdir()} == {"state-00000001", "state-00000003"}


@pytest.mark.parametrize(
    ("owner", "write"), [(Path, "mkdir"), (module, "save_tensors"), (Path, "write_text"), (module, "flush")]
)
def test_a_full_disk_leaves_the_older_state_and_nothing_of_the_new_one(tmp_path, monkeypatch, owner, write):
    save_state(tmp_path, state(1))
    whole = getattr(owner, write)

    def full(path, *rest, **options):
        if write != "mkdir" or path.name.startswith("tmp-"):
            whole(path, *rest, **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, write, full)
        with pytest.raises(OSError, match="No space left on device"):
            save_state(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]
    assert load_state(tmp_path).metadata["step"] == 1
    save_state(tmp_path, state(2))
    assert load_state(tmp_path).metadata["step"] == 2


def test_large_states_take_several_files_and_miss_none(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 30)  # the three tensors have 24, 8 and 4 bytes
    path = save_state(tmp_path, state(3))
    names = ["state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors", "state.json"]
    assert sorted(file.name for file in path.iterdir()) == names
    read = load_state(tmp_path).tensors
    assert all(torch.equal(value, read[name]) for name, value in state(3).tensors.items())
    for lost in names:
        save_state(tmp_path, state(4)).joinpath(lost).unlink()
        with pytest.warns(UserWarning, match="state-00000004: damaged state passed over"):
            assert load_state(tmp_path).metadata["step"] == 3
    monkeypatch.setattr(module, "FILE_BYTES", 1)  # one tensor is never split
    assert len(list(save_state(tmp_path, state(5)).glob("*.safetensors"))) == 3


def truncate(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def empty(folder: Path) -> None:
    (folder / "state.safetensors").write_bytes(b"")


def lose_tensors(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": ')


def overwrite(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("damage", [truncate, empty, lose_tensors, lose, scribble, overwrite])
def test_a_damaged_newest_state_is_passed_over(tmp_path, damage):
    save_state(tmp_path, state(1))
    damage(save_state(tmp_path, state(2)))
    with pytest.warns(UserWarning, match="state-00000002: damaged state passed over"):
        assert load_state(tmp_path).metadata["step"] == 1


def test_damaged_states_never_push_out_whole_ones(tmp_path):
    for step in (10, 20):
        truncate(save_state(tmp_path, state(step)))
    with pytest.warns(UserWarning, match="damaged"):
        assert load_state(tmp_path) is None
    save_state(tmp_path, state(3))  # begun anew
    with pytest.warns(UserWarning, match="damaged"):
        assert load_state(tmp_path).metadata["step"] == 3
    save_state(tmp_path, state(20))
    assert load_state(tmp_path).metadata["step"] == 20


def test_a_state_that_would_not_load_is_not_written(tmp_path):
    save_state(tmp_path, state(1))
    with pytest.raises(ValueError, match="NaN or infinity in 'model.weight'"):
        save_state(tmp_path, State({"model.weight": torch.tensor([torch.nan])}, {"step": 2}))
    assert load_state(tmp_path).metadata["step"] == 1
