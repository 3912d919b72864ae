"""R2IR: what is decoded is one function of the plane, and the fast path computes it."""

import pytest
import torch

from r2id.fast_decode import GridDecoder
from r2id.local_basis import LocalBasis
from r2id.position import Positions, window_of
from r2id.resampler import R2IR, R2IRConfig

SIZE = (17, 23)


def model(**settings) -> R2IR:
    """A narrow one with weights at random, that make images of much contrast."""
    torch.manual_seed(0)
    small = {"latent_channels": 3, "width": 16, "heads": 2, "encoder_harmonics": 3, "decoder_harmonics": 2}
    made = R2IR(R2IRConfig(**small | {"features": 5, "pixel_width": 8} | settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval().requires_grad_(False)


def latents(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("rings", [0, 2])
@pytest.mark.parametrize("cells", [(1, 1), (1, 3), (4, 6)])
@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
def test_the_grid_decoder_is_the_definition(rings, cells, fit):
    r2ir = model(border_rings=rings, channels=3)
    context = r2ir.prepare(latents(*cells), 1.5)
    window = window_of(SIZE, aspect=1.5, fit=fit)
    plain_BNC = r2ir.decode(context, window.positions(range(SIZE[0]), range(SIZE[1])))
    fast_BCHW = r2ir.grid_decoder(context, window, SIZE)(range(SIZE[0]), range(SIZE[1]))
    torch.testing.assert_close(fast_BCHW, plain_BNC.transpose(1, 2).unflatten(2, SIZE), atol=2e-5, rtol=1e-5)
    assert fast_BCHW.std() > 0.1


def test_a_tile_equals_its_part_of_the_whole():
    r2ir = model()
    decode = r2ir.grid_decoder(r2ir.prepare(latents(5, 4), 0.8), window_of(SIZE, aspect=0.8, fit="contain"), SIZE)
    whole = decode(range(SIZE[0]), range(SIZE[1]))
    for rows, columns in ((range(3, 9), range(5, 20)), (range(16, 17), range(1)), (range(17), range(11, 12))):
        part = whole[:, :, rows.start : rows.stop, columns.start : columns.stop]
        torch.testing.assert_close(decode(rows, columns), part, atol=1e-5, rtol=0)


def test_a_region_of_a_4096th_is_smooth_and_equals_single_points():
    """Neighbouring pixels of such a zoom are closer than float32 coordinates can tell apart."""
    r2ir, region = model(), (0.3, 0.4, 0.3 + 2**-12, 0.4 + 2**-12)
    context = r2ir.prepare(latents(8, 8), 1.0)
    window = window_of((64, 64), aspect=1.0, fit="contain", region=region)
    zoom = r2ir.grid_decoder(context, window, (64, 64))(range(64), range(64))
    steps = zoom.diff(dim=-1)
    assert (steps[:, :, :, 1:] - steps[:, :, :, :-1]).abs().max() < 1e-5
    middle = Positions(torch.tensor([[0.3 + 2**-13 - 0.5, 0.4 + 2**-13 - 0.5]]), torch.zeros(1, 2))
    point_BC = r2ir.decode(context, middle)[:, 0]
    torch.testing.assert_close(zoom[:, :, 31:33, 31:33].mean(dim=(2, 3)), point_BC, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rings", [0, 2])
def test_there_are_no_seams(rings):
    """Between any two cells, and between cells and their border, the decoded function goes on."""
    r2ir = model(border_rings=rings)
    context = r2ir.prepare(latents(3, 3), 1.0)
    line = torch.linspace(-0.9, 0.9, 20_001, dtype=torch.float64)
    rows, columns = (r2ir.axis(values, context, axis) for axis, values in ((1, line[10_000:10_001]), (0, line)))
    values = GridDecoder(r2ir, context)(rows, columns)[:, 0, 0]
    assert values.diff(dim=1).abs().max() < 0.01 < values.std()


def test_a_row_of_a_batch_equals_it_alone_whatever_the_other_frames_are():
    r2ir = model()
    together = r2ir.prepare(latents(3, 5), torch.tensor([1.0, 2.0])).coefficient_BhwFFD
    for row, aspect in enumerate((1.0, 2.0)):
        alone = r2ir.prepare(latents(3, 5)[row : row + 1], aspect).coefficient_BhwFFD
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_border_cells_do_not_depend_on_the_latent():
    r2ir = model()
    context = r2ir.prepare(latents(3, 4), 4 / 3)
    border = context.token_BhwD.clone()
    border[:, 2:-2, 2:-2] = r2ir.border_token
    assert context.token_BhwD.shape[1:3] == (7, 8) and torch.equal(border, r2ir.border_token.expand_as(border))


def test_coefficients_of_a_constant_image_are_its_colour():
    r2ir = model(channels=3)
    colour_C = torch.tensor([0.2, -0.5, 0.9])
    coefficient_BMF = r2ir.coefficients(colour_C.view(1, 3, 1, 1).expand(1, 3, 16, 24), (4, 6))
    torch.testing.assert_close(coefficient_BMF[0, :, :3], colour_C.expand(24, 3))


def test_latents_have_the_cells_that_are_asked_for_and_lie_within_one():
    image = torch.rand(2, 1, 16, 24) * 2 - 1
    for size in ((4, 6), (1, 1), (7, 2)):
        latent = model().encode_image(image, size)
        assert latent.shape == (2, 3, *size) and latent.abs().max() <= 1


def test_gradients_reach_every_parameter():
    r2ir = model().requires_grad_(True)
    latent = r2ir.encode_image(torch.rand(2, 1, 16, 16) * 2 - 1, (3, 3))
    r2ir.decode_image(latent, size=(40, 60), fit="contain").square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in r2ir.parameters())


def test_bfloat16_is_for_the_products_of_a_pixel_alone():
    r2ir = model()
    context = r2ir.prepare(latents(4, 4), 1.0)
    window = window_of((64, 64), aspect=1.0, fit="contain")
    exact, rough = (
        r2ir.grid_decoder(context, window, (64, 64), dtype)(range(64), range(64)) for dtype in (None, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("cells, rings", [(1, 0), (4, 0), (1, 2), (4, 2)])
def test_the_basis_is_a_partition_of_unity_that_is_dense_or_not(cells, rings):
    basis = LocalBasis(3, 0.5)
    values = torch.linspace(-0.9, 0.9, 101, dtype=torch.float64)
    first, two = basis.evaluate(values, cells, rings)
    dense = basis.dense(values, cells, rings)
    assert dense.shape == (101, cells + 2 * rings, basis.size)
    torch.testing.assert_close(dense[..., 0].sum(dim=-1), torch.ones(101))
    torch.testing.assert_close(dense.sum(dim=1), two.sum(dim=1), atol=1e-6, rtol=0) if cells + 2 * rings > 1 else None
    assert first.min() >= 0 and first.max() <= max(0, cells + 2 * rings - 2)


def test_a_configuration_of_too_many_features_names_the_limit():
    with pytest.raises(ValueError, match="features 29: must be a whole number, 1…28"):
        R2IRConfig(features=29)
