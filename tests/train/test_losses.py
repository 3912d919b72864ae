"""The law by which steps draw their shapes, and what each loss compares with what."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from digits import digits
from torch import nn
from torch.nn import functional as F

from r2id import R2ID, CrossAttentionR2IR, CrossAttentionR2IRConfig, R2IDConfig
from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.position import grid_positions, read_colours
from r2id.schedule import Schedule, noise_from, target
from train.data.buckets import Shape, ShapeSampler, pad_to
from train.losses.denoiser import DenoiserLoss, coarse_error
from train.losses.resampler import MARGIN_REACH, ResamplerLoss, encode

TINY = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2, octaves=(-2, 3))
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
    return ResamplerLoss(
        CrossAttentionR2IR(config),
        background=background,
        jitter=jitter,
        pre_tanh_l2=pre_tanh_l2,
        outside_fraction=outside_fraction,
    )


def pictures(size: int = 8, count: int = 4) -> torch.Tensor:
    return digits(size)[0][:count]


# the law


def test_every_shape_of_the_law_is_within_its_limits():
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


def test_a_law_of_one_size_draws_only_that():
    generator, shape_sampler = rng(), ShapeSampler(cells=(4, 4), p_square=1.0, p_anisotropic=0.0)
    assert {shape_sampler.draw(32, generator=generator) for _ in range(300)} == {Shape((32, 32), (4, 4))}


def test_cells_are_multiples_of_the_stride():
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
def test_a_law_that_cannot_be_drawn_from_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ShapeSampler(**values)


def test_the_padded_picture_stays_whole_on_whole_pixels():
    images, generator = pictures(32), rng(1)
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
    canvas = pad_to(pictures(), WIDE.canvas, torch.tensor([-1.0]))
    loss = resampler_loss(jitter="none")
    grid = grid_positions(WIDE.canvas, WIDE.aspect)
    colour_BNC, pixels = loss.pixels(canvas, 20, rng())
    assert colour_BNC.shape == (4, 20, 1) and pixels.absolute.shape == (4, 20, 2)
    for row in range(4):
        distance = torch.cdist(pixels.absolute[row], grid.absolute)
        index = distance.argmin(dim=1)
        assert distance.min(dim=1).values.max() < 1e-6 and len(index.unique()) == 20
        assert torch.equal(colour_BNC[row, :, 0], canvas[row].flatten()[index])
    assert not torch.equal(pixels.absolute[0], pixels.absolute[1])  # each picture has its own
    whole, every = loss.pixels(canvas, 0, rng())
    assert every.grid == WIDE.canvas and every.ipe_sigma is not None  # all pixels, unjittered: footprint features
    assert torch.equal(whole, canvas.flatten(2).transpose(1, 2))
    more = resampler_loss().pixels(canvas, 10_000, rng())[0]
    assert more.shape == (4, 10_000, 1)  # some again, which is what smaller pictures of a batch need


def test_true_jitter_moves_the_colour_with_the_point():
    canvas = pad_to(pictures(), WIDE.canvas, torch.tensor([-1.0]))
    grid = grid_positions(WIDE.canvas, WIDE.aspect)
    colour_BNC, pixels = resampler_loss().pixels(canvas, 0, rng())
    assert torch.equal(colour_BNC, read_colours(canvas, pixels.absolute, torch.tensor([-1.0])))
    assert not torch.allclose(colour_BNC, canvas.flatten(2).transpose(1, 2), atol=0.1)
    moved = (pixels.absolute - grid.absolute) * torch.tensor([14.0, 8.0])  # in pixels
    assert moved.mean().abs() < 0.1 and 0.45 < moved.std() < 0.55
    assert torch.allclose(pixels.relative, pixels.absolute * torch.tensor([1.0, 8 / 14]))
    assert pixels.ipe_sigma is None and pixels.grid is None


def test_published_jitter_moves_the_point_and_keeps_the_colour():
    canvas = pad_to(pictures(), WIDE.canvas, torch.tensor([-1.0]))
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
    images, shape = pictures(), Shape((8, 8), (4, 5))
    loss = resampler_loss(jitter="none", pre_tanh_l2=0.5)
    total, parts = loss(images, shape, 0, 0, rng())
    grid, cells = grid_positions((8, 8), 1.0, sigma=TINY.ipe_sigma), grid_positions((4, 5), 1.0)
    raw = loss.model.encode(images.flatten(2).transpose(1, 2), grid, cells)
    decoded = loss.model.decode(loss.model.prepare(raw.tanh(), cells), grid).transpose(1, 2).view_as(images)
    error = (decoded - images).square().mean()
    assert parts["mse"].item() == pytest.approx(error.item(), rel=1e-4)
    assert total.item() == pytest.approx((error + 0.5 * raw.square().mean()).item(), rel=1e-4)
    assert torch.allclose(encode(loss.model, images, (4, 5)), raw.tanh(), atol=1e-5)
    assert not parts["mse"].requires_grad and total.requires_grad
    again = resampler_loss(outside_fraction=0.125)
    assert again(images, WIDE, 10, 30, rng())[0] == again(images, WIDE, 10, 30, rng())[0]
    assert again(images, WIDE, 10, 30, rng())[0] != again(images, WIDE, 10, 30, rng(1))[0]


def test_the_resampler_learns_from_its_loss():
    images, loss = pictures(), resampler_loss(outside_fraction=0.125)
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


# the denoiser's loss


class Oracle(nn.Module):
    """Knows the clean latents, so its prediction is exact; keeps what it was called with."""

    def __init__(self, prediction_type: str, *, jitter: float):
        super().__init__()
        self.config = SimpleNamespace(prediction_type=prediction_type, jitter=jitter)
        self.condition = LabelCondition(10, tokens=2, width=4)
        self.x0, self.pyramid, self.carries = None, (), []

    def forward(self, noisy_BChw, alpha_bar_B, positions, conditions, recurrent_state=None):
        self.seen = SimpleNamespace(alpha_bar=alpha_bar_B, positions=positions, tokens=conditions[0], noisy=noisy_BChw)
        noise = noise_from(self.x0, noisy_BChw, alpha_bar_B)
        prediction = target(self.config.prediction_type, self.x0, noise, alpha_bar_B)
        self.carries.append(recurrent_state)
        return DenoiserOutput(prediction[None], recurrent_state=len(self.carries), pyramid=self.pyramid)


def denoiser_loss(
    prediction_type="v",
    *,
    label_dropout=0.0,
    schedule=Schedule(),  # noqa: B008
    noise_per_image=1,
    **settings,
) -> DenoiserLoss:
    torch.manual_seed(0)
    return DenoiserLoss(
        Oracle(prediction_type, jitter=0.0),
        CrossAttentionR2IR(TINY),
        schedule=schedule,
        background=(0.0,),
        latent_mean=(0.1, 0.0, -0.1),
        latent_std=(0.5, 0.25, 2.0),
        label_dropout=label_dropout,
        jitter_grid=5,
        noise_per_image=noise_per_image,
        **settings,
    )


def pixel_loss(*, jitter: float = 0.0, warm_start: float = 0.0) -> DenoiserLoss:
    torch.manual_seed(0)
    return DenoiserLoss(
        Oracle("v", jitter=jitter),
        None,
        schedule=Schedule(),
        background=(0.0,),
        latent_mean=(0.0,),
        latent_std=(1.0,),
        label_dropout=0.0,
        jitter_grid=8,
        warm_start=warm_start,
    )


def latents(loss: DenoiserLoss, images: torch.Tensor, shape: Shape) -> torch.Tensor:
    raw = encode(loss.resampler, pad_to(images, shape.canvas, torch.tensor([-1.0])), shape.cells)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.1, 0.0, -0.1), (0.5, 0.25, 2.0)))
    return (raw - mean) / std


@pytest.mark.parametrize("prediction_type", ["v", "epsilon", "x0"])
def test_a_perfect_denoiser_has_no_loss(prediction_type):
    loss, images, labels = denoiser_loss(prediction_type), pictures(count=8), torch.arange(8)
    loss.model.x0 = latents(loss, images, WIDE)
    error, parts = loss(images, labels, WIDE, rng())
    assert error < 1e-6 and parts["mse"] < 1e-6
    loss.model.x0 = torch.zeros_like(loss.model.x0)
    assert loss(images, labels, WIDE, rng())[0] > 0.05


def test_times_are_stratified_and_shifted_by_the_cells():
    loss, images = denoiser_loss(schedule=Schedule(shift_power=1.0)), pictures(count=8)
    loss.model.x0 = latents(loss, images, WIDE)
    loss(images, torch.arange(8), WIDE, rng())
    seen = loss.model.seen
    edges = Schedule().alpha_bar(torch.arange(9, dtype=torch.float64) / 8, cells=WIDE.cells)
    assert (seen.alpha_bar <= edges[:-1]).all() and (seen.alpha_bar >= edges[1:]).all()  # one time an eighth
    assert seen.positions.grid == WIDE.cells
    assert torch.equal(seen.positions.relative, grid_positions(WIDE.cells, WIDE.aspect).relative)


def test_each_picture_is_encoded_once_and_drawn_at_times_far_apart():
    loss, images, labels = denoiser_loss(noise_per_image=4), pictures(count=8), torch.arange(8)
    x0, encoded = latents(loss, images, WIDE), []
    loss.model.x0 = x0.repeat(4, 1, 1, 1)
    loss.resampler.latent_out.register_forward_hook(lambda *call: encoded.append(len(call[2])))
    error, _ = loss(images, labels, WIDE, rng())
    assert error < 1e-6 and encoded == [8]
    seen = loss.model.seen
    assert torch.equal(seen.tokens, loss.model.condition.table[labels].repeat(4, 1, 1))
    assert torch.equal(seen.alpha_bar, seen.alpha_bar.sort(descending=True).values)  # an eighth of a fourth each
    noise = noise_from(loss.model.x0, seen.noisy, seen.alpha_bar).unflatten(0, (4, 8))
    assert noise[0].sub(noise[1]).abs().mean() > 0.5


def test_a_teacher_says_what_is_wanted():
    loss, images, labels = denoiser_loss(), pictures(count=8), torch.arange(8)
    loss.model.x0 = latents(loss, images, WIDE)
    usual, _ = loss(images, labels, WIDE, rng())
    teacher = denoiser_loss().model
    teacher.x0 = loss.model.x0 + 0.3
    moved, _ = loss(images, labels, WIDE, rng(), teacher=teacher)
    assert usual < 1e-6 < 1e-3 < moved
    teacher.x0 = loss.model.x0
    same, _ = loss(images + 0.5, labels, WIDE, rng(), teacher=teacher)  # whatever the pictures
    assert same == 0


def test_dropped_and_missing_labels_are_the_null_condition():
    images, shape = pictures(count=8), Shape((8, 8), (4, 4))
    labels = torch.tensor([3, -1, 0, 9, 1, 2, -1, 5])

    def tokens(label_dropout):
        loss = denoiser_loss(label_dropout=label_dropout)
        loss.model.x0 = latents(loss, images, shape)
        loss(images, labels, shape, rng())
        table = loss.model.condition.table
        return loss.model.seen.tokens, table

    kept, table = tokens(0.0)
    assert torch.equal(kept, table[labels])  # -1 is the last row, the null condition
    dropped, table = tokens(1.0)
    assert torch.equal(dropped, table[-1:].expand(8, -1, -1))
    some, table = tokens(0.5)
    null = (some == table[-1]).flatten(1).all(dim=1)
    assert 2 < null.sum() < 8 and torch.equal(some[~null], table[labels[~null]])


def test_only_the_denoiser_and_its_condition_are_trained():
    config = R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8)
    loss = denoiser_loss()
    loss.model = R2ID(config)
    nn.init.normal_(loss.model.out.weight)
    for modulation in (module for module in loss.model.modules() if hasattr(module, "modulation")):
        nn.init.normal_(modulation.modulation.weight)
    loss(pictures(), torch.arange(4), WIDE, rng())[0].backward()
    assert loss.model.condition.table.grad[:4].abs().amin(dim=(1, 2)).max() > 0
    assert all(parameter.grad is None for parameter in loss.resampler.parameters())
    assert not loss.resampler.training


@pytest.mark.parametrize("cells", [(8, 8), (4, 4)])
def test_in_pixel_space_the_latent_is_the_picture_at_its_size(cells):
    loss, images, shape = pixel_loss(), pictures(count=8), Shape((8, 8), cells)
    reduced = F.interpolate(images, size=cells, mode="bicubic", antialias=True).clamp(-1, 1)
    loss.model.x0 = images if cells == (8, 8) else reduced
    assert loss(images, torch.arange(8), shape, rng())[0] < 1e-6
    loss.model.x0 = -loss.model.x0
    assert loss(images, torch.arange(8), shape, rng())[0] > 0.1


def test_jitter_moves_every_position_by_pixels_of_the_finest_grid():
    images, shape = pictures(count=8), Shape((8, 8), (4, 4))
    for sigma in (0.0, 0.25, 0.5):
        loss = pixel_loss(jitter=sigma)
        loss.model.x0 = F.avg_pool2d(images, 2)
        loss(images, torch.arange(8), shape, rng())
        positions, centres = loss.model.seen.positions, grid_positions((4, 4), 1.0)
        if sigma == 0:
            assert positions.grid == (4, 4) and torch.equal(positions.absolute, centres.absolute)
        else:
            moved = (positions.absolute - centres.absolute) * 8  # in pixels of the finest grid, not of this one
            assert positions.grid is None and moved.shape == (8, 16, 2)
            assert moved.std() == pytest.approx(sigma, rel=0.15)


def test_a_warm_start_hands_on_the_carry_of_a_pass_without_gradient():
    images = pictures(count=8)

    def carries(share: float, seed: int) -> list:
        loss = pixel_loss(warm_start=share)
        loss.model.x0 = images
        loss(images, torch.arange(8), Shape((8, 8), (8, 8)), rng(seed))
        return loss.model.carries

    assert carries(0.0, 0) == [None] and carries(1.0, 0) == [None, 1]
    warm = [len(carries(0.5, seed)) - 1 for seed in range(60)]
    assert 15 < sum(warm) < 45
    assert warm == [len(carries(0.5, seed)) - 1 for seed in range(60)]  # drawn from the generator alone


def test_only_the_second_pass_of_a_warm_start_has_a_gradient():
    loss, images, enabled = pixel_loss(warm_start=1.0), pictures(), []
    loss.model.x0 = images
    loss.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    loss(images, torch.arange(4), Shape((8, 8), (8, 8)), rng())
    assert enabled == [False, True]


def test_every_scale_of_a_pyramid_is_compared_at_unit_variance():
    noise = torch.randn(64, 1, 16, 16, generator=rng())
    for k in (2, 4):
        summed = F.avg_pool2d(noise, k) * k**2
        assert coarse_error(summed / k, noise) < 1e-12
        assert coarse_error(torch.zeros_like(summed), noise) == pytest.approx(1 / k**2, rel=0.1)
    loss, images, shape = pixel_loss(), pictures(), Shape((8, 8), (8, 8))
    loss.model.x0 = images
    alone = loss(images, torch.arange(4), shape, rng())[0]
    loss.model.pyramid = (torch.full((1, 4, 1, 4, 4), 100.0),)
    both, parts = loss(images, torch.arange(4), shape, rng())
    assert both - alone == pytest.approx(100**2 / 4, rel=0.1) and parts["mse"] == alone
