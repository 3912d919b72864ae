"""A few cases at random of every door; `python tests/fuzz.py` tries as many as one likes."""

import pytest
from fuzz import Fuzz

CASES = {"arguments": 60, "config": 60, "weights": 30, "latent": 60, "png": 100, "record": 60, "link": 60}


@pytest.fixture(scope="module")
def fuzz(tiny_weights, tmp_path_factory):
    return Fuzz(tiny_weights, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("door", CASES)
def test_anything_is_valid_or_refused_in_a_line(fuzz, door):
    assert fuzz.run(door, CASES[door], derandomize=True) >= CASES[door] // 2


def test_every_door_is_tried(fuzz):
    assert set(fuzz.doors) == set(CASES)
