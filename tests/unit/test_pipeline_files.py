"""Pipelines and latents as files, whole and broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from r2id import Latent, Pipeline

LATENT = {"latent_size": (3, 4), "steps": 3}


@pytest.fixture(scope="module")
def latent(tiny) -> Latent:
    return tiny.diffuse([3, None], seed=1, **LATENT)


def test_a_saved_pipeline_is_the_same(tiny, tiny_weights, latent):
    assert sorted(p.name for p in tiny_weights.iterdir()) == [
        "config.json",
        "denoiser.safetensors",
        "resampler.safetensors",
    ]
    loaded = Pipeline.from_pretrained(tiny_weights, device="cpu", resampler_device="cpu", decoder_dtype="float32")
    assert loaded.config == tiny.config
    again = loaded.diffuse([3, None], seed=1, **LATENT)
    assert torch.equal(again.tensor, latent.tensor) and again.labels == latent.labels
    assert torch.equal(loaded.resample(again, size=(9, 7)), tiny.resample(latent, size=(9, 7)))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"architecture": "other"},
        {"fit": "crop"},
        {"latent_mean": [0.0]},
        {"latent_std": [0.5, 0.0, 0.3]},
        {"background": []},
        {"channels": 3},
        {"labels": ["0", "1"]},
        {"encoder_size": "8"},
        {"surprise": 1},
        {"denoiser": {"width": 16, "surprise": 1}},
        {"denoiser": 5},
        {"schedule": {"name": "other"}},
    ],
)
def test_a_bad_config_is_refused(tiny_weights, tmp_path, change):
    for file in tiny_weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    refused(lambda: Pipeline.from_pretrained(tmp_path, device="cpu"))


@pytest.mark.parametrize("name", ["config.json", "denoiser.safetensors", "resampler.safetensors"])
def test_a_missing_file_is_named(tiny_weights, tmp_path, name):
    for file in tiny_weights.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert name in refused(lambda: Pipeline.from_pretrained(tmp_path, device="cpu"))


@pytest.mark.parametrize("device", ["cuda:99", "abc", "", None, 99, [1]])
def test_a_device_that_is_not_there_is_refused(tiny_weights, device):
    assert "device" in refused(lambda: Pipeline.from_pretrained(tiny_weights, device=device))


@pytest.mark.parametrize("path", ["weights/none", "./none", "/none", "none", "", "a/b/c"])
def test_a_model_that_is_not_there_is_refused(path):
    assert "no such folder" in refused(lambda: Pipeline.from_pretrained(path))


def test_a_latent_survives_its_file(tiny, tmp_path):
    mixed = tiny.diffuse([3, None, {1: 1, 2: 3}], seed=2**32 - 1, aspect=math.pi, **LATENT)
    encoded = tiny.encode(torch.rand(2, 1, 7, 9))
    for latent in (mixed, encoded, mixed[1]):
        latent.save(tmp_path / "latent.safetensors")
        loaded = Latent.load(tmp_path / "latent.safetensors")
        assert torch.equal(loaded.tensor, latent.tensor)
        assert (loaded.aspect, loaded.seeds, loaded.labels) == (latent.aspect, latent.seeds, latent.labels)


def test_rows_of_a_latent(tiny):
    latent = tiny.diffuse([3, None, "5"], seed=4, **LATENT)
    assert len(latent) == 3 and latent.size == (3, 4)
    for i in (1, -2):
        row = latent[i]
        assert torch.equal(row.tensor, latent.tensor[1:2])
        assert (row.aspect, row.seeds, row.labels) == (latent.aspect, (5,), (None,))
    assert [row.labels for row in latent] == [("3",), (None,), ("5",)]
    with pytest.raises(IndexError):
        latent[3]


def about(**values) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"seeds": None, "labels": None} | values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "change",
    [
        {"latent": None},
        {"aspect": None},
        {"about": None},
        {"more": torch.zeros(1)},
        {"latent": torch.zeros(3, 4, 4)},
        {"latent": torch.zeros(())},
        {"latent": torch.zeros(0, 3, 4, 4)},
        {"latent": torch.zeros(1, 0, 4, 4)},
        {"latent": torch.zeros(1, 3, 0, 4)},
        {"latent": torch.zeros(1, 1, 513, 512)},
        {"latent": torch.zeros(1, 3, 4, 4, dtype=torch.float64)},
        {"latent": torch.full((1, 3, 4, 4), 2.0)},
        {"aspect": torch.tensor(0.0)},
        {"aspect": torch.tensor(-1.0)},
        {"aspect": torch.tensor(1e9)},
        {"aspect": torch.ones(2)},
        {"about": torch.zeros(0, dtype=torch.uint8)},
        {"about": torch.tensor(5, dtype=torch.uint8)},
        {"about": torch.tensor(2**62)},
        {"about": torch.ones(5)},
        {"about": torch.tensor([255, 254], dtype=torch.uint8)},
        {"about": torch.tensor(list(b"[]"), dtype=torch.uint8)},
        {"about": torch.tensor(list(b"{}"), dtype=torch.uint8)},
        {"about": torch.tensor(list(b"[" * 100_000), dtype=torch.uint8)},
        {"about": about(seeds=[])},
        {"about": about(seeds=[1, 2])},
        {"about": about(seeds=5)},
        {"about": about(seeds="5")},
        {"about": about(seeds=[-1])},
        {"about": about(seeds=[2**32])},
        {"about": about(seeds=[1.5])},
        {"about": about(labels=[])},
        {"about": about(labels=["1", "2"])},
        {"about": about(labels=[[1]])},
        {"about": about(labels=[7])},
        {"about": about(labels=True)},
    ],
)
def test_a_malformed_latent_file_is_refused(tmp_path, change):
    good = {"latent": torch.zeros(1, 3, 4, 4), "aspect": torch.tensor(1.0), "about": about()}
    path = tmp_path / "latent.safetensors"
    save_file(good, path)
    assert len(Latent.load(path)) == 1
    save_file({key: tensor for key, tensor in (good | change).items() if tensor is not None}, path)
    assert "latent.safetensors" in refused(lambda: Latent.load(path))


@pytest.mark.parametrize("data", [None, b"", b"x" * 100, b"\x80\x04pickle", b"\x89PNG\r\n\x1a\n" + b"0" * 50])
def test_what_is_no_latent_file_is_refused(tmp_path, data):
    path = tmp_path / "latent.safetensors"
    if data is not None:
        path.write_bytes(data)
    refused(lambda: Latent.load(path))
    refused(lambda: Latent.load(tmp_path))


def test_a_truncated_latent_file_is_refused(tiny, latent, tmp_path):
    path = Path(tmp_path / "latent.safetensors")
    latent.save(path)
    data = path.read_bytes()
    for cut in (4, 20, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(lambda: Latent.load(path))
