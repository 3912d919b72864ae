"""Diffusing, resampling and encoding by `Pipeline`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from refusals import refused

from r2id import R2ID, R2IR, Latent, Pipeline, limits, pipeline
from r2id.image import to_pil
from r2id.position import FITS

SIZES = ((8, 8), (16, 10), (3, 21))
LATENT = {"latent_size": (3, 4), "steps": 3}


def close(a: torch.Tensor, b: torch.Tensor):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def latent(tiny) -> Latent:
    return tiny.diffuse([3, None], seed=1, **LATENT)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(0))


# diffuse


def test_a_batch_item_equals_the_label_alone(tiny):
    labels = [3, {"1": 1, 7: 3}, None]
    for options in ({}, {"sampler": "ddim", "eta": 0.7}, {"guidance": 1.0}):
        batch = tiny.diffuse(labels, seed=10, **LATENT, **options)
        for i, label in enumerate(labels):
            alone = tiny.diffuse([label], seed=10 + i, **LATENT, **options)
            close(alone.tensor, batch.tensor[i : i + 1])
            assert alone.seeds == (batch.seeds[i],) == (10 + i,)


def test_the_seed_alone_decides(tiny):
    first, again, other = (tiny.diffuse([3], seed=seed, **LATENT) for seed in (5, 5, 6))
    assert torch.equal(first.tensor, again.tensor) and not torch.allclose(first.tensor, other.tensor)
    torch.manual_seed(123)  # nothing is latent from the global generator
    assert torch.equal(tiny.diffuse([3], seed=5, **LATENT).tensor, first.tensor)


def test_a_list_gives_each_row_its_seed(tiny):
    listed = tiny.diffuse([3, 3, 3], seed=[7, 2, 7], **LATENT)
    assert listed.seeds == (7, 2, 7)
    close(listed.tensor[0], listed.tensor[2])
    close(listed.tensor[1:2], tiny.diffuse([3], seed=2, **LATENT).tensor)


def test_the_noise_of_a_seed_gives_its_latent(tiny):
    how = dict(latent_size=(4, 6), steps=2)
    noise_BChw = torch.stack([tiny.seed_noise(seed, (4, 6)) for seed in (9, 3)])
    latent = tiny.diffuse([1, 2], noise=noise_BChw, **how)
    assert torch.equal(latent.tensor, tiny.diffuse([1, 2], seed=[9, 3], **how).tensor) and latent.seeds is None
    for bad in (noise_BChw[:1], noise_BChw.double(), noise_BChw * torch.inf, "noise"):
        with pytest.raises(ValueError, match=r"noise: must be a finite float32 tensor \(2, 3, 4, 6\)"):
            tiny.diffuse([1, 2], noise=bad, **how)


def test_seeds_wrap_around(tiny):
    wrapped = tiny.diffuse([3, 3], seed=2**32 - 1, **LATENT)
    assert wrapped.seeds == (2**32 - 1, 0)
    close(wrapped.tensor[1:], tiny.diffuse([3], seed=0, **LATENT).tensor)


def test_a_drawn_seed_is_reported(tiny):
    latent = tiny.diffuse([3, 3], **LATENT)
    assert latent.seeds[1] == (latent.seeds[0] + 1) % 2**32
    close(tiny.diffuse([3, 3], seed=latent.seeds[0], **LATENT).tensor, latent.tensor)
    assert tiny.diffuse([3], **LATENT).seeds != tiny.diffuse([3], **LATENT).seeds


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_step_is_the_result(tiny, steps):
    options = {"latent_size": (3, 4), "steps": steps, "seed": 0}
    path = list(tiny.diffuse_steps([3, 4], **options))
    assert [(s.index, s.steps) for s in path] == [(i + 1, steps) for i in range(steps)]
    result = tiny.diffuse([3, 4], **options)
    assert torch.equal(path[-1].latent.tensor, result.tensor)
    assert all(s.latent.tensor.abs().max() <= 1 and s.latent.seeds == result.seeds for s in path)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (6, 4)])
def test_any_latent_size_and_its_frame(tiny, size):
    latent = tiny.diffuse([0], latent_size=size, steps=2, seed=0)
    assert latent.size == size and latent.tensor.shape == (1, 3, *size) and latent.tensor.dtype == torch.float32
    assert latent.aspect == size[1] / size[0]
    framed = tiny.diffuse([0], latent_size=size, steps=2, seed=0, aspect=1.5)
    alone = size == (1, 1)  # a single cell is at the centre of any frame
    assert framed.aspect == 1.5 and torch.allclose(framed.tensor, latent.tensor) == alone


def test_nothing_said_means_the_config(tiny):
    said = tiny.diffuse([3], latent_size=(4, 4), steps=4, guidance=1.5, sampler="dpm++", seed=0)
    assert torch.equal(tiny.diffuse([3], seed=0).tensor, said.tensor)
    assert torch.equal(tiny.diffuse(3, seed=0).tensor, said.tensor)  # one label is a list of one
    defaults = replace(tiny.config.defaults, guidance=4.0, guidance_interval=(0.0, 0.5))
    other = Pipeline(replace(tiny.config, defaults=defaults), tiny.resampler, tiny.denoiser, device="cpu")
    limited = tiny.diffuse([3], guidance=4.0, guidance_interval=(0.0, 0.5), seed=0)
    assert torch.equal(other.diffuse([3], seed=0).tensor, limited.tensor)
    assert not torch.equal(tiny.diffuse([3], guidance=4.0, seed=0).tensor, limited.tensor)
    smaller = tiny.config.schedule.time_at_equal_noise(0.5, cells=(4, 4), at=(2, 3))
    at_noise = tiny.diffuse([3], latent_size=(2, 3), guidance=4.0, guidance_interval=(0.0, smaller), seed=0)
    assert torch.equal(other.diffuse([3], latent_size=(2, 3), seed=0).tensor, at_noise.tensor)


def test_guidance_zero_is_null_and_one_is_the_condition(tiny):
    null = tiny.diffuse([None], seed=0, guidance=1.0, **LATENT).tensor
    plain = tiny.diffuse([3], seed=0, guidance=1.0, **LATENT).tensor
    close(tiny.diffuse([3], seed=0, guidance=0.0, **LATENT).tensor, null)
    close(tiny.diffuse([None], seed=0, guidance=4.0, **LATENT).tensor, null)
    close(tiny.diffuse([3], seed=0, guidance=4.0, guidance_interval=(0.0, 0.1), **LATENT).tensor, plain)
    assert not torch.allclose(null, plain)
    assert not torch.allclose(tiny.diffuse([3], seed=0, guidance=4.0, **LATENT).tensor, plain)


def test_samplers_differ_and_eta_adds_noise(tiny):
    results = [  # with zero terminal SNR the first two steps and the last of both are the same
        tiny.diffuse([3], latent_size=(3, 4), steps=5, seed=0, sampler=sampler, eta=eta).tensor
        for sampler, eta in (("dpm++", 0.0), ("ddim", 0.0), ("ddim", 1.0))
    ]
    assert not torch.allclose(results[0], results[1]) and not torch.allclose(results[1], results[2])


def test_names_indices_and_mixtures_are_labels(tiny):
    assert tiny.labels == [str(i) for i in range(10)]
    latents = tiny.diffuse([3, "3", {"3": 2}, {3: 1, "5": 1}, {"5": 4, "3": 4.0}], seed=[0] * 5, **LATENT)
    assert latents.labels == ("3", "3", "3", {"3": 0.5, "5": 0.5}, {"3": 0.5, "5": 0.5})
    for same in ((0, 1), (0, 2), (3, 4)):
        close(*latents.tensor[list(same)])
    assert not torch.allclose(latents.tensor[0], latents.tensor[3])
    assert tiny.diffuse([None], seed=0, **LATENT).labels == (None,)


def test_a_model_without_labels_diffuses(tiny):
    config = replace(tiny.config, labels=(), denoiser=replace(tiny.config.denoiser, num_classes=0))
    unlabelled = Pipeline(config, R2IR(config.resampler), R2ID(config.denoiser), device="cpu")
    assert unlabelled.diffuse([None, None], seed=0, **LATENT).tensor.shape == (2, 3, 3, 4)
    assert "no labels" in refused(lambda: unlabelled.diffuse([0]))


# resample


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_any_size(tiny, latent, size, fit):
    image = tiny.resample(latent, size=size, fit=fit)
    assert image.shape == (2, 1, *size) and image.dtype == torch.float32 and image.device.type == "cpu"
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1 and image.std() > 0
    assert torch.equal(image, tiny.resample(latent, size=list(size), fit=fit))


@pytest.mark.parametrize("budget", [1, 7, 60])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_whole_and_come_in_reading_order(tiny, latent, size, fit, budget, monkeypatch):
    region = (0.1, 0.2, 0.9, 0.7)
    whole = tiny.resample(latent, size=size, fit=fit, region=region)
    monkeypatch.setattr(pipeline, "TILE_POINTS", {"cpu": budget, "other": budget})
    boxes, covered = [], torch.zeros(size)
    for (left, top, right, bottom), tile in tiny.resample_tiles(latent, size=size, fit=fit, region=region):
        boxes.append((top, left))
        covered[top:bottom, left:right] += 1
        close(tile, whole[:, :, top:bottom, left:right])
    assert len(boxes) > 1 and boxes == sorted(boxes) and torch.equal(covered, torch.ones(size))
    close(tiny.resample(latent, size=size, fit=fit, region=region), whole)


def test_tiles_stay_within_the_budget(tiny, latent, monkeypatch):
    monkeypatch.setattr(pipeline, "TILE_POINTS", {"cpu": 200, "other": 200})
    tiles = list(tiny.resample_tiles(latent, size=(5, 40)))
    assert len(tiles) > 1 and max(len(tile) * tile.shape[2:].numel() for _, tile in tiles) <= 200


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(16, 32), (64, 24), (8, 8)])
def test_a_region_is_the_crop(tiny, latent, size, fit):
    whole = tiny.resample(latent, size=size, fit=fit)
    height, width = size
    part = tiny.resample(latent, size=(height // 2, width // 4), fit=fit, region=(0.5, 0.25, 0.75, 0.75))
    close(part, whole[:, :, height // 4 : height * 3 // 4, width // 2 : width * 3 // 4])


@pytest.mark.parametrize(
    "size, part", [((16, 10), (slice(3, 13), slice(None))), ((8, 24), (slice(None), slice(8, 16)))]
)
def test_the_centre_of_contain_is_the_square_image(tiny, size, part):
    latent = tiny.diffuse([3], latent_size=(4, 4), steps=2, seed=0)
    side = min(size)
    square = tiny.resample(latent, size=(side, side), fit="contain")
    close(tiny.resample(latent, size=size, fit="contain")[:, :, part[0], part[1]], square)


def test_fits_agree_on_the_shape_of_the_frame(tiny, latent):
    images = [tiny.resample(latent, size=(9, 12), fit=fit) for fit in ("contain", "cover", "stretch", None)]
    for image in images[1:]:
        close(image, images[0])
    assert not torch.allclose(*(tiny.resample(latent, size=(9, 9), fit=fit) for fit in ("contain", "cover")), atol=1e-3)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("region", [(0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75)])
def test_a_coarse_image_is_the_mean_of_a_dense_one(tiny, fit, region):
    latent = tiny.diffuse([3], latent_size=(4, 4), steps=2, seed=0)
    options = {"fit": fit, "region": region}
    dense = tiny.resample(latent, size=(8, 8), **options)
    side = 4 if region[0] else 8  # fewest pixels that are as dense as the training images
    for small in (1, 2, side):
        expected = F.avg_pool2d(tiny.resample(latent, size=(side, side), **options), side // small)
        close(tiny.resample(latent, size=(small, small), **options), expected)
    assert region[0] == 0 or not torch.allclose(F.avg_pool2d(dense, 2), tiny.resample(latent, size=(4, 4), **options))


def test_a_pixel_is_a_value_of_one_function_whatever_the_size(tiny, latent):
    coarse, fine = (tiny.resample(latent, size=(9 * k, 12 * k)) for k in (1, 3))
    close(fine[:, :, 1::3, 1::3], coarse)  # the middle of three pixels has the same centre


def test_the_encoder_sees_the_image_at_its_size(tiny, image):
    """`image` is denser than the encoder's size: 8 pixels on the short side."""
    larger = F.interpolate(image, size=(16, 20), mode="nearest-exact")
    close(tiny.encode(larger, latent_size=(3, 4)).tensor, tiny.encode(image, latent_size=(3, 4)).tensor)
    close(tiny.encode(image, latent_size=(3, 4)).tensor, tiny.resampler.encode_image(image * 2 - 1, (3, 4)))


