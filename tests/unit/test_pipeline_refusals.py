"""Bad arguments of `Pipeline`: one line with the limit, at once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from r2id import Latent, Pipeline, pipeline


@pytest.fixture(scope="module")
def latent(tiny) -> Latent:
    return tiny.diffuse([3, None], seed=1, latent_size=(3, 4), steps=3)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(0))


NOT_A_SIDE = (0, -1, 1e9, 10**9, 10**400, math.nan, math.inf, "64", None, True, [64], 64.5, 64.0, 1j, np.float32(8))
NOT_A_PAIR = (None, 64, "64", "ab", (), (8,), (8, 8, 8), {8: 8, 9: 9}, np.zeros((3, 1)), torch.zeros(2), math.nan)
BAD_SIZES = [*NOT_A_PAIR, *((side, 8) for side in NOT_A_SIDE), *((8, side) for side in NOT_A_SIDE)]
BAD_NUMBERS = (math.nan, math.inf, -math.inf, "1", True, [1.0], 1j, 10**400, np.zeros((3, 1)))


@pytest.mark.parametrize("size", [*BAD_SIZES, (8193, 1)])
def test_a_bad_size_is_refused(tiny, latent, size):
    for call in (tiny.resample, tiny.resample_tiles):  # at once, before the first tile
        assert refused(lambda call=call: call(latent, size=size)).startswith("size ")


def test_a_pixel_that_is_the_mean_of_too_many_points_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_POINTS", 2**10)
    wide = Latent(torch.zeros(1, 3, 4, 4), 64.0)
    assert "ask for a larger size" in refused(lambda: tiny.resample(wide, size=(1, 1)))
    assert tiny.resample(wide, size=(4, 256)).shape == (1, 1, 4, 256)


@pytest.mark.parametrize("size", [size for size in BAD_SIZES if size is not None] + [(65, 64), (4097, 1)])
def test_a_bad_latent_size_is_refused(tiny, size):
    for call in (tiny.diffuse, tiny.diffuse_steps):
        assert refused(lambda call=call: call([3], latent_size=size)).startswith("latent_size ")
    assert refused(lambda: tiny.encode(torch.zeros(1, 8, 8), latent_size=size)).startswith("latent_size ")


def test_a_latent_size_off_the_stride_is_refused(tiny):
    strided = Pipeline(replace(tiny.config, size_multiple=2), tiny.resampler, tiny.denoiser, device="cpu")
    assert "multiples of 2" in refused(lambda: strided.diffuse([3], latent_size=(4, 3)))


@pytest.mark.parametrize(
    "region",
    [None, 1, "0011", (0, 0, 1), (0, 0, 1, 2), (0.5, 0, 0.5, 1), (math.nan, 0, 1, 1), (0, 0, 1e-9, 1), (0, 0, "x", 1)],
)
def test_a_bad_region_is_refused(tiny, latent, region):
    for call in (tiny.resample, tiny.resample_tiles):
        assert refused(lambda call=call: call(latent, size=(8, 8), region=region)).startswith("region ")


@pytest.mark.parametrize("fit", ["", "crop", 0, False, ["contain"], "Contain", "x" * 1000])
def test_a_bad_fit_is_refused(tiny, latent, fit):
    assert refused(lambda: tiny.resample(latent, size=(8, 8), fit=fit)).startswith("fit ")


BAD_OPTIONS = {
    "steps": [0, -1, 1001, 2.5, "20", True, [4], *BAD_NUMBERS],
    "guidance": [1e3, -1e3, "2", *BAD_NUMBERS],
    "guidance_interval": [
        0.5,
        (0.5,),
        (0.8, 0.2),
        (-0.1, 1),
        (0, 1.1),
        (0, math.nan),
        ("0", 1),
        "01",
        (0, None),
        (0, 1, 2),
    ],
    "eta": [-0.1, 11, None, *BAD_NUMBERS],
    "sampler": ["", "euler", 1, ["ddim"], "DDIM", "x" * 1000],
    "seed": [-1, 2**32, 1.5, "1", True, [], [1, 2], [-1], [None], [1.0], {1}, math.nan, 10**400],
    "aspect": [0, -1, 65, 1 / 65, "1", *BAD_NUMBERS],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD_OPTIONS.items() for value in values])
def test_a_bad_option_is_refused_before_the_first_step(tiny, name, value):
    options = {"sampler": "ddim"} | {name: value}
    assert name in refused(lambda: tiny.diffuse_steps([3], **options))


def test_eta_with_a_sampler_that_adds_no_noise_is_refused(tiny):
    assert "eta" in refused(lambda: tiny.diffuse_steps([3], eta=0.5, sampler="dpm++"))


@pytest.mark.parametrize(
    "labels",
    [
        [],
        (),
        [10],
        [-1],
        ["ten"],
        "ten",
        [True],
        [1.0],
        [[1]],
        {},
        [{}],
        [{"1": -1}],
        [{"1": math.nan}],
        [{"1": 0}],
        [{"ten": 1}],
        {3},
        np.zeros((3, 1)),
        np.zeros(2),
        np.array([True]),
        torch.zeros(1),
        torch.tensor([True]),
        torch.tensor([[1]]),
        range(9, 11),
        "x\n" * 1000,
    ],
)
def test_bad_labels_are_refused(tiny, labels):
    refused(lambda: tiny.diffuse_steps(labels))


@pytest.mark.parametrize(
    "latent",
    [
        None,
        torch.zeros(1, 3, 4, 4),
        Latent("tensor", 1.0),
        Latent(None, 1.0),
        Latent(torch.zeros(3, 4, 4), 1.0),
        Latent(torch.zeros(1, 2, 4, 4), 1.0),
        Latent(torch.zeros(0, 3, 4, 4), 1.0),
        Latent(torch.zeros(1, 3, 4, 0), 1.0),
        Latent(torch.zeros(1, 3, 65, 64), 1.0),
        Latent(torch.zeros(1, 3, 4, 4).double(), 1.0),
        Latent(torch.zeros(1, 3, 4, 4).int(), 1.0),
        Latent(torch.full((1, 3, 4, 4), 1.1), 1.0),
        Latent(torch.full((1, 3, 4, 4), math.nan), 1.0),
        *(Latent(torch.zeros(1, 3, 4, 4), aspect) for aspect in (0, -1.0, None, "1", math.nan, math.inf, 1e3)),
    ],
)
def test_a_bad_latent_is_refused(tiny, latent):
    for call in (tiny.resample, tiny.resample_tiles):
        assert refused(lambda call=call: call(latent, size=(8, 8))).startswith("latent")


@pytest.mark.parametrize(
    "image",
    [
        None,
        "image.png",
        [],
        np.zeros((1, 8, 8), np.float32),
        torch.zeros(8, 8),
        torch.zeros(1, 1, 1, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 0, 8),
        torch.zeros(2, 1, 8, 0),
        torch.zeros(0, 1, 8, 8),
        torch.zeros(1, 8, 8, dtype=torch.complex64),
        torch.full((1, 8, 8), math.nan),
        torch.full((1, 8, 8), math.inf),
        torch.full((1, 8, 8), 1.1),
        torch.full((1, 8, 8), -1.0),
        torch.zeros(1, 1, 100),
        torch.zeros(1, 1, 1).expand(1, 8193, 8193),
        Image.new("L", (100, 1)),
        Image.new("L", (0, 5)),
        [Image.new("L", (8, 8)), Image.new("L", (8, 9))],
    ],
)
def test_a_bad_image_is_refused(tiny, image):
    assert refused(lambda: tiny.encode(image)).startswith("image")
