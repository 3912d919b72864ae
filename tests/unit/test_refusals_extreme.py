"""Calls of `Pipeline` at and past the limits: refused in a line, or done."""

import math

import pytest
import torch
from PIL import Image
from refusals import refused

from r2id import Latent


def latent_of(rows: int = 1, size: tuple = (4, 4), aspect: float = 1.0) -> Latent:
    return Latent(torch.zeros(rows, 3, *size), aspect)


POINT = (0.5, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 1))
PYTHON = {
    "a zoom past float precision": (lambda p: p.resample(latent_of(), size=(8, 8), region=POINT), "2^-20 or wider"),
    "a denormal zoom": (lambda p: p.resample(latent_of(), size=(8, 8), region=(0, 0, 5e-324, 5e-324)), "2^-20"),
    "a region of numerals": (lambda p: p.resample(latent_of(), size=(8, 8), region="0011"), "four numbers"),
    "a region of truths": (lambda p: p.resample(latent_of(), size=(8, 8), region=[False, 0, True, 1]), "four numbers"),
    "a region of words": (lambda p: p.resample(latent_of(), size=(8, 8), region=("a", "b", "c", "d")), "four numbers"),
    "a mixture of nothing": (lambda p: p.diffuse([{"3": 0.0, "7": 0}]), "above 0 and finite"),
    "a mixture past all floats": (lambda p: p.diffuse([{"3": 1e308, "7": 1.7e308}]), "above 0 and finite"),
    "a label of a million letters": (lambda p: p.diffuse(["3" * 10**6]), "must be an index 0…9 or one of"),
    "a seed of 30 digits": (lambda p: p.diffuse(["3"], seed=10**30), "0…4294967295"),
    "a billion steps": (lambda p: p.diffuse(["3"], steps=10**9), "1…1000"),
    "guidance of a billion": (lambda p: p.diffuse(["3"], guidance=1e9), "-100…100"),
    "an image 20,000 wide": (lambda p: p.encode(Image.new("L", (20_000, 1))), "0.015625…64"),
}


@pytest.mark.parametrize("case", PYTHON)
def test_python_refuses_in_a_line(tiny, case):
    act, words = PYTHON[case]
    refused(lambda: act(tiny), words)


def test_extremes_within_the_limits_work(tiny):
    line = tiny.diffuse(["3"], latent_size=(1, 4096), aspect=1.0, steps=1, guidance=-100.0, seed=2**32 - 1)
    assert tiny.resample(line, size=(61, 8192 // 64)).isfinite().all()
    assert tiny.resample(line, size=(1, 61), region=(0.5, 0.5, 0.5 + 2**-19, 0.5 + 2**-19)).isfinite().all()
    wild = tiny.diffuse([{"3": 5e-324, "7": 1.0}], steps=8, guidance=100.0, sampler="ddim", eta=10.0)
    assert tiny.resample(wild, size=(8, 61)).isfinite().all()
