"""In which precision pixels are decoded, and how little it shows; and where an image ends."""

from __future__ import annotations

import copy

import pytest
import torch

from r2id import Latent, Pipeline, pipeline, precision
from r2id.precision import decoder_dtype

CPU = torch.device("cpu")

MEASURED = precision.bfloat16_speedup  # as it is, whatever tests of the server put in its place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dtype_is_chosen_by_name_or_as_it_is(dtype):
    assert decoder_dtype(str(dtype).removeprefix("torch."), CPU) == decoder_dtype(dtype, CPU) == dtype


@pytest.mark.parametrize(
    ("speedup", "device", "chosen"),
    [(4.2, "cpu", torch.bfloat16), (1.1, "cpu", torch.float32), (0.4, "cpu", torch.float32)]
    + [(4.2, device, torch.float32) for device in ("cuda", "mps")],
)
def test_auto_is_the_faster_one_on_a_cpu(speedup, device, chosen, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: speedup)
    assert decoder_dtype("auto", torch.device(device)) == chosen


def test_products_are_timed_once_a_process(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    MEASURED.cache_clear()
    try:
        assert MEASURED() == MEASURED() == 1.0
    finally:
        MEASURED.cache_clear()
    assert next(clock) == 4 * (precision.REPEATS + 1)


@pytest.mark.parametrize("choice", ["float16", "", None, 32, torch.float16, torch.float64])
def test_any_other_dtype_is_refused(choice, tiny):
    with pytest.raises(ValueError, match="decoder_dtype .*: must be one of auto, float32, bfloat16$"):
        decoder_dtype(choice, CPU)
    with pytest.raises(ValueError, match="decoder_dtype .*: must be one of auto, float32, bfloat16$"):
        Pipeline(tiny.config, tiny.resampler, tiny.denoiser, device="cpu", decoder_dtype=choice)


@pytest.fixture(scope="module")
def contrasted(tiny):
    """`contrasted(dtype)` → the tiny pipeline, whose images have black, white and all between."""
    resampler = copy.deepcopy(tiny.resampler)
    image = Pipeline(tiny.config, resampler, tiny.denoiser, device="cpu", decoder_dtype="float32").resample(
        latent(), size=(32, 32), fit="stretch"
    )
    spread = 2 * (image - image.mean()).abs().max()
    mean = 2 * image.mean() - 1
    for layer in (resampler.pixel_mlp[-1], resampler.pixel_linear):
        layer.weight /= spread
    resampler.pixel_mlp[-1].bias.sub_(mean).div_(spread)
    return lambda dtype: Pipeline(tiny.config, resampler, tiny.denoiser, device="cpu", decoder_dtype=dtype)


def latent() -> Latent:
    return Latent(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, 1.0)


def test_bfloat16_moves_images_of_8_bits_by_two_at_most(contrasted):
    exact, rough = (contrasted(dtype).resample(latent(), size=(96, 96)) for dtype in ("float32", "bfloat16"))
    assert rough.dtype == torch.float32 and 0 <= rough.min() <= rough.max() <= 1
    assert exact.min() < 0.1 and exact.max() > 0.9 and exact.std() > 0.1
    moved = ((255 * exact).round() - (255 * rough).round()).abs()
    assert 0 < moved.max() <= 2


def test_bfloat16_tiles_equal_the_whole(contrasted, monkeypatch):
    """To the rounding of the products, whose order a tile's shape may change."""
    pipe = contrasted("bfloat16")
    whole = pipe.resample(latent(), size=(48, 40))
    monkeypatch.setitem(pipeline.TILE_POINTS, "cpu", 300)
    assert (pipe.resample(latent(), size=(48, 40)) - whole).abs().max() <= 2 / 255


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beyond_the_reach_of_the_border_there_is_nothing_but_background(contrasted, dtype):
    """In an image ten times as wide as its frame; and before, the decoder speaks."""
    pipe = contrasted(dtype)
    assert pipe.resampler.reach((4, 4)) == (0.5 + 1.5 / 4, 0.5 + 1.5 / 4)
    image = pipe.resample(latent(), size=(64, 640), fit="contain")
    x = ((torch.arange(640) + 0.5) / 640 - 0.5) * 10
    beyond = x.abs() > 0.5 + 1.5 / 4
    assert (image[..., beyond] == pipe.config.background[0]).all() and beyond.float().mean() > 0.8
    assert (image[..., ~beyond] != pipe.config.background[0]).float().mean() > 0.9
