from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from r2id.cross_attention_basis import (
    AxisFeatures,
    LinearCodec,
    cell_sides,
    decode_coefficients,
    evaluate_axis,
    local_coefficients,
    read_grid,
    read_points,
)
from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.local_basis import LocalBasis, dense
from r2id.position import Positions, grid_positions, points, window_of

TINY = CrossAttentionR2IRConfig(channels=2, latent_channels=3, width=16, heads=2, octaves=(-2, 3))
VARIANTS = {
    "softmax": TINY,
    "linear": replace(TINY, attention="linear"),
    "published": replace(TINY, local=False, cell_blocks=0, attention="linear"),
    "deep": replace(TINY, encoder_blocks=3, decoder_blocks=2, cell_blocks=2),
    "narrow": replace(TINY, pixel_width=8, pixel_heads=1, decoder_blocks=2),
    "fine": replace(TINY, harmonics=6, base_frequency=0.5),
}
QUARTERS = LocalBasis(4, 0.25)  # four harmonics of a quarter turn a cell
BASIS = 9  # their sines and cosines, and the constant


@pytest.fixture(params=VARIANTS)
def model(request) -> CrossAttentionR2IR:
    torch.manual_seed(0)
    return CrossAttentionR2IR(VARIANTS[request.param]).eval().requires_grad_(False)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_points(grid: Positions, rows: int | None = None, order: torch.Tensor | slice = slice(None)) -> Positions:
    """The same points without their grid: (N, 2), or (rows, N, 2)."""
    both = (p[order] if rows is None else p[order].expand(rows, -1, -1) for p in (grid.absolute, grid.relative))
    return Positions(*both, None, grid.ipe_sigma, grid.framed)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_bilinear_weights_sum_to_one_everywhere(count):
    weights = QUARTERS.dense(torch.linspace(-0.8, 0.8, 201), count)[..., 0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(201))
    assert weights.min() >= 0 and (weights > 0).sum(-1).max() <= 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_basis_is_continuous_across_centres_and_borders(count):
    places = (torch.arange(2 * count + 1) / (2 * count) - 0.5).double()
    before, after = (QUARTERS.dense(places + step, count) for step in (-1e-7, 1e-7))
    assert (before - after).abs().max() < 1e-5 * count


def test_a_cell_owns_its_centre():
    basis = QUARTERS.dense(grid_positions((1, 4), 4.0).absolute[:, 0], 4)
    alone = torch.tensor([1.0] + [0.0] * 4 + [1.0] * 4)
    torch.testing.assert_close(basis, torch.eye(4)[:, :, None] * alone)


def test_the_basis_is_fourier_in_the_offset_from_each_cell():
    frequencies = math.pi / 2 * torch.arange(1, 5)
    # in cells: 0.2 from the first centre, -0.8 from the second
    first, basis = QUARTERS.evaluate(torch.tensor([-0.15]), 2)
    for i, (offset, weight) in enumerate([(0.2, 0.8), (-0.8, 0.2)]):
        expected = torch.cat((torch.ones(1), (frequencies * offset).sin(), (frequencies * offset).cos())) * weight
        torch.testing.assert_close(basis[0, i], expected, atol=1e-6, rtol=1e-5)
    assert first.tolist() == [0]


def test_one_pixel_is_enough_for_its_four_cells():
    coefficients = local_coefficients(
        torch.tensor([[[0.3]]]), points(torch.tensor([[[0.1, 0.1]]]), 1.0), (2, 2), QUARTERS
    )
    torch.testing.assert_close(coefficients[..., 0], torch.full((1, 4), 0.3))


def test_the_constant_coefficient_is_the_weighted_mean_of_the_colours():
    grid = grid_positions((8, 8), 1.0)
    coefficients = local_coefficients(torch.tensor([0.3, -0.7]).expand(2, 64, 2), grid, (3, 4), QUARTERS)
    assert coefficients.shape == (2, 12, BASIS**2 * 2)
    torch.testing.assert_close(coefficients[..., :2], torch.tensor([0.3, -0.7]).expand(2, 12, 2))


@pytest.mark.parametrize("cells", [(1, 1), (3, 4), (10, 2)])
def test_coefficients_of_a_grid_equal_those_of_its_points(cells):
    grid, colours = grid_positions((6, 5), 5 / 6), uniform(2, 30, 2)
    expected = local_coefficients(colours, grid, cells, QUARTERS)
    torch.testing.assert_close(
        local_coefficients(colours, as_points(grid, 2), cells, QUARTERS), expected, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        local_coefficients(colours, as_points(grid), cells, QUARTERS), expected, atol=1e-5, rtol=1e-4
    )


def test_a_cell_that_no_pixel_reached_has_zero_coefficients():
    left = points(torch.stack((uniform(40) * 0.2 - 0.3, uniform(40, seed=1) / 2), -1)[None], 1.0)  # x below -0.1
    coefficients = local_coefficients(uniform(1, 40, 2), left, (4, 4), QUARTERS).unflatten(1, (4, 4))
    assert coefficients.isfinite().all()
    assert coefficients[:, :, 3].abs().max() == 0 < coefficients[:, :, 0].abs().max()


