"""Illustrations: where things are drawn, and that they are of the latent that they say they are of."""

import io
import itertools
import math
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from r2id.demo.illustrations import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    at_sizes,
    channel_maps,
    coordinate_systems,
    decode_view,
    draw_cells,
    enlarge_bicubic,
    equal_numbers_size,
    loss_against_t,
    strip,
    trajectory,
    zip_of,
)
from r2id.demo.request import ViewRequest
from r2id.image import to_pil
from r2id.latent import Latent
from r2id.position import FULL, window_of

VIEWS = [
    ViewRequest(side=120),
    ViewRequest(side=120, ratio="16:9"),
    ViewRequest(side=120, ratio="2:3", fit="cover", zoom=3.0, x=0.9, y=0.2),
    ViewRequest(side=90, ratio="2:1", fit="stretch"),
    ViewRequest(side=120, ratio="1:2", zoom=5.0, x=0.3, y=0.6),
    ViewRequest(side=20, ratio="4:3"),
]


class Waves:
    """A pipeline whose images are smooth waves, known at every point of the frame's plane; it notes what is asked."""

    config = SimpleNamespace(channels=1)

    def __init__(self):
        self.asked = []

    def resample(self, latent, *, size, fit, region=FULL):
        self.asked.append((size, fit, region))
        window = window_of(size, aspect=latent.aspect, fit=fit, region=region)
        x_N, y_N = window.positions(range(size[0]), range(size[1])).absolute.T
        wave_N = 0.5 + 0.2 * (9 * x_N + 1).sin() + 0.2 * (7 * y_N).cos()
        return wave_N.view(1, 1, *size) * latent.tensor.mean((1, 2, 3)).view(-1, 1, 1, 1)


