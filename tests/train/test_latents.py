"""Latents as a denoiser sees them: encoded, standardised, mirrored, read from a cache that is rebuilt when it must."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from digits import digits
from torch.nn import functional as F

from r2id import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.schedule import Schedule
from train.data.buckets import Shape, ShapeSampler
from train.data.images import ImageSet
from train.engine.recipe import CacheConfig
from train.losses import latent_source
from train.losses.latent_source import CachedLatents, EncodedLatents, Mirror
from train.losses.latent_space import LatentSpace, latent_statistics

TINY = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2, octaves=(-2, 3))
NAMES = tuple("0123456789")
SQUARE, WIDE = Shape((8, 8), (4, 4)), Shape((8, 14), (4, 7))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space_of(seed: int = 0, *, pixels: bool = False) -> LatentSpace:
    torch.manual_seed(seed)
    if pixels:
        return LatentSpace(None, mean=(0.0,), std=(1.0,), schedule=Schedule())
    moments = {"mean": (0.1, 0.0, -0.1), "std": (0.5, 0.25, 2.0)}
    return LatentSpace(CrossAttentionR2IR(TINY), **moments, schedule=Schedule())


def data(count: int = 20) -> ImageSet:
    images, labels = digits(8)
    return ImageSet(images[:count], labels[:count], NAMES, (0.0,))


def cached(folder, *, space=None, train=None, mirror=None, **config) -> CachedLatents:
    how = CacheConfig(**{"cells": ((4, 4),), **config})
    return CachedLatents(folder, how, space or space_of(), train or data(), (0.0,), mirror)


# the space


def test_latents_are_those_of_the_resampler_standardised():
    space, images = space_of(), data().images
    x0 = space.encode(images, (4, 4))
    assert torch.allclose(space.restore(x0), space.raw(images, (4, 4)), atol=1e-6)
    assert not x0.requires_grad and not space.resampler.training
    assert all(not parameter.requires_grad for parameter in space.resampler.parameters())
    assert space.restore(space.clip(10 * x0)).abs().max() == pytest.approx(1)
    assert torch.allclose(space.clip(x0), x0, atol=1e-5)


def test_statistics_are_of_the_latents_that_are_trained_on():
    resampler, images = space_of().resampler, data(64).images
    one_size = ShapeSampler(cells=(4, 4), p_square=1.0, p_anisotropic=0.0)
    mean, std = latent_statistics(resampler, images, one_size, (0.0,), 8)
    space = LatentSpace(resampler, mean=mean, std=std, schedule=Schedule())
    x0_CN = space.encode(images, (4, 4)).transpose(0, 1).flatten(1)
    assert x0_CN.mean(dim=1).abs().max() < 1e-4 and (x0_CN.std(dim=1) - 1).abs().max() < 1e-4
    several = latent_statistics(resampler, images, ShapeSampler(cells=(2, 6)), (0.0,), 8)
    assert several != (mean, std)


@pytest.mark.parametrize("cells", [(8, 8), (4, 4)])
def test_in_pixel_space_the_latent_is_the_image_at_its_size(cells):
    space, images = space_of(pixels=True), data().images
    reduced = F.interpolate(images, size=cells, mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.allclose(space.encode(images, cells), images if cells == (8, 8) else reduced, atol=1e-6)
    assert torch.equal(space.decode(images, aspect=1.0, side=8), images)


@pytest.mark.parametrize("shape", [SQUARE, WIDE])
def test_decoded_is_the_central_square_as_it_is_served(tiny, shape):
    config = tiny.config
    space = LatentSpace(tiny.resampler, mean=config.latent_mean, std=config.latent_std, schedule=config.schedule)
    latent = tiny.diffuse([1, 2], latent_size=shape.cells, aspect=shape.aspect, seed=0)
    x0 = space.standardise(latent.tensor).requires_grad_(True)
    decoded = space.decode(x0, aspect=shape.aspect, side=8)
    torch.testing.assert_close((decoded + 1) / 2, tiny.resample(latent, size=(8, 8), fit="cover"))
    decoded.sum().backward()
    assert x0.grad.abs().max() > 0


# encoded when needed


def test_encoded_latents_are_those_of_the_padded_images():
    space, train = space_of(), data()
    source = EncodedLatents(space, train, (0.0,), None, size=8)
    indices = torch.tensor([3, 1, 4])
    (latents,), labels = source(indices, WIDE, rng())
    assert latents.cells == WIDE.cells and latents.frames == [(WIDE.aspect, 3)] and len(latents) == 3
    assert torch.equal(labels, train.labels[indices])
    padded = F.pad(train.images[indices], (3, 3), value=-1.0)
    assert torch.allclose(latents.x0_BChw, space.encode(padded, WIDE.cells), atol=1e-6)


def test_mirror_images_come_with_the_labels_of_their_partners():
    train, mirror = data(), Mirror(NAMES, {"1": "7", "2": "5"})
    source = EncodedLatents(space_of(pixels=True), train, (0.0,), mirror, size=8)
    indices = torch.arange(20)
    (latents,), labels = source(indices, Shape((8, 8), (8, 8)), rng())
    mirrored = (latents.x0_BChw - train.images.flip(-1)).flatten(1).abs().amax(dim=1) < 1e-6
    plain = (latents.x0_BChw - train.images).flatten(1).abs().amax(dim=1) < 1e-6
    assert (mirrored | plain).all() and 4 < mirrored.sum() < 16
    partner = {1: 7, 7: 1, 2: 5, 5: 2}
    for row in range(20):
        own = train.labels[row].item()
        assert labels[row] == (partner.get(own, own) if mirrored[row] else own)
    none = mirror.labels(torch.tensor([-1, 3]), torch.tensor([True, True]))
    assert none.tolist() == [-1, 3]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"1": "x"}, "mirror_labels 1 = x: no label is 'x', only 0, 1"),
        ({"1": "7", "7": "5"}, "mirror_labels 7 = 5: one of them has another partner"),
    ],
)
def test_a_mirror_that_makes_no_sense_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        Mirror(NAMES, pairs)
    assert Mirror(NAMES, {"1": "7", "7": "1"}).partner_L[1] == 7  # the same pair from both sides


# the cache


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 6e-3)])
def test_cached_latents_are_the_encoded_ones(tmp_path, dtype, error):
    space, train = space_of(), data()
    cache = cached(tmp_path, space=space, cells=((4, 4), (4, 7)), dtype=dtype)
    encoded = EncodedLatents(space, train, (0.0,), None, size=8)
    indices = torch.tensor([19, 0, 7])
    for cells in ((4, 4), (4, 7)):
        shape = cache.shapes[cells]
        (latents,), labels = cache(indices, shape, rng())
        (wanted,), wanted_labels = encoded(indices, shape, rng())
        assert latents.x0_BChw.dtype == torch.float32 and torch.equal(labels, wanted_labels)
        apart = space.restore(latents.x0_BChw) - space.restore(wanted.x0_BChw)
        assert apart.abs().max() < error and latents.frames == wanted.frames
        assert torch.equal(latents.positions.absolute, wanted.positions.absolute)
    assert (tmp_path / "4x4.bin").stat().st_size == 20 * 3 * 16 * 2


def test_a_mirrored_cache_has_both_and_their_labels(tmp_path):
    train, mirror = data(), Mirror(NAMES, {"1": "7"})
    cache = cached(tmp_path, space=space_of(pixels=True), mirror=mirror, cells=((8, 8),))
    (latents,), labels = cache(torch.arange(20), cache.shapes[8, 8], rng())
    mirrored = (latents.x0_BChw - train.images.flip(-1)).flatten(1).abs().amax(dim=1) < 2e-3
    plain = (latents.x0_BChw - train.images).flatten(1).abs().amax(dim=1) < 2e-3
    assert (mirrored | plain).all() and 4 < mirrored.sum() < 16
    assert torch.equal(labels, mirror.labels(train.labels, mirrored))


def test_a_step_draws_one_of_the_cached_sizes_within_its_own(tmp_path):
    cache = cached(tmp_path, cells=((3, 3), (4, 4), (6, 6)))
    every = {cache.draw(ShapeSampler(cells=(3, 6)), 0, step)[0].cells for step in range(60)}
    assert every == {(3, 3), (4, 4), (6, 6)}
    assert {cache.draw(ShapeSampler(cells=(4, 5)), 0, step)[0].cells for step in range(20)} == {(4, 4)}
    (one, first), (two, second) = (cache.draw(ShapeSampler(cells=(3, 6)), 0, 5, part) for part in (0, 1))
    assert one == two and first.initial_seed() != second.initial_seed()  # parts have one shape, each its own draws


def test_nothing_is_encoded_twice_unless_weights_data_or_settings_change(tmp_path, monkeypatch):
    encoded = []
    encode = LatentSpace.encode_bucket
    monkeypatch.setattr(LatentSpace, "encode_bucket", lambda *all: encoded.append(1) or encode(*all))

    def encodes(**settings) -> bool:
        encoded.clear()
        cached(tmp_path, **settings)
        return bool(encoded)

    assert encodes() and not encodes()
    assert encodes(space=space_of(1)) and encodes()
    other = data()
    assert encodes(train=replace(other, images=-other.images)) and encodes()
    assert encodes(train=data(19)) and encodes()
    assert encodes(dtype="bfloat16") and encodes()
    assert encodes(mirror=Mirror(NAMES, {})) and encodes()
    assert encodes(cells=((4, 4), (5, 5))) and not encodes()


def test_a_cache_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_source, "CHUNK", 6)
    whole = cached(tmp_path / "whole")
    encode, calls = LatentSpace.encode_bucket, []

    def stopped(self, bucket):
        calls.append(len(bucket))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, bucket)

    monkeypatch.setattr(LatentSpace, "encode_bucket", stopped)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "4x4.json").read_text(encoding="utf-8"))["done"] == 12
    cut = cached(tmp_path / "cut")
    assert calls == [6, 6, 6, 6, 2]
    assert np.array_equal(cut.files[4, 4], whole.files[4, 4]) and torch.equal(cut.label_N, whole.label_N)


def test_what_cannot_be_cached_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cache_latents: no known background, so frames cannot be padded; give square"):
        cached(tmp_path, cells=((4, 7),), train=replace(data(), background=None))
    cached(tmp_path, train=replace(data(), background=None))
    monkeypatch.setattr(latent_source.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"cache_latents: .* needs 0.0 GB, 0.0 are free; make room, or give fewer"):
        cached(tmp_path / "full")
    with pytest.raises(ValueError, match="cells .*: give at least one"):
        CacheConfig(cells=())
    with pytest.raises(ValueError, match="dtype 'int8': must be one of float16, bfloat16"):
        CacheConfig(cells=((4, 4),), dtype="int8")