def test_a_row_alone_equals_the_row_in_the_batch(tiny, latent):
    whole = tiny.resample(latent, size=(6, 11))
    for i in range(2):
        close(tiny.resample(latent[i], size=(6, 11)), whole[i : i + 1])


def test_the_largest_zoom_is_finite(tiny, latent):
    region = (0.5, 0.5, 0.5 + 2.0**-20, 0.5 + 2.0**-20)
    assert tiny.resample(latent, size=(8, 8), region=region).isfinite().all()


# any number of rows


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_many_labels_are_diffused_in_parts(tiny, monkeypatch, eta):
    options = {"latent_size": (3, 4), "steps": 3, "seed": 5, "sampler": "ddim", "eta": eta}
    whole = tiny.diffuse([3, None, "5", 7, 1], **options)
    rows, denoise = [], Pipeline.denoise
    monkeypatch.setattr(limits, "BATCH", 2)
    monkeypatch.setattr(Pipeline, "denoise", lambda self, *args: rows.append(len(args[0])) or denoise(self, *args))
    steps = list(tiny.diffuse_steps([3, None, "5", 7, 1], **options))
    assert [(step.index, len(step.latent)) for step in steps] == [(1, 5), (2, 5), (3, 5)]
    assert rows == [2, 2, 1] * 3
    close(steps[-1].latent.tensor, whole.tensor)
    assert (steps[-1].latent.seeds, steps[-1].latent.labels) == (whole.seeds, whole.labels)