def latent(aspect: float = 1.0, rows: int = 1) -> Latent:
    return Latent(torch.arange(rows, 0, -1.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / rows, aspect)


def mask(image: Image.Image, colour: str) -> np.ndarray:
    return (np.asarray(image) == ImageColor.getrgb(colour)).all(-1)


def outline(image: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the long straight lines of this colour; right and bottom are past them."""
    ends = []
    for count in (mask(image, colour).sum(axis) for axis in (0, 1)):
        line = np.flatnonzero(count > 0.3 * count.max())
        ends.append((line[0], line[-1] + 1))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def plots(view: ViewRequest, aspect: float) -> list[Image.Image]:
    """The coordinate systems without title and legend."""
    return [image.crop((0, 60, 640, image.height - 60)) for image in coordinate_systems(view, aspect)]


def runs(line: np.ndarray) -> int:
    return int((np.diff(line.astype(int), prepend=0) == 1).sum())


# the latent


@pytest.mark.parametrize(
    "size, aspect", [((8, 8), 1.0), ((9, 6), 1.0), ((5, 16), 16 / 9), ((64, 64), 0.8), ((1, 1), 4)]
)
def test_cells_fill_their_frame(size, aspect):
    image = draw_cells(size, aspect)
    left, top, right, bottom = outline(image, ORANGE)
    assert image.size == (480, 320) and (left + right, top + bottom) == pytest.approx(image.size, abs=1)
    cells = mask(image, BLUE)
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    assert len(range(columns[0], columns[-1])) / len(range(rows[0], rows[-1])) == pytest.approx(aspect, rel=0.02)
    assert (runs(cells[rows[0]]), runs(cells[:, columns[0]])) == size[::-1]


def test_cells_too_fine_to_draw_are_left_out():
    assert runs(mask(draw_cells((4096, 1), 1 / 64), BLUE)[160]) == 1


def test_channels_are_maps_of_their_cells():
    tensor = torch.zeros(2, 3, 2, 4)
    tensor[0, 1, 0, 3], tensor[0, 2, 1, 0], tensor[1] = 0.5, -0.5, 1.0
    image = channel_maps(Latent(tensor, 2.0), side=160, columns=3)
    ends = np.asarray(image.crop((0, 0, image.width, image.height - 80)))  # without the bar
    places = {}
    for name, colour in (("high", (242, 115, 0)), ("low", (13, 76, 217))):
        y, x = np.nonzero((np.abs(ends.astype(int) - colour) <= 1).all(-1))
        assert (np.ptp(x) + 1, np.ptp(y) + 1) == (40, 40) and len(x) == 1600  # a cell, and nothing else
        places[name] = (x.min(), y.min())
    (high_x, high_y), (low_x, low_y) = places["high"], places["low"]
    gap = low_x - high_x - 40
    assert low_y - high_y == 40 and 0 < gap < 40  # the last cell of one map, the first of the next
    white = (ends == 255).all(-1)
    assert white.sum() == 3 * 2 * 4 * 1600 - 2 * 1600


def test_every_channel_has_a_map_of_its_frame():
    maps = channel_maps(Latent(torch.full((1, 24, 6, 6), 0.3), 1.5), side=90, columns=6)
    orange = mask(maps.crop((0, 0, maps.width, maps.height - 80)), "#f27300")
    assert orange.sum() == 24 * 90 * 60


# coordinates


@pytest.mark.parametrize(
    "view, aspect, frame",  # frame: its width and height in widths and heights of the image
    [
        (ViewRequest(), 1.0, (1, 1)),
        (ViewRequest(ratio="16:9"), 1.0, (9 / 16, 1)),
        (ViewRequest(ratio="16:9", fit="cover"), 1.0, (1, 16 / 9)),
        (ViewRequest(ratio="2:1", fit="stretch"), 0.75, (1, 1)),
        (ViewRequest(ratio="1:2"), 16 / 9, (1, 9 / 32)),
    ],
)
def test_coordinates_lie_on_the_frame(view, aspect, frame):
    for image in plots(view, aspect):
        left, top, right, bottom = outline(image, ORANGE)
        whole = list(outline(image, INK))
        for axis in (0, 1):
            if frame[axis] == 1:  # the two outlines coincide, and the frame's is on top
                whole[axis::2] = (left, top, right, bottom)[axis::2]
        size = whole[2] - whole[0], whole[3] - whole[1]
        assert size[0] / size[1] == pytest.approx(view.size[1] / view.size[0], rel=0.03)
        assert (right - left) / size[0] == pytest.approx(frame[0], rel=0.03)
        assert (bottom - top) / size[1] == pytest.approx(frame[1], rel=0.03)
        assert left + right == pytest.approx(whole[0] + whole[2], abs=4)


def test_relative_coordinates_count_in_long_sides():
    def lines(image):  # of equal x, beside x = 0
        return np.flatnonzero(mask(image, MUTED).sum(0) > 0.7 * (bottom - top))

    for image, scale in zip(plots(ViewRequest(), 0.6), (1.0, 0.6), strict=True):
        left, top, right, bottom = outline(image, ORANGE)
        expected = (left + right) / 2 + 0.25 * (right - left) / scale
        assert min(abs(lines(image) - expected)) <= 2


def test_what_lies_beyond_the_frame_is_darker():
    for image in plots(ViewRequest(ratio="16:9"), 1.0):
        left, top, right, bottom = outline(image, ORANGE)
        y = (3 * top + bottom) // 4 + 8
        inner, outer = (sum(image.getpixel((x, y))) for x in (right - 12, right + 8))
        assert outer < 0.5 * inner


def test_the_zoomed_part_is_marked():
    view = ViewRequest(ratio="3:2", zoom=4, x=0.3, y=0.6)
    for image in plots(view, 1.0):
        left, top, right, bottom = outline(image, BLUE)
        whole = outline(image, INK)
        width = whole[2] - whole[0]
        assert (right - left) / width == pytest.approx(0.25, abs=0.02)
        assert ((left + right) / 2 - whole[0]) / width == pytest.approx(0.3, abs=0.02)
        assert not mask(coordinate_systems(replace(view, zoom=1.0), 1.0)[0], BLUE).any()


@pytest.mark.parametrize("aspect", [1 / 64, 64.0])
@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
def test_extreme_frames_are_drawn(aspect, fit):
    for ratio in ("4:1", "1:4"):
        assert all(image.width == 640 for image in coordinate_systems(ViewRequest(ratio=ratio, fit=fit), aspect))


# the report


def report_of(t=(), conditional=(), null=()):
    names = ("t", "conditional", "null")
    rows = [
        {n: v for n, v in zip(names, row, strict=True) if v is not None}
        for row in itertools.zip_longest(t, conditional, null)
    ]
    return {"loss": [{"rows": rows}]}


def test_loss_is_drawn_against_t():
    def heights(figures, colour):
        drawn = mask(loss_against_t(report_of(**figures)), colour)[60:]  # below the legend
        return [np.flatnonzero(drawn[:, x]).mean() for x in (200, 900)]

    figures = {"t": [1, 0.0, 0.5], "conditional": [0.4, 0.0, 0.2], "null": [0.8, 0.4, 0.6]}  # in any order
    low, high = heights(figures, BLUE), heights(figures, ORANGE)
    assert low[0] - low[1] == pytest.approx(high[0] - high[1], abs=1) and low[0] > low[1] + 50  # both rise, alike
    rise = heights(figures | {"conditional": [0.8, 0.0, 0.4]}, BLUE)
    assert rise[0] - rise[1] == pytest.approx(2 * (low[0] - low[1]), abs=3)


@pytest.mark.parametrize("report", [None, {}, {"sheets": []}])
def test_no_loss_no_image(report):
    assert loss_against_t(report) is None


@pytest.mark.parametrize(
    "figures",
    [
        {"t": [0, 1]},
        {"t": [0, 1], "conditional": [1, 2], "null": [1]},
        {"t": [0, 1], "conditional": [1, 2], "null": [1, float("nan")]},
        {"t": [0, 2], "conditional": [1, 2], "null": [1, 2]},
        {"t": [0, 1], "conditional": ["a", 2], "null": [1, 2]},
        {"t": [], "conditional": [], "null": []},
    ],
)
def test_figures_that_make_no_curve_are_refused(figures):
    with pytest.raises(ValueError, match="^loss: .*number$"):
        loss_against_t(report_of(**figures))


# images beside each other


def test_a_strip_shows_all_equally_large():
    board = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    fine = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))
    image = np.asarray(strip([("2 x 2", board), ("512 x 512", fine)], side=64, columns=2).convert("L"))
    left, right = (image[12 : 12 + 64, x : x + 64] for x in (12, 12 + 64 + 12))
    assert np.array_equal(left, np.asarray(board).repeat(32, 0).repeat(32, 1))  # hard pixels
    assert np.abs(right.astype(int) - 127.5).max() <= 1  # averaged


def test_a_strip_of_nothing_is_refused():
    with pytest.raises(ValueError, match="^0 images"):
        strip([])


@pytest.mark.parametrize("count, drawn", [(1, [0]), (4, [0, 1, 2, 3]), (39, list(range(0, 39, 2)))])
def test_a_trajectory_is_thinned_evenly(count, drawn):
    image = np.asarray(trajectory([Image.new("RGB", (8, 8), (200, 0, 100 + i)) for i in range(count)]))
    blues = image[(image[..., 0] == 200) & (image[..., 1] == 0)][:, 2].tolist()
    assert list(dict.fromkeys(blues)) and sorted(set(blues)) == [100 + i for i in drawn]


def test_one_latent_at_many_sizes(tiny):
    drawn = tiny.diffuse(["3", "4"], seed=0)
    view = ViewRequest(ratio="3:2", fit="cover", zoom=2.0)
    images = dict(at_sizes(tiny, drawn[1], view, (6, 12, 30)))
    assert list(images) == ["6 x 4", "12 x 8", "30 x 20"]
    exact = tiny.resample(drawn, size=(8, 12), fit="cover", region=view.region)
    assert images["12 x 8"] == to_pil(exact[1])


# bicubic


@pytest.mark.parametrize("aspect", [1.0, 0.6, 16 / 9])
@pytest.mark.parametrize("view", VIEWS)
def test_bicubic_lies_where_the_decoded_image_does(view, aspect):
    # A training pixel further is up to 0.06 of the range: 3 of 255 are a fifth of one.
    many = Latent(torch.ones(1, 256, 4, 4), aspect)  # as many numbers as 64 x 64 pixels
    images = [np.asarray(make(Waves(), many, view), int) for make in (enlarge_bicubic, decode_view)]
    assert images[0].shape == images[1].shape == view.size
    assert np.abs(images[0] - images[1])[1:-1, 1:-1].max() <= 3 and np.ptp(images[1]) > 5


def test_bicubic_knows_only_as_many_pixels_as_the_latent_has_numbers():
    pipe = Waves()
    enlarge_bicubic(pipe, Latent(torch.ones(1, 64, 4, 4), 1.0), ViewRequest(side=400, ratio="16:9", zoom=3))
    assert pipe.asked == [((32, 57), "contain", FULL)]
    assert equal_numbers_size(Latent(torch.ones(1, 6, 4, 8), 2.0), 3) == (math.sqrt(32), math.sqrt(128))


def test_only_the_first_row_is_looked_at():
    for make in (enlarge_bicubic, decode_view):
        assert make(Waves(), latent(rows=2), VIEWS[0]) == make(Waves(), latent(rows=1), VIEWS[0])


def test_bicubic_of_a_real_model_is_near_it(tiny):
    drawn = tiny.diffuse(["3"], seed=0)
    view = ViewRequest(side=7)  # of 48 numbers
    assert enlarge_bicubic(tiny, drawn, view) == decode_view(tiny, drawn, view)


# files


def test_a_zip_holds_its_files():
    files = [("a.png", b"1"), ("b.png", b"")]
    with zipfile.ZipFile(io.BytesIO(zip_of(files))) as archive:
        assert [(name, archive.read(name)) for name in archive.namelist()] == files
    with pytest.raises(ValueError, match="^'a.png': occurs 2 times"):
        zip_of(files + files[:1])