def linear(width):
    return uniform(width, BASIS**2), uniform(width, seed=1)


def lines_of(grid: Positions, cells: tuple[int, int], x_WD: torch.Tensor, y_HD: torch.Tensor) -> list[AxisFeatures]:
    lapped = [evaluate_axis(QUARTERS, grid, axis, cells[1 - axis]) for axis in (0, 1)]
    both = zip((x_WD, y_HD), lapped, reversed(cells), strict=True)
    return [AxisFeatures(position_ND, lap, dense(*lap, count)) for position_ND, lap, count in both]


@pytest.mark.parametrize("cells", [(1, 1), (3, 4), (2, 40)])
@pytest.mark.parametrize("window", [(0.0, 0.0, 1.0, 1.0), (0.6, 0.1, 0.7, 0.3)])
def test_reading_a_grid_equals_reading_its_points(cells, window):
    """At once or in blocks of columns, the whole or a part."""
    local, x_WD, y_HD, read = uniform(2, *cells, BASIS**2 + 3), uniform(50, 3), uniform(6, 3, seed=1), linear(3)
    grid = window_of((6, 50), aspect=5 / 6, fit="contain", region=window).positions(range(6), range(50))
    expected = read_points(local, as_points(grid), QUARTERS, *read) + (x_WD + y_HD[:, None]).flatten(0, 1)
    crossed = read_grid(local, *lines_of(grid, cells, x_WD, y_HD), *read)
    torch.testing.assert_close(crossed, expected, atol=1e-5, rtol=1e-4)
    each_own = read_points(local, as_points(grid, 2), QUARTERS, *read)
    torch.testing.assert_close(each_own, read_points(local, as_points(grid), QUARTERS, *read), atol=1e-5, rtol=1e-4)


def test_beyond_the_frame_the_nearest_edge_is_read():
    local, read = uniform(1, 3, 4, BASIS**2 + 3), linear(3)
    outside, edge = torch.tensor([[[2.0, 0.1], [-0.9, 7.0]]]), torch.tensor([[[0.5, 0.1], [-0.5, 0.5]]])
    assert torch.equal(
        read_points(local, points(outside, 1.0), QUARTERS, *read),
        read_points(local, points(edge, 1.0), QUARTERS, *read),
    )


def test_tokens_are_interpolated_bilinearly():
    local, grid, nothing = uniform(1, 4, 4, BASIS**2 + 3), grid_positions((7, 9), 1.0), torch.zeros(3, BASIS**2)
    colours = read_grid(local, *lines_of(grid, (4, 4), torch.zeros(9, 3), torch.zeros(7, 3)), nothing, torch.zeros(3))
    expected = torch.nn.functional.interpolate(local[..., BASIS**2 :].permute(0, 3, 1, 2), (7, 9), mode="bilinear")
    torch.testing.assert_close(colours, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (7, 4)])
@pytest.mark.parametrize("pixels", [(1, 1), (5, 9)])
def test_any_pixels_become_any_cells_and_back(model, cells, pixels):
    cell, pixel = grid_positions(cells, 1.5), grid_positions(pixels, 1.5, sigma=0.5)
    latent = model.encode(uniform(2, pixels[0] * pixels[1], 2), pixel, cell).tanh()
    colours = model.decode(model.context(latent, cell), pixel)
    assert latent.shape == (2, 3, *cells) and colours.shape == (2, pixels[0] * pixels[1], 2)
    assert latent.isfinite().all() and colours.isfinite().all()


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_encoding_a_grid_equals_encoding_its_points(model, sigma):
    grid, cells, colours = grid_positions((6, 5), 5 / 6, sigma=sigma), grid_positions((3, 2), 5 / 6), uniform(2, 30, 2)
    expected = model.encode(colours, grid, cells)
    for pixels in (as_points(grid), as_points(grid, 2)):
        torch.testing.assert_close(model.encode(colours, pixels, cells), expected, atol=1e-5, rtol=1e-4)


