from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from r2id.position import (
    FITS,
    PositionEmbedding,
    Positions,
    batched,
    cell_positions,
    cell_sides,
    check_region,
    fourier,
    grid_positions,
    ipe_sigma_of,
    jitter,
    points,
    points_per_pixel,
    read_colours,
    relative_scale,
    training_pitch,
    window_of,
)

ASPECTS = (1.0, 16 / 9, 0.4)
SIZES = ((8, 8), (5, 12), (64, 3), (1, 1))


def whole(size, **options) -> torch.Tensor:
    """Absolute positions (H, W, 2) of the whole image."""
    return window_of(size, **options).positions(range(size[0]), range(size[1])).absolute.unflatten(0, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_points_are_pixel_centres_in_reading_order(size, aspect):
    positions = grid_positions(size, aspect)
    expected = torch.tensor([[(j + 0.5) / size[1] - 0.5, (i + 0.5) / size[0] - 0.5] for i, j in cells_of(size)])
    assert positions.grid == size and positions.absolute.dtype == torch.float32
    torch.testing.assert_close(positions.absolute, expected)
    torch.testing.assert_close(positions.relative, expected * torch.tensor(relative_scale(aspect)))
    assert max(relative_scale(aspect)) == 1


def cells_of(size):
    return [(i, j) for i in range(size[0]) for j in range(size[1])]


def test_the_field_of_view_does_not_depend_on_the_size():
    coarse, fine = (grid_positions(size, 1.5).absolute.unflatten(0, size) for size in ((4, 6), (12, 18)))
    torch.testing.assert_close(fine[1::3, 1::3], coarse)  # the middle of three is the same centre


@pytest.mark.parametrize(
    "size, part", [((64, 40), (slice(12, 52), slice(None))), ((40, 64), (slice(None), slice(12, 52)))]
)
def test_the_centre_of_contain_is_the_square_image(size, part):
    options = {"aspect": 1.0, "fit": "contain"}
    assert torch.equal(whole(size, **options)[part], whole((40, 40), **options))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_contain_shows_the_whole_frame_and_cover_stays_inside(size, aspect):
    height, width = size
    for fit, larger in (("contain", True), ("cover", False)):
        window = window_of(size, aspect=aspect, fit=fit)
        shown = (width * window.pitch[0], height * window.pitch[1])  # in frames
        assert min(shown) >= 1 - 1e-12 if larger else max(shown) <= 1 + 1e-12
        assert math.isclose(1, min(shown) if larger else max(shown))  # and no more than that
        assert math.isclose(window.pitch[0] * aspect, window.pitch[1])  # pixels are square
        assert torch.allclose(whole(size, aspect=aspect, fit=fit).mean((0, 1)), torch.zeros(2), atol=1e-6)  # centred
    assert whole(size, aspect=aspect, fit="cover").abs().max() <= 0.5


@pytest.mark.parametrize("size", SIZES)
def test_stretch_and_published_pull_the_frame_to_the_output(size):
    stretched = window_of(size, aspect=16 / 9, fit="stretch").positions(range(size[0]), range(size[1]))
    published = window_of(size, aspect=16 / 9, fit="stretch", output_frame=True).positions(
        range(size[0]), range(size[1])
    )
    assert torch.equal(stretched.absolute, published.absolute)
    assert torch.equal(stretched.absolute, grid_positions(size, 16 / 9).absolute)
    assert torch.equal(stretched.relative, grid_positions(size, 16 / 9).relative)
    assert torch.equal(published.relative, grid_positions(size, size[1] / size[0]).relative)  # the output's own frame
    assert stretched.framed and not published.framed


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_region_is_the_crop_of_the_larger_image(fit, aspect):
    options = {"aspect": aspect, "fit": fit}
    part = window_of((16, 8), **options, region=(0.25, 0.375, 0.5, 0.625)).positions(range(16), range(8))
    larger = window_of((64, 32), **options).positions(range(24, 40), range(8, 16))
    assert torch.equal(part.absolute, larger.absolute) and torch.equal(part.relative, larger.relative)


@pytest.mark.parametrize("fit", FITS)
def test_a_tile_is_the_part_exactly(fit):
    window = window_of((13, 7), aspect=1.3, fit=fit).supersample((2, 3))
    full, tile = window.positions(range(39), range(14)), window.positions(range(5, 11), range(3, 4))
    assert tile.grid == (6, 1)
    for name in ("absolute", "relative"):
        assert torch.equal(getattr(tile, name), getattr(full, name).unflatten(0, full.grid)[5:11, 3:4].flatten(0, 1))


def test_cutting_pixels_keeps_their_centres():
    window = window_of((4, 6), aspect=1.0, fit="contain", region=(0.1, 0.2, 0.7, 0.8))
    coarse = window.positions(range(4), range(6)).absolute.unflatten(0, (4, 6))
    fine = window.supersample((3, 2)).positions(range(8), range(18)).absolute.unflatten(0, (4, 2, 6, 3)).mean((1, 3))
    torch.testing.assert_close(fine, coarse)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(1, 1), (3, 20), (31, 33), (256, 256), (700, 700), (1024, 1024), (4096, 2048)])
