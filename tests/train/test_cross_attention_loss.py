"""The shapes that steps draw, and what each loss compares with what."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from digits import digits

from r2id import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.position import grid_positions, read_colours
from train.data.buckets import Shape, ShapeSampler, pad_to
from train.losses.cross_attention import MARGIN_REACH, CrossAttentionLoss

TINY = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2, octaves=(-2, 3), ipe_size=8)
WIDE = Shape((8, 14), (4, 7))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def resampler_loss(
    config: CrossAttentionR2IRConfig = TINY,
    *,
    background=(0.0,),
    jitter="true",
    pre_tanh_l2=0.003,
    outside_fraction=0.0,
):
    torch.manual_seed(0)
    return CrossAttentionLoss(
        CrossAttentionR2IR(config),
        background=background,
        jitter=jitter,
        pre_tanh_l2=pre_tanh_l2,
        outside_fraction=outside_fraction,
    )


def some_images(size: int = 8, count: int = 4) -> torch.Tensor:
    return digits(size)[0][:count]


# shapes


def test_every_shape_that_is_drawn_is_within_its_limits():
    generator, shape_sampler = rng(), ShapeSampler()
    shapes = [shape_sampler.draw(32, generator=generator) for _ in range(4000)]
    for shape in shapes:
        height, width = shape.canvas
        assert min(height, width) == 32 and (height - 32) % 2 == (width - 32) % 2 == 0
        assert shape.aspect == width / height and 9 / 16 <= shape.aspect <= 16 / 9
        assert all(1 <= side <= 16 for side in shape.cells)
    square = [shape for shape in shapes if shape.aspect == 1]
    assert 0.45 < len(square) / len(shapes) < 0.56
    wide = sum(shape.aspect > 1 for shape in shapes)
    assert 0.2 < wide / len(shapes) < 0.3
    assert min(shape.aspect for shape in shapes) < 0.6 and max(shape.aspect for shape in shapes) > 1.7
    sides = Counter(shape.cells[0] for shape in square if shape.cells[0] == shape.cells[1])
    assert set(range(4, 17)) <= sides.keys()
    assert {max(shape.cells) for shape in shapes} >= set(range(4, 17))
    p_anisotropic = sum(shape.cells[0] != shape.cells[1] for shape in square) / len(square)
    assert 0.05 < p_anisotropic < 0.12  # a tenth, less those that round to a square
    for shape in shapes:  # cells are roughly square whatever the frame
        assert 1 / 2.3 < shape.cells[1] / shape.cells[0] / shape.aspect < 2.3


def test_a_sampler_of_one_size_draws_only_that():
    generator, shape_sampler = rng(), ShapeSampler(cells=(4, 4), p_square=1.0, p_anisotropic=0.0)
    assert {shape_sampler.draw(32, generator=generator) for _ in range(300)} == {Shape((32, 32), (4, 4))}


def test_cells_are_multiples_of_size_multiple():
    generator = rng()
    shapes = [ShapeSampler(cells=(8, 24)).draw(32, generator=generator, size_multiple=8).cells for _ in range(1000)]
    assert {side for cells in shapes for side in cells} == {8, 16, 24}
    square = ShapeSampler(cells=(16, 32), p_square=1.0, p_anisotropic=0.0)
    assert {square.draw(32, generator=generator, size_multiple=16).cells for _ in range(300)} == {(16, 16), (32, 32)}


def test_shapes_come_from_the_generator_alone():
    assert [ShapeSampler().draw(32, generator=rng(5)) for _ in range(3)] == [
        ShapeSampler().draw(32, generator=rng(5))
    ] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cells": (0, 4)}, "cells"),
        ({"cells": (9, 4)}, "fewest, most"),
        ({"max_aspect": 0.5}, "max_aspect 0.5: must be 1"),
    ],
)
def test_a_shape_sampler_without_a_shape_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ShapeSampler(**values)


def test_the_padded_image_stays_whole_on_whole_pixels():
    images, generator = some_images(32), rng(1)
    assert pad_to(images, (32, 32), torch.zeros(1)) is images
    for _ in range(50):
        height, width = ShapeSampler(p_square=0.0).draw(32, generator=generator).canvas
        canvas = pad_to(images, (height, width), torch.tensor([-0.5]))
        top, left = (height - 32) // 2, (width - 32) // 2
        assert torch.equal(canvas[:, :, top : height - top, left : width - left], images)
        assert (canvas == -0.5).sum() >= canvas.numel() - images.numel()
    colour = pad_to(images.repeat(1, 3, 1, 1), (32, 40), torch.tensor([-1.0, 0.0, 1.0]))
    assert colour[:, :, 0, 0].tolist() == [[-1, 0, 1]] * len(images)


# the resampler's loss


def test_subsets_are_whole_pixels_each_at_most_once():
    canvas = pad_to(some_images(), WIDE.canvas, torch.tensor([-1.0]))
    loss = resampler_loss(jitter="none")
    grid = grid_positions(WIDE.canvas, WIDE.aspect)
    colour_BNC, pixels = loss.pixels(canvas, 20, rng())
    assert colour_BNC.shape == (4, 20, 1) and pixels.absolute.shape == (4, 20, 2)
    for row in range(4):
        distance = torch.cdist(pixels.absolute[row], grid.absolute)
        index = distance.argmin(dim=1)
        assert distance.min(dim=1).values.max() < 1e-6 and len(index.unique()) == 20
        assert torch.equal(colour_BNC[row, :, 0], canvas[row].flatten()[index])
    assert not torch.equal(pixels.absolute[0], pixels.absolute[1])  # each image has its own
    whole, every = loss.pixels(canvas, 0, rng())
    assert every.grid == WIDE.canvas and every.ipe_sigma is not None  # all pixels, unjittered: averaged features
    assert torch.equal(whole, canvas.flatten(2).transpose(1, 2))
    more = resampler_loss().pixels(canvas, 10_000, rng())[0]
    assert more.shape == (4, 10_000, 1)  # some again, which is what smaller images of a batch need


def test_true_jitter_moves_the_colour_with_the_point():
    canvas = pad_to(some_images(), WIDE.canvas, torch.tensor([-1.0]))
    grid = grid_positions(WIDE.canvas, WIDE.aspect)
    colour_BNC, pixels = resampler_loss().pixels(canvas, 0, rng())
    assert torch.equal(colour_BNC, read_colours(canvas, pixels.absolute, torch.tensor([-1.0])))
    assert not torch.allclose(colour_BNC, canvas.flatten(2).transpose(1, 2), atol=0.1)
    moved = (pixels.absolute - grid.absolute) * torch.tensor([14.0, 8.0])  # in pixels
    assert moved.mean().abs() < 0.1 and 0.45 < moved.std() < 0.55
    assert torch.allclose(pixels.relative, pixels.absolute * torch.tensor([1.0, 8 / 14]))
    assert pixels.ipe_sigma is None and pixels.grid is None


def test_published_jitter_moves_the_point_and_keeps_the_colour():
    canvas = pad_to(some_images(), WIDE.canvas, torch.tensor([-1.0]))
    loss = resampler_loss(jitter="published")
    colour_BNC, pixels = loss.pixels(canvas, 0, rng())
    assert torch.equal(colour_BNC, canvas.flatten(2).transpose(1, 2))
    assert torch.equal(pixels.absolute, resampler_loss().pixels(canvas, 0, rng())[1].absolute)


@pytest.mark.parametrize("shape", [Shape((8, 8), (4, 4)), WIDE, Shape((14, 8), (7, 4))])
def test_points_around_the_frame_carry_the_background(shape):
    background = torch.tensor([0.25, -0.5, 0.75])
    canvas = torch.rand(4, 3, *shape.canvas, generator=rng(2)) * 0.1
    loss = resampler_loss(
        CrossAttentionR2IRConfig(channels=3, width=16, heads=2), background=tuple(((background + 1) / 2).tolist())
    )
    plain = loss.pixels(canvas, 40, rng())[1].absolute
    colour_BNC, pixels = loss.pixels(canvas, 40, rng(), 0.25)
    assert colour_BNC.shape == (4, 40, 3)
    assert torch.equal(pixels.absolute[:, :30], plain[:, :30])  # a quarter of the points are others
    assert torch.equal(colour_BNC, read_colours(canvas, pixels.absolute, background))
    beyond = (pixels.absolute.abs() > 0.5).any(dim=-1)
    assert beyond[:, 30:].float().mean() > 0.3
    assert torch.allclose(colour_BNC[beyond], background.expand(int(beyond.sum()), 3))
    assert (colour_BNC[~beyond] - 0.05).abs().max() < 0.2
    around = loss.around(8, 500, shape.aspect, rng(3))
    reach = around.abs() * torch.tensor([min(1, shape.aspect), min(1, 1 / shape.aspect)])
    assert reach.max() <= MARGIN_REACH and reach.max() > 0.9 * MARGIN_REACH
    assert not (around.abs() > 0.5).all(dim=-1).any()  # a cross: no output shows its corners
    few = loss.pixels(canvas, 3, rng(), 0.125)[0]
    assert few.shape == (4, 3, 3)  # too few for a single one around


def test_the_resampler_loss_is_the_error_at_its_points_and_the_penalty():
    images, shape = some_images(), Shape((8, 8), (4, 5))
    loss = resampler_loss(jitter="none", pre_tanh_l2=0.5)
    total, parts = loss(images, shape, 0, 0, rng())
    grid, cells = grid_positions((8, 8), 1.0, sigma=TINY.ipe_sigma), grid_positions((4, 5), 1.0)
    raw = loss.model.encode(images.flatten(2).transpose(1, 2), grid, cells)
    decoded = loss.model.decode(loss.model.context(raw.tanh(), cells), grid).transpose(1, 2).view_as(images)
    error = (decoded - images).square().mean()
    assert parts["mse"].item() == pytest.approx(error.item(), rel=1e-4)
    assert total.item() == pytest.approx((error + 0.5 * raw.square().mean()).item(), rel=1e-4)
    assert torch.allclose(loss.model.encode_image(images, (4, 5)), raw.tanh(), atol=1e-5)
    assert not parts["mse"].requires_grad and total.requires_grad
    again = resampler_loss(outside_fraction=0.125)
    assert again(images, WIDE, 10, 30, rng())[0] == again(images, WIDE, 10, 30, rng())[0]
    assert again(images, WIDE, 10, 30, rng())[0] != again(images, WIDE, 10, 30, rng(1))[0]


def test_the_resampler_learns_from_its_loss():
    images, loss = some_images(), resampler_loss(outside_fraction=0.125)
    optimiser = torch.optim.AdamW(loss.model.parameters(), lr=3e-3)
    errors = []
    for step in range(30):
        total, parts = loss(images, Shape((8, 8), (4, 4)), 48, 48, rng(step))
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
        errors.append(parts["mse"].item())
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="jitter 'some': must be one of true, published, none"):
        resampler_loss(jitter="some")
    with pytest.raises(ValueError, match="outside_fraction 0.1: must be 0 with the published jitter"):
        resampler_loss(jitter="published", outside_fraction=0.1)