def test_encoding_does_not_depend_on_the_order_of_pixels(model):
    grid, cells, colours = grid_positions((6, 5), 1.0), grid_positions((3, 2), 1.0), uniform(2, 30, 2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    turned = model.encode(colours[:, order], as_points(grid, 2, order), cells)
    torch.testing.assert_close(turned, model.encode(colours, grid, cells), atol=1e-5, rtol=1e-4)


def test_a_subset_of_pixels_encodes(model):
    grid, cells = grid_positions((6, 5), 1.0), grid_positions((4, 4), 1.0)
    for count in (1, 7):
        latent = model.encode(uniform(2, count, 2), as_points(grid, 2, slice(count)), cells)
        assert latent.shape == (2, 3, 4, 4) and latent.isfinite().all()


def test_rows_of_a_batch_do_not_see_each_other(model):
    grid, cells, colours = grid_positions((6, 5), 1.0), grid_positions((3, 2), 1.0), uniform(3, 30, 2)
    latent = model.encode(colours, grid, cells)
    torch.testing.assert_close(model.encode(colours[1:2], grid, cells), latent[1:2], atol=1e-5, rtol=1e-4)
    decoded = model.decode(model.context(latent, cells), grid)
    alone = model.decode(model.context(latent[1:2], cells), grid)
    torch.testing.assert_close(alone, decoded[1:2], atol=1e-5, rtol=1e-4)


def test_a_decoded_point_depends_on_itself_only(model):
    cells, grid = grid_positions((3, 4), 4 / 3), grid_positions((6, 8), 4 / 3, sigma=0.5)
    context = model.context(uniform(2, 3, 3, 4), cells)
    whole = model.decode(context, grid)
    for order in (slice(10, 11), slice(0, 20), torch.tensor([47, 3, 3, 12])):
        part = model.decode(context, as_points(grid, None, order))
        torch.testing.assert_close(part, whole[:, order], atol=1e-5, rtol=1e-4)


def test_one_context_serves_every_size(model):
    cells = grid_positions((3, 4), 4 / 3)
    context, fresh = (model.context(uniform(2, 3, 3, 4), cells) for _ in range(2))
    for size in ((3, 5), (8, 8)):
        model.decode(context, grid_positions(size, 4 / 3))
    assert torch.equal(
        model.decode(context, grid_positions((4, 4), 1.0)), model.decode(fresh, grid_positions((4, 4), 1.0))
    )


def test_points_without_a_place_in_the_frame_skip_the_local_path():
    torch.manual_seed(0)
    model = CrossAttentionR2IR(TINY).eval().requires_grad_(False)
    grid, cells = grid_positions((4, 4), 1.0), grid_positions((2, 2), 1.0)
    context = model.context(uniform(1, 3, 2, 2), cells)
    unframed = model.decode(context, replace(grid, framed=False))
    assert not torch.allclose(unframed, model.decode(context, grid))
    changed = replace(context, local_BhwQ=context.local_BhwQ + 1)
    assert torch.equal(model.decode(changed, replace(grid, framed=False)), unframed)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_trained(name):
    torch.manual_seed(0)
    model = CrossAttentionR2IR(VARIANTS[name])
    grid, cells = grid_positions((5, 5), 1.0), grid_positions((2, 3), 1.0)
    latent = model.encode(uniform(2, 25, 2), grid, cells).tanh()
    model.decode(model.context(latent, cells), grid).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_published_size():
    config = CrossAttentionR2IRConfig(
        width=192,
        heads=6,
        latent_channels=64,
        encoder_blocks=4,
        decoder_blocks=4,
        cell_blocks=0,
        cell_mlp_ratio=4,
        pixel_mlp_ratio=4,
        attention="linear",
        local=False,
        octaves=(-6, 9),
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in CrossAttentionR2IR(config).parameters()) == pytest.approx(3.67e6, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"width": 0},
        {"heads": -1},
        {"cell_blocks": 3},
        {"cell_blocks": -1},
        {"octaves": (3, 2)},
        {"width": 97},
        {"attention": "flash"},
    ],
)
def test_a_bad_config_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} .*must be"):
        CrossAttentionR2IR(CrossAttentionR2IRConfig(**options))


@pytest.mark.parametrize("cells", [(1, 1), (3, 4), (2, 9)])
def test_the_direct_path_reads_points_as_it_reads_their_grid(cells):
    grid, local = grid_positions((6, 5), 5 / 6), uniform(2, *cells, 3, BASIS, BASIS)
    expected = decode_coefficients(local, grid, QUARTERS)
    assert expected.shape == (2, 30, 3)
    for points_of in (as_points(grid), as_points(grid, 2)):
        torch.testing.assert_close(decode_coefficients(local, points_of, QUARTERS), expected, atol=1e-5, rtol=1e-4)


def test_the_direct_path_is_linear_and_knows_how_large_a_cell_is():
    torch.manual_seed(0)
    path = LinearCodec(channels=2, latent_channels=3, basis=BASIS)
    torch.nn.init.normal_(path.gain_out[-1].weight)
    latent, square = uniform(1, 12, 3), grid_positions((3, 4), 4 / 3)
    origin = path.prepare(torch.zeros_like(latent), square)
    half, whole = (path.prepare(factor * latent, square) - origin for factor in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole)
    for other in (grid_positions((3, 4), 1.0), grid_positions((3, 4), 2.0)):
        assert not torch.allclose(path.prepare(latent, other), path.prepare(latent, square))
    sides = [torch.stack(cell_sides(grid_positions((4, 8), aspect))).tolist() for aspect in (0.5, 1.0, 2.0)]
    assert sides == [[0.125, 0.5], [0.125, 0.25], [0.25, 0.25]]
