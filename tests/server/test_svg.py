"""Outlines as SVG."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

from r2id import Latent
from r2id.demo.svg import LEVEL, TOLERANCE, UNITS, outline, straightened, svg


@pytest.fixture(scope="module")
def latent(tiny):
    return tiny.diffuse(["3", "7"], latent_size=(4, 3), aspect=0.75, seed=3)


class Disc:
    """A pipeline whose every image is a smooth disc of this radius about the frame's centre, in heights."""

    class config:
        background = (0.0,)

    def __init__(self, radius: float, background: float = 0.0):
        self.radius, self.config.background = radius, (background,)

    def resample(self, latent, *, size, fit):
        y_H, x_W = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
        distance_HW = torch.hypot(y_H[:, None], x_W * latent.aspect)
        value_HW = (LEVEL + 20 * (self.radius - distance_HW)).clamp(0, 1)
        return (value_HW if not self.config.background[0] else 1 - value_HW)[None, None]


def rings_of(text: str) -> list[list[np.ndarray]]:
    """The closed polygons of every path."""
    paths = []
    for path in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}path"):
        assert path.get("fill-rule") == "evenodd"
        rings = re.findall(r"M(\d+) (\d+)l([-\d ]+)z", path.get("d"))
        assert "".join("M{} {}l{}z".format(*ring) for ring in rings) == path.get("d")
        paths.append([np.cumsum(np.array([x, y, *steps.split()], int).reshape(-1, 2), axis=0) for x, y, steps in rings])
    return paths


def filled(rings: list[np.ndarray], size: tuple[int, int], scale: float) -> np.ndarray:
    """The inside of polygons by the even-odd rule, as bool (H, W)."""
    image = Image.new("1", size)
    for ring in rings:
        ImageDraw.Draw(one := Image.new("1", size)).polygon([tuple(p * scale - 0.5) for p in ring], fill=1)
        image = ImageChops.logical_xor(image, one)
    return np.asarray(image)


def test_the_filled_paths_are_what_the_decoded_image_has_above_one_half(tiny, latent):
    text = svg(tiny, latent, title="3 < 7")
    root, paths = ElementTree.fromstring(text), rings_of(text)
    assert root.get("viewBox") == f"0 0 {2 * round(0.75 * UNITS)} {UNITS}" and len(paths) == 2
    assert root.find("{*}title").text == "3 < 7"
    for i, rings in enumerate(paths):
        values_HW = tiny.resample(latent[i], size=(1024, 768), fit="stretch")[0, 0].numpy()
        shifted = [ring - (round(0.75 * UNITS) * i, 0) for ring in rings]
        inside = filled(shifted, (768, 1024), 1024 / UNITS)
        assert 0.02 < inside.mean() < 0.98
        assert (inside != (values_HW > LEVEL)).mean() < 0.01


def test_an_outline_lies_where_the_image_crosses_one_half():
    row = Latent(torch.zeros(1, 3, 4, 4), 0.8)
    for background in (0.0, 1.0):
        (ring,) = outline(Disc(0.3, background), row)
        assert np.abs(np.hypot(*(ring - (0.4, 0.5)).T) - 0.3).max() < 0.5 / 4096
        (text,) = rings_of(svg(Disc(0.3, background), row))[0]
        assert len(text) < len(ring) / 4
        middles = (text + np.roll(text, 1, axis=0)) / 2  # where a straight edge is farthest from the arc
        for points in (text, middles):
            assert np.abs(np.hypot(*(points / UNITS - (0.4, 0.5)).T) - 0.3).max() < 1 / 4096


def test_a_shape_beyond_the_frame_ends_at_its_edge():
    (ring,) = outline(Disc(9.0), Latent(torch.zeros(1, 3, 4, 4), 2.0), lattice=16)
    np.testing.assert_allclose([ring.min(0), ring.max(0)], [[0, 0], [1, 0.5]], atol=1e-6)


def test_straightening_keeps_what_it_leaves_out_near():
    angle = np.linspace(0, 2 * np.pi, 2001)
    ring = 0.3 * np.stack((np.cos(angle), np.sin(angle)), 1)
    fewer = straightened(ring)
    assert len(fewer) < len(ring) / 6 and np.allclose(fewer[0], fewer[-1])
    assert np.hypot(*((fewer[1:] + fewer[:-1]) / 2).T).min() > 0.3 - 1.01 * TOLERANCE


def test_what_cannot_be_drawn_is_refused_in_one_line(tiny, latent, monkeypatch):
    with pytest.raises(ValueError, match="latent of 17 rows: an SVG holds 1 to 16"):
        svg(tiny, Latent(torch.zeros(17, 3, 4, 4), 1.0))
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(ValueError, match="pip install contourpy"):
        svg(tiny, latent)
