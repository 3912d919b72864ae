"""Bad arguments of `Pipeline` and bad configurations: refused in one line with the limit, at once.

What the server refuses is in `tests/server/test_refusals.py`.
"""

from __future__ import annotations

import math
import typing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from r2id import Latent, Pipeline, pipeline
from r2id.checkpoint import CheckpointError
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.denoisers.dimr import DiMRConfig
from r2id.denoisers.r2id import GuideConfig
from r2id.denoisers.rin import RINConfig
from r2id.limits import MAX_BLOCKS
from r2id.resamplers import RESAMPLERS


def latent_of(*shape: int, aspect=1.0) -> Latent:
    return Latent(torch.zeros(shape or (2, 3, 3, 4)), aspect)


# arguments of Pipeline

NOT_A_SIDE = (0, -1, 1e9, 10**9, 10**400, math.nan, math.inf, "64", None, True, [64], 64.5, 64.0, 1j, np.float32(8))
NOT_A_PAIR = (64, "64", "ab", (), (8,), (8, 8, 8), {8: 8, 9: 9}, np.zeros((3, 1)), torch.zeros(2), math.nan)
NOT_A_SIZE = [*NOT_A_PAIR, *((side, 8) for side in NOT_A_SIDE), *((8, side) for side in NOT_A_SIDE)]
NOT_A_NUMBER = (math.nan, math.inf, -math.inf, "1", True, [1.0], 1j, 10**400, np.zeros((3, 1)))

BAD = {  # argument → values, each of which every call in CALLS refuses
    "size": [None, *NOT_A_SIZE, (8193, 1)],
    "latent_size": [*NOT_A_SIZE, (65, 64), (4097, 1)],
    "region": [
        *(None, 1, "0011", (0, 0, 1), (0, 0, 1, 2), (0.5, 0, 0.5, 1), (math.nan, 0, 1, 1), (0, 0, 1e-9, 1)),
        *((0, 0, "x", 1), (0, 0, 5e-324, 5e-324), [False, 0, True, 1], ("a", "b", "c", "d")),
    ],
    "fit": ["", "crop", 0, False, ["contain"], "Contain", "x" * 1000],
    "steps": [0, -1, 1001, 10**9, 2.5, "20", True, [4], *NOT_A_NUMBER],
    "guidance": [1e3, -1e3, "2", *NOT_A_NUMBER],
    "guidance_interval": [
        *(0.5, (0.5,), (0.8, 0.2), (-0.1, 1), (0, 1.1), (0, math.nan), ("0", 1), "01", (0, None), (0, 1, 2)),
    ],
    "eta": [-0.1, 11, None, *NOT_A_NUMBER],
    "sampler": ["", "euler", 1, ["ddim"], "DDIM", "x" * 1000],
    "seed": [-1, 2**32, 10**30, 1.5, "1", True, [], [1, 2], [-1], [None], [1.0], {1}, math.nan, 10**400],
    "aspect": [0, -1, 65, 1 / 65, "1", *NOT_A_NUMBER],
    "labels": [
        *([], (), [10], [-1], ["ten"], "ten", [True], [1.0], [[1]], {3}, range(9, 11), "x\n" * 1000, ["3" * 10**6]),
        *({}, [{}], [{"1": -1}], [{"1": math.nan}], [{"1": 0}], [{"ten": 1}], [{"3": 1e308, "7": 1.7e308}]),
        *(np.zeros((3, 1)), np.zeros(2), np.array([True])),
        *(torch.zeros(1), torch.tensor([True]), torch.tensor([[1]])),
    ],
    "latent": [
        *(None, torch.zeros(1, 3, 4, 4), Latent("tensor", 1.0), Latent(None, 1.0)),
        *map(latent_of, (3, 1, 0, 1, 1), (4, 2, 3, 3, 3), (4, 4, 4, 4, 65), (1, 4, 4, 0, 64)),
        Latent(torch.zeros(3, 4, 4), 1.0),
        *(Latent(torch.zeros(1, 3, 4, 4).to(dtype), 1.0) for dtype in (torch.float64, torch.int32)),
        *(Latent(torch.full((1, 3, 4, 4), value), 1.0) for value in (1.1, math.nan)),
        *(latent_of(1, 3, 4, 4, aspect=aspect) for aspect in (0, -1.0, None, "1", math.nan, math.inf, 1e3)),
    ],
    "image": [
        *(None, "image.png", [], np.zeros((1, 8, 8), np.float32)),
        *map(torch.zeros, [(8, 8), (1, 1, 1, 8, 8), (3, 8, 8), (1, 0, 8), (2, 1, 8, 0), (0, 1, 8, 8), (1, 1, 100)]),
        *(torch.full((1, 8, 8), value) for value in (math.nan, math.inf, 1.1, -1.0)),
        *(torch.zeros(1, 8, 8, dtype=torch.complex64), torch.zeros(1, 1, 1).expand(1, 8193, 8193)),
        *(Image.new("L", size) for size in ((100, 1), (0, 5), (20_000, 1))),
        [Image.new("L", (8, 8)), Image.new("L", (8, 9))],
    ],
}
RESAMPLES = (Pipeline.resample, Pipeline.resample_tiles)  # both at once, before the first tile or step
DIFFUSES = (Pipeline.diffuse, Pipeline.diffuse_steps)
CALLS = {
    "size": [lambda p, value, f=f: f(p, latent_of(), size=value) for f in RESAMPLES],
    "region": [lambda p, value, f=f: f(p, latent_of(), size=(8, 8), region=value) for f in RESAMPLES],
    "fit": [lambda p, value, f=f: f(p, latent_of(), size=(8, 8), fit=value) for f in RESAMPLES],
    "latent": [lambda p, value, f=f: f(p, value, size=(8, 8)) for f in RESAMPLES],
    "latent_size": [
        *(lambda p, value, f=f: f(p, [3], latent_size=value) for f in DIFFUSES),
        lambda p, value: p.encode(torch.zeros(1, 8, 8), latent_size=value),
    ],
    "labels": [lambda p, value, f=f: f(p, value) for f in DIFFUSES],
    "image": [lambda p, value: p.encode(value)],
}
NAMED = {"labels": ""}  # what the message holds, where it is not the argument's name: one label or weight is named


