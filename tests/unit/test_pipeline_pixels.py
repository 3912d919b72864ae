"""The pipeline without a resampler: the latent is the image, and `resample` interpolates it."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from r2id import CrossAttentionR2IR, CrossAttentionR2IRConfig, Latent, Pipeline, pipeline
from r2id.denoisers.s2id import S2ID, S2IDConfig
from r2id.position import ipe_sigma_of

FRAMED = ("contain", "cover", "stretch")


def close(a: torch.Tensor, b: torch.Tensor):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def latent(tiny_pixels) -> Latent:
    return tiny_pixels.diffuse([3, None], seed=1, latent_size=(6, 9))


def test_the_latent_is_the_image(tiny_pixels, latent):
    assert latent.tensor.shape == (2, 3, 6, 9) and latent.tensor.abs().max() <= 1
    close(tiny_pixels.resample(latent, size=(6, 9)), (latent.tensor + 1) / 2)


def test_a_batch_item_equals_the_label_alone(tiny_pixels, latent):
    close(tiny_pixels.diffuse([None], seed=2, latent_size=(6, 9)).tensor, latent.tensor[1:])


@pytest.mark.parametrize("size", [(12, 18), (40, 11), (3, 4), (1, 1)])
def test_stretching_is_what_torch_makes(tiny_pixels, latent, size):
    expected = F.interpolate((latent.tensor + 1) / 2, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    close(tiny_pixels.resample(latent, size=size, fit="stretch"), expected)


@pytest.mark.parametrize("budget", [1, 7, 60])
@pytest.mark.parametrize("fit", FRAMED)
@pytest.mark.parametrize("size", [(8, 8), (16, 10), (3, 21)])
def test_tiles_equal_the_whole(tiny_pixels, latent, size, fit, budget, monkeypatch):
    region = (0.1, 0.2, 0.9, 0.7)
    whole = tiny_pixels.resample(latent, size=size, fit=fit, region=region)
    assert whole.min() >= 0 and whole.max() <= 1
    monkeypatch.setattr(pipeline, "TILE_POINTS", {"cpu": 2 * budget, "other": 2 * budget})
    tiles = list(tiny_pixels.resample_tiles(latent, size=size, fit=fit, region=region))
    assert len(tiles) > 1
    for (left, top, right, bottom), tile in tiles:
        assert tile[0, 0].numel() <= budget
        close(tile, whole[:, :, top:bottom, left:right])


@pytest.mark.parametrize("fit", FRAMED)
@pytest.mark.parametrize("size", [(16, 32), (64, 24), (8, 8)])
def test_a_region_is_the_crop(tiny_pixels, latent, size, fit):
    whole, (height, width) = tiny_pixels.resample(latent, size=size, fit=fit), size
    part = tiny_pixels.resample(latent, size=(height // 2, width // 4), fit=fit, region=(0.5, 0.25, 0.75, 0.75))
    close(part, whole[:, :, height // 4 : height * 3 // 4, width // 2 : width * 3 // 4])


def test_margins_are_the_background(tiny_pixels):
    square = tiny_pixels.diffuse([3], seed=0)
    wide = tiny_pixels.resample(square, size=(16, 26))
    close(wide[..., 5:-5], tiny_pixels.resample(square, size=(16, 16)))
    background = torch.tensor(tiny_pixels.config.background).view(-1, 1, 1)
    close(wide[0, :, :, :5], background.expand(3, 16, 5))


@pytest.mark.parametrize("latent_size", [(4, 4), (8, 10), (20, 20)])
def test_encode_resizes(tiny_pixels, latent_size):
    image = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    encoded = tiny_pixels.encode(image, latent_size=latent_size)
    expected = F.interpolate(image, size=latent_size, mode="bicubic", antialias=True).clamp(0, 1)
    close((encoded.tensor + 1) / 2, expected)
    assert encoded.aspect == 10 / 8


def test_a_saved_pipeline_is_the_same(tiny_pixels, latent, tmp_path):
    tiny_pixels.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "denoiser.safetensors"]
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == tiny_pixels.config and loaded.resampler is None
    assert torch.equal(loaded.diffuse([3, None], seed=1, latent_size=(6, 9)).tensor, latent.tensor)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["resampler"], config["training"]  # an absent key means None
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "resampler.safetensors").write_bytes(b"not read")
    assert Pipeline.from_pretrained(tmp_path, device="cpu").config == tiny_pixels.config


def test_a_resampler_and_its_configuration_come_together(tiny, tiny_pixels):
    with pytest.raises(ValueError, match="resampler: must be given where the configuration has one"):
        Pipeline(tiny.config, None, tiny.denoiser, device="cpu")
    with pytest.raises(ValueError, match="and be None in pixel space"):
        Pipeline(tiny_pixels.config, CrossAttentionR2IR(CrossAttentionR2IRConfig()), tiny_pixels.denoiser, device="cpu")
    with pytest.raises(ValueError, match="channels 3: must agree"):
        replace(tiny_pixels.config, background=(0.0,))
    with pytest.raises(ValueError, match="must hold 3 values"):
        replace(tiny_pixels.config, latent_mean=(0.0,))


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_where_training_moved_the_positions_features_average_over_it(tiny_pixels, jitter, monkeypatch):
    seen, forward = [], S2ID.forward
    monkeypatch.setattr(S2ID, "forward", lambda self, *args: seen.append(args[2]) or forward(self, *args))
    denoiser = S2IDConfig(latent_channels=3, width=16, noise_width=8, jitter=jitter)
    config = replace(tiny_pixels.config, architecture="s2id", denoiser=denoiser)
    jittered = Pipeline(config, None, S2ID(denoiser), device="cpu")
    sigmas = {}
    for size in ((8, 8), (16, 16), (8, 16)):
        jittered.diffuse([3], latent_size=size, seed=0)
        sigmas[size] = seen[-1].ipe_sigma
        assert seen[-1].grid == size
    if jitter == 0:
        assert set(sigmas.values()) == {None}
    else:  # in pixels of the training size, whatever the size asked for
        assert sigmas[8, 8] == sigmas[16, 16] == ipe_sigma_of(1.0, (1 / 8, 1 / 8), jitter)
        assert sigmas[8, 16] == ipe_sigma_of(2.0, (1 / 16, 1 / 8), jitter)