@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("decoder_size", [32, 1024])
def test_a_pixel_is_the_mean_of_the_fewest_points_that_are_dense_enough(fit, size, aspect, decoder_size):
    window = window_of(size, aspect=aspect, fit=fit)
    factors = points_per_pixel(window, aspect=aspect, decoder_size=decoder_size)
    for pitch, short_sides, k in zip(window.pitch, (max(1, aspect), max(1, 1 / aspect)), factors, strict=True):
        density = 1 / (pitch * short_sides)
        wanted = min(decoder_size, 2 * max(density, 256))
        assert k >= 1 and k * density >= wanted * (1 - 1e-8)
        assert k == 1 or (k - 1) * density < wanted


@pytest.mark.parametrize("side, points", [(8, 512), (64, 512), (256, 512), (512, 1024), (1024, 1024), (2048, 2048)])
def test_square_images_of_letters_cost_as_many_points_as_documented(side, points):
    window = window_of((side, side), aspect=1.0, fit="contain")
    assert points_per_pixel(window, aspect=1.0, decoder_size=1024) == (points // side,) * 2


def test_cells_have_sides_in_short_sides_of_the_frame():
    torch.testing.assert_close(cell_sides((4, 8), 2.0), torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(cell_sides((8, 4), 0.5), torch.tensor([0.25, 0.25]))
    assert cell_sides((4, 8), torch.tensor([2.0, 1.0])).tolist() == [[[0.25, 0.25]], [[0.125, 0.25]]]


def test_cells_of_several_frames_are_those_of_each():
    together = cell_positions((3, 5), torch.tensor([2.0, 0.5]))
    for row, aspect in enumerate((2.0, 0.5)):
        torch.testing.assert_close(together.relative[row], grid_positions((3, 5), aspect).relative)


def test_training_pixels_are_square_and_on_the_short_side():
    for aspect in ASPECTS:
        x, y = training_pitch(aspect, 32)
        assert math.isclose(x * aspect, y) and math.isclose(max(x, y), 1 / 32)


def test_jitter_is_one_draw_for_both_systems_and_scales_with_sigma():
    absolute = torch.zeros(20_000, 2)
    pitch = (0.1, 0.05)
    jittered = {s: jitter(absolute, pitch, s, torch.Generator().manual_seed(0)) for s in (0.0, 0.5, 0.25)}
    assert torch.equal(jittered[0.0], absolute)
    torch.testing.assert_close(jittered[0.25] * 2, jittered[0.5])
    torch.testing.assert_close(jittered[0.5].std(0), torch.tensor(pitch) * 0.5, rtol=0.03, atol=0)
    positions = points(jittered[0.5], 0.5)
    assert torch.equal(positions.relative, positions.absolute * torch.tensor(relative_scale(0.5)))


def test_colours_at_pixel_centres_are_the_image_and_beyond_it_the_background():
    image = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    absolute = grid_positions((5, 7), 7 / 5).absolute.expand(2, -1, -1)
    background = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(read_colours(image, absolute, background), image.flatten(2).transpose(1, 2))
    beyond = torch.tensor([[0.51, 0.0], [0.0, -0.51], [3.0, 3.0]]).expand(2, -1, -1)
    assert torch.equal(read_colours(image, beyond, background), background.expand(2, 3, -1))
    edge = torch.tensor([[[0.5, 0.0]]]).expand(2, -1, -1)  # the frame's edge belongs to the frame
    assert not torch.equal(read_colours(image, edge, background)[0, 0], background)


def test_attenuation_is_the_mean_under_gaussian_jitter():
    values, frequencies = torch.tensor([0.1, -0.37], dtype=torch.float64), math.pi * 2.0 ** torch.arange(-1, 5)
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.03
    mean = fourier(values + noise, frequencies).mean(0)
    torch.testing.assert_close(fourier(values, frequencies, 0.03), mean, atol=0.012, rtol=0)
    assert torch.equal(fourier(values, frequencies, 0.0), fourier(values, frequencies))


def test_ipe_sigma_is_sigma_pixels_in_both_systems():
    absolute, relative = ipe_sigma_of(0.5, (0.2, 0.1), 0.5)
    assert absolute == (0.1, 0.05) and relative == (0.05, 0.05)
    assert ipe_sigma_of(0.5, (0.2, 0.1), 0.0) is None
    assert grid_positions((4, 2), 0.5, sigma=0.5).ipe_sigma[0] == (0.25, 0.125)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_embedding_of_a_grid_equals_that_of_its_points(sigma):
    torch.manual_seed(0)
    embedding = PositionEmbedding(8, (-2, 3))
    grid = grid_positions((3, 5), 5 / 3, sigma=sigma)
    on_grid, as_points = embedding(grid), embedding(replace(grid, grid=None))
    assert on_grid.shape == (3, 5, 8) and as_points.shape == (15, 8)
    torch.testing.assert_close(on_grid.flatten(0, 1), as_points)
    batched = Positions(grid.absolute.expand(2, -1, -1), grid.relative.expand(2, -1, -1), None, grid.ipe_sigma)
    torch.testing.assert_close(embedding(batched)[1], as_points)


def test_a_batch_of_grids_holds_each_as_it_is_alone():
    torch.manual_seed(0)
    embedding, size, aspects = PositionEmbedding(8, (-2, 3)), (3, 5), (5 / 3, 1.4, 1.9)
    grids = [grid_positions(size, aspect) for aspect in aspects]
    together = batched(grids, [1, 2, 1])
    (x, x_relative), (y, y_relative) = together.axes()
    assert together.grid == size and together.absolute.shape == (4, 15, 2)
    assert x.shape == x_relative.shape == (4, 1, 5) and y.shape == y_relative.shape == (4, 3, 1)
    embedded = embedding(together)
    assert embedded.shape == (4, *size, 8)
    for row, grid in enumerate([grids[0], grids[1], grids[1], grids[2]]):
        assert torch.equal(together.relative[row], grid.relative)
        torch.testing.assert_close(embedded[row], embedding(grid))
    assert batched(grids[:1], [4]) is grids[0]
    scattered = batched([points(grid.absolute.expand(2, -1, -1), 1.5) for grid in grids], [2, 2, 2])
    assert scattered.grid is None and scattered.absolute.shape == (6, 15, 2)


def test_the_octaves_are_of_half_waves():
    frequencies = PositionEmbedding(8, (-2, 5)).frequencies
    torch.testing.assert_close(frequencies / math.pi, torch.tensor([0.25, 0.5, 1, 2, 4, 8, 16, 32]))


@pytest.mark.parametrize(
    "region",
    [
        None,
        5,
        "full",
        "0011",
        (0, 0, 1),
        (0, 0, 1, 1, 1),
        (0, 0, 1, "x"),
        (math.nan, 0, 1, 1),
        (0, 0, 1, math.inf),
        (0, 0, 10**400, 1),
        (0.6, 0, 0.4, 1),
        (0, 0.5, 1, 0.5),
        (-0.1, 0, 1, 1),
        (0, 0, 1, 1.1),
        (0, 0, 2.0**-21, 1),
        (0.5, 0.5, 1, 0.5 + 2.0**-21),
    ],
)
def test_a_bad_region_is_refused(region):
    with pytest.raises(ValueError, match=r"^region .*(give four numbers|needs 0)"):
        check_region(region)
    with pytest.raises(ValueError, match="^region"):
        window_of((4, 4), aspect=1.0, fit="contain", region=region)


def test_the_deepest_zoom_is_as_exact_as_float32():
    region = (0.7, 0.7, 0.7 + 2.0**-20, 0.7 + 2.0**-20)
    window = window_of((64, 64), aspect=1.0, fit="contain", region=region)
    x_W = window.positions(range(1), range(64)).absolute[:, 0]
    exact_W = 0.2 + (torch.arange(64).double() + 0.5) / 64 * 2.0**-20
    assert (x_W - exact_W).abs().max() <= 2.0**-26 / 2 * 1.01  # half of what separates floats there, and pixels


@pytest.mark.parametrize("fit", ["", "crop", None, 1])
def test_an_unknown_fit_is_refused(fit):
    with pytest.raises(ValueError, match="must be one of contain, cover, stretch$"):
        window_of((4, 4), aspect=1.0, fit=fit)
