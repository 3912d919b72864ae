"""Streams of shards: an endless order that follows from the seed, read on from any position, faults in one line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from test_data import (
    BROKEN,
    COUNT,
    FILES,
    LABELS,
    NAMES,
    SOME_BROKEN,
    holds,
    in_cls,
    in_json,
    save_files,
    save_shards,
    save_tars,
)

from train.data import images as data
from train.data import sources
from train.data.images import stream_images


@pytest.fixture
def small(monkeypatch):
    """Streams in blocks of 5 rows, with 3 rows held out."""
    monkeypatch.setattr(sources, "BLOCK", 5)
    monkeypatch.setattr(data, "VALIDATION", 3)
    monkeypatch.setattr(data, "SAMPLE", 9)


@pytest.mark.parametrize("kind", ["parquet", "cls", "json"])
def test_a_stream_shows_every_row_once_an_epoch(tmp_path, small, kind):
    folder = tmp_path / "shards"
    save_shards(folder, FILES) if kind == "parquet" else save_tars(folder, FILES, in_cls if kind == "cls" else in_json)
    train, held = stream_images(str(folder), "train", size=4), stream_images(str(folder), "validation", size=4)
    assert holds(held, 3) == [0, 4, 8] and train.names == held.names == (("0", "1", "2") if kind == "cls" else NAMES)
    assert train.count is None and train.images.shape == (None, 1, 4, 4)
    shown = holds(train, 105)  # five epochs, at whose end a block ends too
    assert sorted(shown) == sorted([number for number in range(COUNT) if number not in (0, 4, 8)] * 5)
    assert len({tuple(shown[start : start + 21]) for start in range(0, 105, 21)}) == 5
    with pytest.raises(TypeError, match="has no end"):
        len(train)


def test_a_stream_follows_from_its_seed(tmp_path, small):
    save_shards(tmp_path / "shards", FILES)
    first, same, other = (stream_images(str(tmp_path / "shards"), "train", size=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images[:50], same.images[:50])
    assert not torch.equal(first.images[:50], other.images[:50])
    assert torch.equal(first.images[torch.tensor([44, 7])], same.images[:50][[44, 7]])  # back and forth


def test_a_stream_goes_on_from_a_position_without_what_was_before(tmp_path, small, monkeypatch):
    save_shards(tmp_path / "shards", FILES)
    first, second = (stream_images(str(tmp_path / "shards"), "train", size=4) for _ in range(2))
    expected = [first.images[place : place + 4] for place in range(0, 80, 4)]
    block, begin = json.loads(json.dumps(first.stream.position(72)))  # as a state keeps it
    second.stream.seek(block, begin)
    begun = []
    monkeypatch.setattr(
        second.stream, "walk", lambda begin, walk=second.stream.walk: begun.append(begin) or walk(begin)
    )
    assert torch.equal(second.images[72:76], expected[18]) and torch.equal(second.images[76:80], expected[19])
    assert begun == [tuple(begin)] and begin[0] == 3  # epochs


def test_a_stream_passes_over_images_that_cannot_be_read(tmp_path, small):
    save_shards(tmp_path / "shards", SOME_BROKEN)
    with pytest.warns(UserWarning, match=r"cannot be read and are left out: .*row \d+ \("):
        train = stream_images(str(tmp_path / "shards"), "train", size=4)
        assert not set(BROKEN) & set(holds(train, 63))


def tars_open(folder: Path) -> list[Path]:
    held = (path.resolve() for path in Path("/proc/self/fd").glob("*"))
    return [path for path in held if path.is_relative_to(folder) and path.suffix == ".tar"]


def test_what_cannot_be_streamed_is_said_in_one_line(tmp_path, small):
    def refused(name: str, split: str = "train") -> str:
        with pytest.raises(ValueError) as error:
            stream_images(str(tmp_path / name), split, size=4).images[:COUNT]
        assert "\n" not in str(error.value)
        until = time.monotonic() + 5  # what reads ahead may open it once more, and closes it too
        while (held := tars_open(tmp_path)) and time.monotonic() < until:
            time.sleep(0.01)
        assert not held
        return str(error.value)

    save_files(tmp_path / "images", FILES)
    assert "a folder of images is read where it is, without a copy; do not stream it" in refused("images")
    save_shards(tmp_path / "few", FILES[:3], LABELS[:3], shards=1)
    assert "no rows after the first 3, too few; do not stream" in refused("few")
    assert "no test split, only train" in refused("few", "test")
    save_shards(tmp_path / "sorted", FILES, [0] * 12 + [1] * 12, shards=1)
    assert "the first 9 rows are all 'ant'; shuffle the rows before they are stored, or do not stream" in refused(
        "sorted"
    )
    save_tars(tmp_path / "late", FILES, lambda number: ("json", json.dumps({"label": f"{number // 12}"}).encode()), 1)
    assert "row 12: label '1' is none of those that the set begins with; store" in refused("late")
    save_tars(tmp_path / "cut", FILES, in_cls, shards=1)
    whole = (tmp_path / "cut" / "train-00000.tar").read_bytes()
    (tmp_path / "cut" / "train-00000.tar").write_bytes(whole[: 30 * 1024 + 700])
    assert "shard 0 cannot be read: " in refused("cut")
