"""Figures have their known values."""

from __future__ import annotations

import math

import pytest
import torch

from train.evaluation.metrics import (
    bring_to,
    central_square,
    diversity,
    extent,
    frame_size,
    frechet,
    ink,
    kernel_distance,
    margin_square,
    mean_square,
    ms_ssim,
    parts,
    psnr,
    to_multiple,
    within_class_variance,
)


def test_mean_square_weighs_batches_by_size_and_psnr_is_of_the_mean():
    pairs = [(torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 0.1)), (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))]
    assert mean_square(pairs) == pytest.approx(0.0075)
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0) == 120  # finite, so that a report stays JSON


def test_frechet_of_gaussians_and_of_a_copy():
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(5000, 3, generator=rng, dtype=torch.float64)
    whiten = torch.linalg.inv(torch.linalg.cholesky(normal.T.cov()))
    normal = (normal - normal.mean(dim=0)) @ whiten.T  # mean 0 and covariance 1 exactly
    assert frechet(normal, normal) == pytest.approx(0, abs=1e-9)
    assert frechet(normal, normal + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5)
    assert frechet(normal, normal * torch.tensor([1.0, 3.0, 0.5])) == pytest.approx(4 + 0.25)  # Σ (σ - σ')²
    flat = normal * torch.tensor([1.0, 1.0, 0.0])  # a feature that never fires
    assert frechet(flat, normal) == pytest.approx(1)
    other = normal @ torch.randn(3, 3, generator=rng, dtype=torch.float64) + 1
    assert frechet(normal, other) == pytest.approx(frechet(other, normal))
    with pytest.raises(ValueError, match="1 and 5000 images: a covariance needs at least 2"):
        frechet(normal[:1], normal)


def test_kernel_distance_is_unbiased_and_grows_with_a_shift():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(400, 8, generator=rng, dtype=torch.float64) for _ in range(9)]
    same = [kernel_distance(draw, draws[0]) for draw in draws[1:]]
    assert min(same) < 0 < max(same) and abs(sum(same) / len(same)) < 0.02  # zero on average, not zero at least
    assert kernel_distance(draws[1] + 0.5, draws[0]) > kernel_distance(draws[1] + 0.2, draws[0]) > max(same)
    direct = ((draws[1] @ draws[0].T) / 8 + 1).pow(3)
    inner = [((d @ d.T) / 8 + 1).pow(3).fill_diagonal_(0).sum() / (400 * 399) for d in draws[:2]]
    assert kernel_distance(draws[1], draws[0]) == pytest.approx((sum(inner) - 2 * direct.mean()).item())


@pytest.mark.parametrize("side", (8, 32, 200))
def test_structural_similarity_is_one_for_a_copy_and_falls_with_noise(side):
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, side, side, generator=rng)
    noise = torch.randn(image.shape, generator=rng)
    near, far = (ms_ssim((image + amount * noise).clamp(0, 1), image) for amount in (0.05, 0.3))
    assert ms_ssim(image, image) == pytest.approx(1, abs=1e-5) and 1 > near > far


def test_diversity():
    labels = torch.arange(40) % 4
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 10 * labels[:, None]
    assert diversity(features, labels, features, labels) == pytest.approx(1)
    centres = 10.0 * labels[:, None]
    assert diversity(centres + (features - centres) / 2, labels, features, labels) == pytest.approx(0.25, rel=0.2)
    assert within_class_variance(torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, -1])) == 2
    with pytest.raises(ValueError, match="3 images: no class has 2"):
        within_class_variance(features[:3], labels[:3])


def test_margins_are_what_the_central_square_leaves():
    image = torch.full((2, 1, 4, 8), 0.2)
    image[..., 2:6] = 1
    assert torch.equal(central_square(image), torch.ones(2, 1, 4, 4))
    assert torch.equal(central_square(image.mT), torch.ones(2, 1, 4, 4))
    assert margin_square(image, torch.tensor([0.2])) == pytest.approx(0, abs=1e-12)
    assert margin_square(image, torch.tensor([0.0])) == pytest.approx(0.04)
    assert margin_square(central_square(image), torch.tensor([0.0])) == 0


@pytest.mark.parametrize("aspect", (1, 9 / 16, 16 / 9, 4 / 5, 0.5, 3))
def test_frame_size_shows_the_whole_frame_around_a_whole_square(aspect):
    height, width = frame_size(aspect, 32)
    assert min(height, width) == 32 and (height - width) % 2 == 0
    long = 32 * max(aspect, 1 / aspect)
    assert long <= max(height, width) + 1e-3 < long + 2
    assert (width >= height) == (aspect >= 1)


def test_real_images_at_other_sizes():
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bring_to(image, 8), image)
    assert torch.allclose(bring_to(image, 2)[0, 0, 0, 0], image[0, 0, :4, :4].mean())
    large = bring_to(image, 32)
    assert large.shape == (1, 1, 32, 32) and image.min() <= large.min() and large.max() <= image.max()
    assert math.isclose(large.mean(), image.mean(), rel_tol=0.05)
    assert bring_to(torch.rand(2, 3, 64, 36), 9).shape == (2, 3, 16, 9)  # frames keep their shape


def test_sides_are_multiples_of_size_multiple():
    assert [to_multiple(side, 4) for side in (0.5, 5.9, 6.1, 32)] == [4, 4, 8, 32]
    assert to_multiple(10.4, 1) == 10


def test_ink_is_the_distance_from_the_background():
    image = torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    image[0, 1, 0, 0] = 0.1
    assert ink(image, torch.tensor([0.2, 0.5, 1.0]))[0].flatten().tolist() == pytest.approx([0.4, 0, 0, 0])


def test_parts_are_regions_that_touch():
    ink_BHW = torch.zeros(4, 12, 20)
    ink_BHW[0, 2:6, 2:6] = 1
    ink_BHW[0, 6:10, 6:10] = 1  # at a corner: one part
    ink_BHW[1, 1:11, 2:4] = ink_BHW[1, 1:11, 16:18] = 0.5
    ink_BHW[1, 1:3, 2:18] = 0.5  # two strokes joined above
    ink_BHW[2, 1:11, 2:4] = ink_BHW[2, 1:11, 16:18] = ink_BHW[2, 5, 8] = 1  # the dot is too small
    assert parts(ink_BHW).tolist() == [1, 1, 2, 0]
    assert parts(ink_BHW, pixels=1).tolist() == [1, 1, 3, 0]
    assert parts(ink_BHW, threshold=0.6).tolist() == [1, 0, 2, 0]


def test_extent_of_a_block_and_of_nothing():
    ink_BHW = torch.zeros(3, 12, 24)
    ink_BHW[0] = 0.05  # faint
    ink_BHW[0, 4:8, 6:18] = 0.7
    ink_BHW[1, :, :] = 1
    across, down = extent(ink_BHW)[0].tolist()
    assert across == pytest.approx(math.sqrt((12**2 - 1) / 12) / 12)
    assert down == pytest.approx(math.sqrt((4**2 - 1) / 12) / 12)
    assert extent(ink_BHW)[1, 0] / extent(ink_BHW)[1, 1] == pytest.approx(2, rel=0.01)
    assert extent(ink_BHW)[2].tolist() == [0, 0]
    assert torch.allclose(extent(ink_BHW.mT)[0], torch.tensor([down, across], dtype=torch.float64))
