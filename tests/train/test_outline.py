"""Against the outline: known shapes, decoded perfectly, moved, blurred or enlarged, have their known figures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from r2id.latent import Latent
from train.evaluation.metrics import bring_to
from train.evaluation.outline import against_outline, edges_against_outline, numbers_side

ENCODER, SIZES = 16, (64, 128)  # pixels
CELLS, CHANNELS = (4, 4), 3  # 48 numbers, as an image of 7 × 7 holds


class Shapes:
    """0: a bar, 1: a disc, 2: a slanted bar; drawn at `master` pixels with edges one pixel wide, as fonts are."""

    def __init__(self, shift: float = 0.0):
        self.shift = shift  # to the right, in pixels of ENCODER

    def distance(self, index: int, size: int) -> torch.Tensor:
        """To the outline, positive inside, (size, size) in fractions of the side."""
        at = (torch.arange(size) + 0.5) / size - 0.5
        x, y = at[None, :] - self.shift / ENCODER, at[:, None]
        if index == 1:
            return 0.3 - (x**2 + y**2).sqrt()
        if index == 2:
            turn = torch.tensor(0.3)
            x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
        return torch.minimum(0.14 - x.abs(), 0.36 - y.abs())

    def images(self, indices, size, *, master):
        drawn = torch.stack([self.distance(index, master) for index in indices])[:, None]
        return (F.avg_pool2d((drawn * master + 0.5).clamp(0, 1), master // size) * 255).round().byte()


class Codec:
    """Latents hold nothing but which shape it was; decoded from Shapes, through `change`."""

    def __init__(self, shapes=None, change=lambda image_BCHW: image_BCHW, size=None):
        self.shapes, self.change, self.size = shapes or Shapes(), change, size

    def encode(self, image, *, latent_size):
        assert image.shape[1:] == (1, ENCODER, ENCODER) and 0 <= image.min() <= image.max() <= 1
        known = Shapes().images([0, 1, 2], ENCODER, master=128).float() / 255
        self.found = torch.cdist(image.flatten(1), known.flatten(1)).argmin(dim=1).tolist()
        return Latent(torch.zeros(len(image), CHANNELS, *latent_size), 1.0)

    def resample(self, latent, *, size):
        side = self.size or size[0]
        image_BCHW = self.shapes.images(self.found, side, master=max(256, side)).float() / 255
        return self.change(image_BCHW if side == size[0] else bring_to(image_BCHW, size[0]))


def rows(codec: Codec, indices=(0, 1, 2)) -> list[dict]:
    options = {"latent_size": CELLS, "encoder_size": ENCODER, "sizes": SIZES, "batch": 2}
    return against_outline(codec, Shapes(), indices, **options)


def edges(codec: Codec, indices=(0, 1, 2)) -> dict:
    return edges_against_outline(codec, Shapes(), indices, latent_size=CELLS, encoder_size=ENCODER, batch=2)


def test_a_perfect_decoder_beats_every_enlargement_and_finer_truth_is_harder_to_reach():
    found = rows(Codec())
    assert [row["size"] for row in found] == list(SIZES)
    for row in found:
        assert row["decoded"] > 40
        assert 10 < row["as_many_numbers"] < row["encoded_image"] - 2 < row["decoded"] - 10
        assert row["over_encoded_image"] == pytest.approx(row["decoded"] - row["encoded_image"])
        assert row["over_as_many_numbers"] == pytest.approx(row["decoded"] - row["as_many_numbers"])
    assert found[1]["encoded_image"] < found[0]["encoded_image"]


def test_enlarging_gains_nothing_over_the_enlargement():
    for row in rows(Codec(size=ENCODER)):
        assert row["over_encoded_image"] == pytest.approx(0, abs=0.05)
    for row in rows(Codec(size=7), indices=[0, 0]):  # drawn at 256 and averaged unevenly
        assert row["over_as_many_numbers"] == pytest.approx(0, abs=0.5)


def test_as_many_numbers_are_counted_with_channels():
    assert numbers_side(Latent(torch.zeros(2, 3, 4, 4), 1.0), 1) == 7
    assert numbers_side(Latent(torch.zeros(2, 32, 8, 8), 1.0), 3) == 26


def test_a_perfect_contour_has_no_distance_and_its_edges_no_width():
    found = edges(Codec())
    assert found["contour"] < 0.02
    assert found["edge_width"] < 0.2 and found["edges"] > 50


def test_the_distance_is_that_of_a_moved_disc():
    found = edges(Codec(Shapes(shift=0.5)), indices=[1])
    assert found["contour"] == pytest.approx(0.5 * 2 / math.pi, rel=0.1)
    assert found["edges"] == 0 and math.isnan(found["edge_width"])  # nothing of a disc this small is straight


def test_specks_and_missing_strokes_are_distance_too():
    def speck(image_BCHW):
        image_BCHW = image_BCHW.clone()
        image_BCHW[:, :, :8, :8] = 1
        return image_BCHW

    assert edges(Codec(change=speck), indices=[0])["contour"] > 0.3
    assert edges(Codec(change=torch.zeros_like), indices=[0])["contour"] == pytest.approx(0.72 * ENCODER, rel=0.05)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("blur", [0.2, 0.4])
def test_the_width_is_that_of_a_blurred_edge_wherever_it_is(index, blur):
    """A Gaussian's: 2 × 1.2816 standard deviations, here of `blur` encoded pixels."""
    at = torch.arange(-24, 25) / 8
    kernel = torch.exp(-(at**2) / (2 * blur**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)

    def blurred(image_BCHW):
        return F.conv2d(F.conv2d(image_BCHW, kernel, padding=(0, 24)), kernel.transpose(2, 3), padding=(24, 0))

    for shift in (0.0, 0.3):
        found = edges(Codec(Shapes(shift), blurred), indices=[index])
        assert found["edges"] > 20
        assert found["edge_width"] == pytest.approx(2 * 1.2816 * blur, rel=0.1)


def test_an_edge_that_never_rises_is_as_wide_as_is_looked():
    assert edges(Codec(change=torch.zeros_like), indices=[0])["edge_width"] == pytest.approx(3)