def test_large_latents_are_denoised_few_at_once(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_CELLS", 24)
    rows, denoise = [], Pipeline.denoise
    monkeypatch.setattr(Pipeline, "denoise", lambda self, *args: rows.append(len(args[0])) or denoise(self, *args))
    tiny.diffuse([3] * 5, latent_size=(3, 4), steps=1, seed=0)
    assert rows == [2, 2, 1]


def test_many_rows_are_decoded_and_encoded_in_parts(tiny, monkeypatch):
    latent = tiny.diffuse([3, None, "5", 7, 1], seed=5, **LATENT)
    size = {"size": (9, 7), "region": (0.1, 0.2, 0.8, 0.9)}
    whole = tiny.resample(latent, **size)
    monkeypatch.setattr(limits, "BATCH", 2)
    images = tiny.resample(latent, **size)
    close(images, whole)
    monkeypatch.undo()
    encoded = tiny.encode(images, latent_size=(3, 4))
    monkeypatch.setattr(pipeline, "ENCODED_PIXELS", 1)
    close(tiny.encode(images, latent_size=(3, 4)).tensor, encoded.tensor)


@pytest.mark.parametrize(
    "labels", [range(3), np.arange(3), torch.arange(3), (0, np.int8(1), "2"), [" 0", "1 ", torch.tensor(2)]]
)
def test_labels_come_in_any_sequence(tiny, labels):
    assert tiny.diffuse(labels, steps=1, seed=np.array([1, 2, 3])).labels == ("0", "1", "2")
    assert tiny.diffuse(labels[1], steps=1, seed=np.int64(1)).labels == ("1",)


def test_a_subclass_computes_the_calls_of_the_denoiser(tiny):
    class Elsewhere(Pipeline):
        def denoise(self, *inputs):
            self.calls = [*getattr(self, "calls", ()), inputs]
            return super().denoise(*inputs)

    elsewhere = Elsewhere(tiny.config, tiny.resampler, tiny.denoiser, device="cpu")
    latent = elsewhere.diffuse([3], seed=0, **LATENT)
    assert torch.equal(latent.tensor, tiny.diffuse([3], seed=0, **LATENT).tensor)
    assert len(elsewhere.calls) == LATENT["steps"] and all(len(inputs) == 5 for inputs in elsewhere.calls)


@pytest.mark.parametrize("size", [(9, 7), (4, 16)])
def test_decoded_points_are_those_of_all_pixels(tiny, latent, size):
    """Of a frame of 3 x 4 cells and a decoder of 8 pixels: 4 x 16 has R = 4, so 2 x 2 points a pixel."""
    expected = {(9, 7): 2 * 63 * 4, (4, 16): 2 * 64 * 4}
    assert tiny.decoded_points(latent, size=size, fit="contain") == expected[size]


# encode


def test_encode_takes_tensors_and_pil_images(tiny, image):
    expected = tiny.encode((image * 255).round() / 255, latent_size=(3, 4))
    assert expected.tensor.shape == (2, 3, 3, 4) and expected.aspect == 10 / 8
    assert expected.tensor.abs().max() < 1 and expected.seeds is None and expected.labels is None
    pils = [to_pil(i) for i in image]
    close(tiny.encode(pils, latent_size=(3, 4)).tensor, expected.tensor)
    for i, pil in enumerate(pils):
        for one in (pil, pil.convert("RGB"), pil.convert("RGBA"), to_pil(image[i]).convert("CMYK")):
            close(tiny.encode(one, latent_size=(3, 4)).tensor, expected.tensor[i : i + 1])
        close(tiny.encode((image[i] * 255).round() / 255, latent_size=(3, 4)).tensor, expected.tensor[i : i + 1])


def test_a_transparent_image_is_background(tiny):
    clear, black = Image.new("LA", (8, 8), (255, 0)), torch.zeros(1, 8, 8)
    close(tiny.encode(clear).tensor, tiny.encode(black).tensor)
    assert tiny.encode(black).size == tiny.config.defaults.latent_size


@pytest.mark.parametrize("factor", [2, 5])
def test_a_large_image_is_its_area_mean(tiny, image, factor):
    large = image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    large = large + (torch.rand(large.shape) - 0.5) * 1e-3
    reduced = F.avg_pool2d(large.clamp(0, 1), factor)
    latent = tiny.encode(large.clamp(0, 1), latent_size=(3, 4))
    assert latent.aspect == 10 / 8
    close(latent.tensor, tiny.encode(reduced, latent_size=(3, 4)).tensor)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 31), (100, 7)])
def test_images_of_any_shape_encode(tiny, size):
    latent = tiny.encode(torch.rand(1, *size), latent_size=(2, 3))
    assert latent.aspect == size[1] / size[0] and latent.tensor.isfinite().all()
    assert tiny.resample(latent, size=(8, 8)).isfinite().all()


def test_what_is_given_is_not_changed(tiny, image, latent):
    before = image.clone(), latent.tensor.clone()
    tiny.encode(image)
    tiny.resample(latent, size=(8, 8))
    assert torch.equal(image, before[0]) and torch.equal(latent.tensor, before[1])
