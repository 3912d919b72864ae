"""Animations: what their frames decode, and the GIF files made of them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageSequence
from test_illustrations import Waves, latent

from r2id.demo.animate import SWEEPS, gif, sweep
from r2id.demo.request import ViewRequest
from r2id.position import FULL


@pytest.mark.parametrize("kind", SWEEPS)
def test_a_sweep_goes_there_and_back_on_one_canvas(kind):
    frames = list(sweep(Waves(), latent(), kind, ViewRequest(ratio="3:2"), frames=12, side=64))
    assert len(frames) == 12 and {frame.size for frame in frames} == {(64, 104)}
    assert all(frames[i] == frames[-i] for i in range(1, 12)) and frames[0] != frames[6]


def test_a_sweep_of_sizes_decodes_each():
    pipe, view = Waves(), ViewRequest(ratio="2:1", fit="cover", zoom=2)
    list(sweep(pipe, latent(), "size", view, frames=20, side=64))
    sizes, fits, regions = zip(*pipe.asked, strict=True)
    assert sizes[0] == (4, 8) and sizes[-1] == (256, 512) and sorted(sizes) == list(sizes) and len(sizes) == 11
    assert set(fits) == {"cover"} and set(regions) == {view.region}


def test_a_sweep_of_ratios_keeps_the_middle_still():
    pipe = Waves()
    frames = list(sweep(pipe, latent(), "ratio", ViewRequest(zoom=3), frames=12, side=64))
    shapes = [width / height for (height, width), *_ in pipe.asked]
    assert (shapes[0], shapes[-1]) == pytest.approx((9 / 16, 16 / 9)) and shapes == sorted(shapes)
    assert {region for *_, region in pipe.asked} == {FULL}
    assert all(frame.crop((14, 14, 50, 50)) == frames[0].crop((14, 14, 50, 50)) for frame in frames)


@pytest.mark.parametrize("zoom, reached", [(1.0, 8.0), (20.0, 20.0)])
def test_a_sweep_of_zooms_ends_at_the_view(zoom, reached):
    pipe, view = Waves(), ViewRequest(x=0.6, y=0.4, zoom=zoom)
    list(sweep(pipe, latent(), "zoom", view, frames=12, side=64))
    regions = [region for *_, region in pipe.asked]
    assert regions[0] == FULL and regions[-1] == pytest.approx(replace(view, zoom=reached).region)
    widths = [right - left for left, _, right, _ in regions]
    assert widths == sorted(widths, reverse=True) and len(widths) == 7


def test_a_sweep_decodes_as_it_is_asked():
    pipe = Waves()
    frames = sweep(pipe, latent(), "zoom", ViewRequest(), frames=12, side=64)
    assert not pipe.asked
    next(frames)
    assert len(pipe.asked) == 1


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (dict(kind="colour"), "^sweep 'colour': must be one of size, ratio, zoom$"),
        (dict(frames=2), "^frames 2: .*4…240$"),
        (dict(frames=7), "^frames 7: must be even"),
        (dict(side=5000), "^side 5000: .*64…1024$"),
    ],
)
def test_a_wrong_sweep_is_refused_at_once(wrong, reason):
    asked = dict(kind="zoom", frames=8, side=64) | wrong
    with pytest.raises(ValueError, match=reason):
        sweep(Waves(), latent(), asked.pop("kind"), ViewRequest(), **asked)


@pytest.mark.parametrize("count, seconds", [(7, 1.0), (48, 4.0), (1, 0.5)])
def test_a_gif_loops_in_its_time(count, seconds):
    frames = [Image.new("L", (20, 30), 5 * i) for i in range(count)]
    with Image.open(io.BytesIO(gif(frames, seconds))) as made:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(made)]
        assert made.n_frames == count and made.size == (20, 30)
        assert count == 1 or (made.info["loop"] == 0 and sum(durations) == 1000 * seconds)


def test_a_gif_keeps_greys_exactly():
    frames = [Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) + np.uint8(i)) for i in range(3)]
    with Image.open(io.BytesIO(gif(frames, 1))) as made:
        for frame, given in zip(ImageSequence.Iterator(made), frames, strict=True):
            assert np.array_equal(np.asarray(frame.convert("L")), np.asarray(given))


def test_a_gif_keeps_colours_nearly():
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 64))
    frames = [Image.fromarray(np.stack((x, y, np.full_like(x, 80 * i)), -1).astype(np.uint8)) for i in range(3)]
    with Image.open(io.BytesIO(gif(frames, 1))) as made:
        for frame, given in zip(ImageSequence.Iterator(made), frames, strict=True):
            near, exact = (np.asarray(image.convert("RGB").reduce(4), int) for image in (frame, given))
            assert np.abs(near - exact).mean() < 3


def test_a_gif_of_a_sweep_is_small():
    assert len(gif(sweep(Waves(), latent(), "ratio", ViewRequest()), 4)) < 2e6


@pytest.mark.parametrize(
    "sizes, seconds, reason",
    [([], 1, "^0 frames"), ([(8, 8), (8, 9)], 1, "^2 frames: .*one size"), ([(8, 8)] * 10, 0.1, "0.2 or more$")],
)
def test_a_wrong_gif_is_refused(sizes, seconds, reason):
    with pytest.raises(ValueError, match=reason):
        gif([Image.new("L", size) for size in sizes], seconds)
