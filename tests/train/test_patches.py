"""Patches lie anywhere in an image, and their distance is none for one distribution; the closest image is found."""

from __future__ import annotations

import pytest
import torch

from train.evaluation.nearest import nearest, novelty, pixel_features
from train.evaluation.patches import patch_frechet, random_patches


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_patches_are_parts_of_their_images_at_every_place():
    images = torch.arange(2 * 6 * 7).float().view(2, 1, 6, 7)
    patches = random_patches(images, size=5, count=200, generator=generator())
    assert patches.shape == (400, 1, 5, 5)
    corners = patches[:, 0, 0, 0]
    assert set(corners[:200].tolist()) == {0, 1, 2, 7, 8, 9}
    assert set(corners[200:].tolist()) == {42, 43, 44, 49, 50, 51}
    assert (patches - corners.view(-1, 1, 1, 1) == images[0, :, :5, :5]).all()
    assert random_patches(images, size=6, generator=generator()).shape == (2, 1, 6, 6)
    with pytest.raises(ValueError, match="patches of 7 of images of 6 × 7"):
        random_patches(images, size=7, generator=generator())


def test_the_distance_sees_blur_that_a_whole_image_reduced_does_not():
    def noise(seed):
        return torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(seed))

    def features(patches_BCHW):
        return torch.stack([patches_BCHW.mean(dim=(1, 2, 3)), patches_BCHW.flatten(1).std(dim=1)], dim=1)

    def distance(outputs):
        return patch_frechet(outputs.split(50), noise(1).split(64), features, size=8, count=4)

    blurred = torch.nn.functional.avg_pool2d(noise(0), 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert distance(noise(0)) < 1e-4 < 100 * distance(noise(0)) < distance(blurred)


def test_the_closest_is_found_whatever_the_chunk():
    training = torch.randn(50, 4, generator=generator())
    distance, index = nearest(training[[7, 3, 40]] + 1e-3, training, chunk=2)
    assert index.tolist() == [7, 3, 40] and distance.tolist() == pytest.approx([2e-3] * 3, rel=0.05)
    with pytest.raises(ValueError, match="no training images"):
        nearest(training, training[:0])


def test_copies_are_told_from_what_is_as_new_as_real_images():
    training, real, new = torch.randn(3, 300, 8, generator=generator())
    assert novelty(training[:50], real, training)["ratio"] < 0.01
    found = novelty(new, real, training)
    assert found["ratio"] == pytest.approx(1, abs=0.1) and found["real"] > 0.5


def test_pixel_distances_are_root_mean_squares_of_any_size():
    black, grey = torch.zeros(1, 3, 64, 64), torch.full((1, 3, 128, 128), 0.5)
    distance, _ = nearest(pixel_features(grey, side=16), pixel_features(black, side=16))
    assert distance.item() == pytest.approx(0.5, rel=1e-4)
