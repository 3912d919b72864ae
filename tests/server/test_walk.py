"""A walk between two images, and the files of animations."""

import io
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from r2id.demo.animate import encode
from r2id.demo.request import GenerateRequest
from r2id.demo.walk import Walk, blend, images, loop, slerp

REQUEST = GenerateRequest("tiny", "3", cells=4, steps=2, guidance=3.0, seed=5)


def test_both_ends_are_what_their_labels_and_seeds_give(tiny):
    walk = Walk(REQUEST, "7", 9, positions=3)
    latent = tiny.diffuse(walk.labels(), **walk.options(tiny))
    how = {**REQUEST.diffuse_options(), "seed": [5, 9]}
    ends = tiny.diffuse(["3", "7"], **how)
    torch.testing.assert_close(latent.tensor[[0, 2]], ends.tensor)
    assert latent.labels == ("3", {"3": 0.5, "7": 0.5}, "7")
    assert min((latent.tensor[1] - end).abs().max() for end in ends.tensor) > 1e-3


def test_noise_between_two_seeds_is_as_long_as_noise(tiny):
    start, end = (tiny.seed_noise(seed, (8, 8)) for seed in (1, 2))
    lengths = [slerp(start, end, share).norm() for share in (0, 0.25, 0.5, 0.75, 1)]
    assert min(lengths) >= 0.999 * min(start.norm(), end.norm()) and max(lengths) <= 1.001 * max(
        start.norm(), end.norm()
    )
    assert torch.lerp(start, end, 0.5).norm() < 0.8 * start.norm()  # which a straight line is not
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_labels_between_mixtures_and_none():
    assert blend("a", "a", 0.3) == {"a": pytest.approx(1)}
    assert blend({"a": 0.5, "b": 0.5}, "b", 0.5) == {"a": 0.25, "b": 0.75}
    assert blend("a", "b", 1.0) == {"b": 1.0} and blend(None, None, 0.5) is None
    with pytest.raises(ValueError, match="a label for both ends, or for neither"):
        blend("a", None, 0.5)


@pytest.mark.parametrize("positions", [1, 49, 2.5])
def test_the_number_of_positions_is_bounded(positions):
    with pytest.raises(ValueError, match="positions .*: must be a whole number, 2…48"):
        Walk(REQUEST, "7", 9, positions)


def test_the_loop_goes_there_and_back(tiny):
    latent = tiny.diffuse(["3", "7", "8"], latent_size=(4, 4), steps=1)
    frames = list(images(tiny, latent, 16))
    assert [frame.size for frame in frames] == [(16, 16)] * 3
    assert loop(frames) == [frames[0], frames[1], frames[2], frames[1]] and loop(frames[:1]) == frames[:1]


FRAMES = [Image.new("L", (33, 20), value) for value in (0, 90, 250)]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_hold_their_frames_and_loop(kind):
    with Image.open(io.BytesIO(encode(FRAMES, 1.5, kind))) as file:
        assert (file.n_frames, file.size, file.info["loop"]) == (3, (33, 20), 0)
        times = 0
        for i, frame in enumerate(FRAMES):
            file.seek(i)
            file.load()
            times += file.info["duration"]
            assert abs(np.asarray(file.convert("L"), int) - np.asarray(frame, int)).max() <= 2
        assert times == 1500


def test_an_mp4_is_one_and_without_ffmpeg_says_what_is_missing(monkeypatch):
    assert encode(FRAMES, 1.0, "mp4")[4:8] == b"ftyp"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match="MP4 needs ffmpeg.* pip install imageio-ffmpeg"):
        encode(FRAMES, 1.0, "mp4")


@pytest.mark.parametrize("kind", ["gif", "webp", "mp4"])
def test_what_is_no_animation_is_refused(kind):
    with pytest.raises(ValueError, match="0 frames"):
        encode([], 1.0, kind)
    with pytest.raises(ValueError, match="0.01 seconds for 3 frames"):
        encode(FRAMES, 0.01, kind)
    with pytest.raises(ValueError, match="kind 'avi'"):
        encode(FRAMES, 1.0, "avi")