def calls_of(argument: str) -> list:
    options = [
        lambda p, value, f=f: f(p, [3], **({"sampler": "ddim", "latent_size": (4, 4)} | {argument: value}))
        for f in DIFFUSES
    ]
    return CALLS.get(argument, options)


@pytest.mark.parametrize("argument, value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_argument_is_refused_in_a_line_that_names_it(tiny, argument, value):
    for call in calls_of(argument):
        assert NAMED.get(argument, argument) in refused(lambda call=call: call(tiny, value)).split(":")[0]


POINT = (0.5, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 1))
LIMITS = {  # what is asked for → the call, and the limit or the remedy that its message holds
    "a zoom past float precision": (lambda p: p.resample(latent_of(), size=(8, 8), region=POINT), "2^-20 or wider"),
    "a region of numerals": (lambda p: p.resample(latent_of(), size=(8, 8), region="0011"), "four numbers"),
    "a mixture of nothing": (lambda p: p.diffuse([{"3": 0.0, "7": 0}]), "above 0 and finite"),
    "a label of a million letters": (lambda p: p.diffuse(["3" * 10**6]), "must be an index 0…9 or one of"),
    "a seed of 30 digits": (lambda p: p.diffuse(["3"], seed=10**30), "0…4294967295"),
    "a billion steps": (lambda p: p.diffuse(["3"], steps=10**9), "1…1000"),
    "guidance of a billion": (lambda p: p.diffuse(["3"], guidance=1e9), "-100…100"),
    "an image 20,000 wide": (lambda p: p.encode(Image.new("L", (20_000, 1))), "0.015625…64"),
    "eta where no noise is added": (lambda p: p.diffuse_steps([3], eta=0.5, sampler="dpm++"), "eta to 0"),
    "odd cells of an even model": (lambda p: even(p).diffuse([3], latent_size=(4, 3)), "multiples of 2"),
}


def even(pipe: Pipeline) -> Pipeline:
    return Pipeline(replace(pipe.config, size_multiple=2), pipe.resampler, pipe.denoiser, device="cpu")


