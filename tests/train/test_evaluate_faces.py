"""What is measured of faces, where no judge is needed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from train import evaluate_faces
from train.evaluate_faces import main, upper_octave
from train.evaluation.judges import Mesh


def wave(frequency: float, across: bool = True) -> Tensor:
    """An image (1, 1, 64, 64) in [0, 1] with so many cycles a pixel."""
    line = 0.5 + 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(64))
    return (line.expand(64, 64) if across else line[:, None].expand(64, 64))[None, None]


@pytest.mark.parametrize("across", [True, False])
def test_the_upper_octave_begins_at_a_quarter_of_the_sampling_rate(across):
    low, high = (upper_octave(wave(frequency, across)) for frequency in (0.2, 0.3))
    assert high > 1e-3 and low < 1e-3 * high


def test_an_images_edges_and_its_brightness_have_no_energy():
    """A ramp's opposite edges differ, which without a window would be detail."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    assert upper_octave(ramp) < 1e-5 * upper_octave(wave(0.3))
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert upper_octave(noise + 5) == pytest.approx(upper_octave(noise), rel=1e-3)
    assert upper_octave(0.5 * noise) == pytest.approx(0.25 * upper_octave(noise))


def test_an_unknown_section_is_named_before_anything_is_loaded():
    with pytest.raises(
        ValueError, match="--only hair: must be of reconstruction, likeness, pose, closest, cost, sheets"
    ):
        main(["nowhere", "--only", "cost,hair"])


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measures a pipeline's folder on noise, by judges that are simple functions of the images → the report."""

    def mesh(images: Tensor) -> Mesh:
        pose = images.flatten(1).mean(dim=1).where(torch.arange(len(images)) % 2 == 0, float("nan"))
        return Mesh(pose.isfinite(), torch.zeros(len(images), 468, 2), pose)

    monkeypatch.setattr(evaluate_faces, "face_mesh", mesh)
    for judge in ("mobilenet_features", "face_embeddings"):
        monkeypatch.setattr(evaluate_faces, judge, lambda images: images.flatten(1)[:, ::17])
    monkeypatch.setattr(evaluate_faces, "SHOWN", 16)
    monkeypatch.setattr(evaluate_faces, "SIDES", (8, 16))

    def measured(folder, *options: str) -> dict:
        labels = json.loads((folder / "config.json").read_text())["labels"]
        for split, count in (("train", 24), ("test", 6)):
            for index in range(count):
                path = tmp_path / "data" / split / labels[index % len(labels)] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng((count, index)).integers(0, 256, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        how = ["--data", str(tmp_path / "data"), "--count", "6", "--device", "cpu", "--out", str(tmp_path / "out")]
        main([str(folder), *how, *options])
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return measured


def test_a_report_has_every_section_and_counts_only_the_faces_that_are_found(tiny_weights, tmp_path, measure):
    report = measure(tiny_weights)
    assert list(report) == list(evaluate_faces.SECTIONS)
    assert {row["face found"] for row in report["pose"][0]["rows"]} == {0.5}
    assert report["likeness"][0]["rows"][0]["to the floor"] == 1.0
    assert [row["latent"] for row in report["reconstruction"][0]["rows"]] == ["8×8", "12×12", "16×16"]
    assert [row["what"] for row in report["cost"][0]["rows"]][2:] == ["8×8 by default", "16×16 by default"]
    assert all(row["GFLOP"] > 0 for row in report["cost"][0]["rows"])
    assert all((tmp_path / "out" / f"{sheet}.png").exists() for sheet in ("faces", "turns"))


def test_images_in_pixel_space_are_generated_at_their_size_and_cost_more_at_a_larger_one(
    tiny_pixels, tmp_path, measure
):
    tiny_pixels.save(tmp_path / "pixels")
    report = measure(tmp_path / "pixels", "--only", "reconstruction,likeness,cost", "--size", "16")
    side = "×".join(map(str, tiny_pixels.config.defaults.latent_size))
    assert [row["latent"] for row in report["likeness"][0]["rows"]] == ["", side]
    assert report["reconstruction"][0]["rows"] == []
    small, large = (row["GFLOP"] for row in report["cost"][0]["rows"])
    assert large > 2 * small
