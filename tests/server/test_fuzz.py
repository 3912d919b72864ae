"""A few random cases of every entry point; `python tests/fuzz.py` tries more."""

import pytest
from fuzz import Fuzz

CASES = {"arguments": 60, "config": 60, "weights": 30, "latent": 60, "png": 100, "record": 60, "link": 60}


@pytest.fixture(scope="module")
def fuzz(tiny_weights, tmp_path_factory):
    return Fuzz(tiny_weights, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("entry_point", CASES)
def test_anything_is_valid_or_refused_in_a_line(fuzz, entry_point):
    assert fuzz.run(entry_point, CASES[entry_point], derandomize=True) >= CASES[entry_point] // 2


def test_every_entry_point_is_tried(fuzz):
    assert set(fuzz.entry_points) == set(CASES)