@pytest.mark.parametrize("case", LIMITS)
def test_a_refusal_holds_the_limit_or_the_remedy(tiny, case):
    act, words = LIMITS[case]
    refused(lambda: act(tiny), words)


def test_a_pixel_that_is_the_mean_of_too_many_points_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_POINTS", 2**10)
    wide = latent_of(1, 3, 4, 4, aspect=64.0)
    assert "ask for a larger size" in refused(lambda: tiny.resample(wide, size=(1, 1)))
    assert tiny.resample(wide, size=(4, 256)).shape == (1, 1, 4, 256)


def test_extremes_within_the_limits_work(tiny):
    line = tiny.diffuse(["3"], latent_size=(1, 4096), aspect=1.0, steps=1, guidance=-100.0, seed=2**32 - 1)
    assert tiny.resample(line, size=(61, 8192 // 64)).isfinite().all()
    assert tiny.resample(line, size=(1, 61), region=(0.5, 0.5, 0.5 + 2**-19, 0.5 + 2**-19)).isfinite().all()
    wild = tiny.diffuse([{"3": 5e-324, "7": 1.0}], steps=8, guidance=100.0, sampler="ddim", eta=10.0)
    assert tiny.resample(wild, size=(8, 61)).isfinite().all()


# configurations, which may come from strangers: before anything is built

CONFIGS = {name: config_type for name, (config_type, _) in {**RESAMPLERS, **DENOISERS}.items()} | {"guide": GuideConfig}
NO_NUMBER = [True, "3", None, [], [3], {}, [[[]]]]
BAD_FIELDS = {  # type of a field → values that none of that type may have
    int: [-1, 2**31, 2**63, 10**30, 1.0, float("nan"), *NO_NUMBER],
    int | None: [-1, 0, 2**31, 1.0, float("nan"), *(value for value in NO_NUMBER if value is not None)],
    float: [-0.5, 1e9, 10**400, float("nan"), float("inf"), -float("inf"), *NO_NUMBER],
    str: ["", "other", "x\n" * 99, 3, True, None, ["v"]],
    GuideConfig | None: [True, 3, "small", [], [{}], {"width": 0}],
    bool: [0, 1, 0.5, "true", None, [True]],
    tuple[int, int]: [[1, 0], [0, 10**9], [-(10**9), 0], [0], [0, 1, 2], [0, 1.5], [False, True], "01", 3, None, {}],
    tuple[int, ...]: [[4, 0], [4, -2], [10**9, 2], [4, 1.0], [True, True], ["4", "2"], [], [4], 4, "42", None, {}],
}


def refusal(config_type: type, **values) -> str:
    with pytest.raises(CheckpointError) as error:
        from_dict(config_type, values, "config.json")
    text = str(error.value)
    assert text.startswith("config.json: ") and "\n" not in text and len(text) <= 500
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_refuses_what_is_out_of_its_range_and_says_so(name):
    config_type = CONFIGS[name]
    hints = typing.get_type_hints(config_type)
    assert from_dict(config_type, {}, "config.json") == config_type()
    for field in fields(config_type):
        for value in BAD_FIELDS[hints[field.name]]:
            text = refusal(config_type, **{field.name: value})
            assert field.name in text and "must" in text, (field.name, value, text)
        if hints[field.name] is int:
            low, high = field.metadata["range"]
            assert f"{low}…{high}" in refusal(config_type, **{field.name: high + 1})


def test_blocks_are_limited_together():
    assert f"blocks x compute_layers 256: must be a whole number, 1…{MAX_BLOCKS}" in refusal(
        RINConfig, blocks=MAX_BLOCKS, compute_layers=2
    )
    assert "blocks together 160: must be" in refusal(DiMRConfig, blocks=[100, 60])


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_must_divide_every_width_they_are_taken_from(name):
    values = {
        **dict.fromkeys(("r2ir", "r2ir-cross-attention", "r2id", "s2id", "guide"), [{"width": 100}]),
        "rin": [{"interface_width": 100}, {"latent_width": 100}],
        "dimr": [{"widths": [100, 60]}],
    }
    for options in values[name]:
        assert f"{next(iter(options))} 100: must be a multiple of the 8 heads" in refusal(
            CONFIGS[name], heads=8, **options
        )
