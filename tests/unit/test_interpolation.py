"""Antialiased interpolation: equal to torch's where torch can do it, and a function of the pixel's place elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from r2id import interpolation
from r2id.interpolation import axis_weights, interpolate_tiles, resize, share_done, tile_boxes
from r2id.position import window_of

BACKGROUND = torch.tensor([-0.5, 0.0, 1.0])


def images(h: int, w: int) -> torch.Tensor:
    return torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1


def shown(image: torch.Tensor, size: tuple[int, int], *, aspect: float, fit: str, budget: int = 10**6, **options):
    window, result = window_of(size, aspect=aspect, fit=fit, **options), torch.full((2, 3, *size), torch.nan)
    tiles = interpolate_tiles(image, window, width=size[1], background_C=BACKGROUND, boxes=tile_boxes(size, budget))
    for (left, top, right, bottom), tile in tiles:
        result[:, :, top:bottom, left:right] = tile
    return result


@pytest.mark.parametrize("size", [(8, 12), (32, 48), (31, 17), (5, 3), (1, 1), (2, 60)])
def test_a_stretched_image_is_what_torch_makes(size):
    image = images(8, 12)
    expected = F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(shown(image, size, aspect=1.7, fit="stretch"), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(resize(image, size), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (40, 40), (3, 3)])
def test_contain_puts_the_square_image_between_margins_of_background(size):
    image, (height, width) = images(8, 8), size
    square = shown(image, size, aspect=1.0, fit="stretch")
    wide = shown(image, (height, width + 6), aspect=1.0, fit="contain")
    torch.testing.assert_close(wide[..., 3:-3], square, atol=1e-5, rtol=0)
    for margin in (wide[..., :3], wide[..., -3:]):
        torch.testing.assert_close(margin, BACKGROUND.view(-1, 1, 1).expand_as(margin), atol=1e-6, rtol=0)


def test_a_pixel_across_the_edge_of_the_frame_is_mixed():
    white = torch.ones(2, 3, 4, 4)
    wide = shown(white, (4, 7), aspect=1.0, fit="contain")  # margins of one pixel and a half
    half = (1 + BACKGROUND.view(-1, 1).expand(3, 4)) / 2
    torch.testing.assert_close(wide[0, :, :, 1], half)
    torch.testing.assert_close(wide[0, :, :, 5], half)
    assert (wide[..., 2:5] == 1).all()


def test_cover_cuts_and_beyond_is_never_seen():
    image = images(8, 8)
    cut = shown(image, (8, 4), aspect=1.0, fit="cover")
    torch.testing.assert_close(cut, image[..., 2:6], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
def test_a_image_of_one_colour_stays_it(fit):
    image = BACKGROUND.view(-1, 1, 1).expand(2, 3, 5, 7)
    for size in ((5, 7), (3, 20), (40, 9)):
        expected = BACKGROUND.view(-1, 1, 1).expand(2, 3, *size)
        torch.testing.assert_close(shown(image, size, aspect=1.4, fit=fit), expected, atol=1e-6, rtol=0)


def test_weights_sum_to_one_and_nothing_beyond_the_frame_is_covered():
    weights, coverage = axis_weights(6, range(10), -10.0, 1 / 4)  # a frame of four pixels, six before it
    assert torch.allclose(weights.sum(dim=1), torch.ones(10))
    assert coverage.tolist() == [0] * 8 + [1, 1]


@pytest.mark.parametrize("pixels", [1, 5, 16, 1000])
def test_boxes_cover_once_in_reading_order(pixels, monkeypatch):
    monkeypatch.setattr(interpolation, "COLUMNS", 8)
    covered, boxes = torch.zeros(7, 12), list(tile_boxes((7, 12), pixels))
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
        assert (bottom - top) * (right - left) <= pixels
        assert share_done((left, top, right, bottom), (7, 12)) == pytest.approx(covered.mean().item())
    assert (covered == 1).all() and boxes == sorted(boxes, key=lambda box: (box[1], box[0]))


def test_boxes_are_about_as_large_as_one_another(monkeypatch):
    monkeypatch.setattr(interpolation, "COLUMNS", 8)
    assert [box[0] for box in tile_boxes((1, 20), 8)] == [0, 7, 14]
    assert [box[1] for box in tile_boxes((10, 4), 16)] == [0, 4, 8]
    assert [box[1] for box in tile_boxes((10, 4), 36)] == [0, 5]
