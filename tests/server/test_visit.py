"""One visit, without a page: what is under way gives way, stops, and is remembered."""

import itertools
import sys
import time
import types
from dataclasses import replace

import pytest
import torch

from r2id.demo import session as visit_module
from r2id.demo.models import Models
from r2id.demo.record import Drawing, View
from r2id.demo.serving import generation as studio_module
from r2id.demo.serving.generation import Studio
from r2id.demo.session import Visit
from r2id.latent import Latent

DRAWING = Drawing("tiny", "3", cells=4, steps=4, seed=5)
SMALL, LARGE = View(side=32), View(side=640)


@pytest.fixture(scope="module")
def studio(tiny_weights):
    return Studio(Models(tiny_weights.parent, device="cpu"))


@pytest.fixture
def visit(studio):
    """With the opening latent."""
    visit = Visit()
    pipe, latent = studio.opening(DRAWING)
    visit.take(pipe, DRAWING, latent)
    return visit


def diffused(studio, visit, drawing) -> list[dict]:
    visit.want(drawing)
    return list(studio.generate(visit))


def test_every_step_is_a_frame_and_later_frames_have_larger_orders(studio, visit):
    frames = diffused(studio, visit, replace(DRAWING, count=3))
    assert [frame["busy"]["text"].split(",")[0] for frame in frames] == [f"Step {i} of 4" for i in (1, 2, 3, 4)]
    assert all(len(frame["thumbs"]) == 3 for frame in frames)
    orders = [frame["order"] for frame in [*frames, studio.show(visit, SMALL)[0], visit.idle()]]
    assert all(a < b for a, b in itertools.pairwise(orders))
    assert len(visit.frames) == 4 and visit.frames[-1] is visit.latent and visit.history[0].latent is visit.latent


def test_stop_keeps_the_step_that_is_there(studio, visit):
    visit.want(replace(DRAWING, steps=50))
    steps = studio.generate(visit)
    next(steps), next(steps)
    seen = visit.latent
    assert visit.stop()["busy"] is None
    assert list(steps) == [] and visit.latent is seen and visit.done == 2
    frame, _ = studio.show(visit, SMALL)
    assert "stopped after step 2 of 50" in " ".join(frame["caption"]) and visit.history[0].done == 2


def test_stop_before_its_turn_leaves_everything_as_it_was(studio, visit):
    before = visit.latent
    visit.want(DRAWING)
    visit.stop()
    assert list(studio.generate(visit)) == [] and visit.latent is before


def test_a_new_wish_ends_the_one_under_way(studio, visit):
    visit.want(replace(DRAWING, steps=50))
    first = studio.generate(visit)
    next(first)
    visit.want(replace(DRAWING, label="7"))
    assert list(first) == []
    assert len(list(studio.generate(visit))) == 4 and visit.made.label == "7"
    assert len(visit.history) == 2  # the opening and the second


def test_while_it_diffuses_previews_follow_the_view_and_nothing_else_is_shown(studio, visit):
    visit.want(DRAWING)
    steps = studio.generate(visit)
    next(steps)
    assert studio.show(visit, View(side=40, ratio="2:1")) is None
    assert next(steps)["ratio"] == 2
    steps.close()
    assert studio.show(visit, SMALL)


def test_a_resample_that_began_before_a_diffusion_is_not_shown_after_it(studio, visit):
    studio.show(visit, LARGE)
    slow = studio.complete(visit)
    next(slow)
    diffused(studio, visit, DRAWING)
    assert list(slow) == []


def test_a_picture_that_is_there_is_not_made_again(studio, visit):
    assert studio.show(visit, SMALL)
    assert studio.show(visit, SMALL) is None
    assert studio.show(visit, replace(SMALL, zoom=2))


def test_a_large_picture_shows_progress_and_gives_way(studio, visit, monkeypatch):
    monkeypatch.setattr(studio_module, "PROGRESS", 0)
    studio.show(visit, SMALL)
    frame, number = studio.show(visit, LARGE)
    assert frame["busy"]["share"] is None and "first look" in " ".join(frame["caption"]) and number
    assert studio.show(visit, LARGE) is None  # under way
    slow = studio.complete(visit)
    frames = [next(slow)]
    assert list(studio.complete(visit)) == []  # it is worked on
    frames += list(slow)
    shares = [frame["busy"]["share"] for frame in frames[:-1]]
    assert shares == sorted(shares) and len(shares) > 3 and frames[-1]["busy"] is None
    studio.show(visit, replace(LARGE, zoom=2))
    slow = studio.complete(visit)
    next(slow)
    assert studio.show(visit, LARGE)[1] > number  # the first look at the other one took its place
    assert list(slow) == []


def test_what_nobody_asked_for_waits_until_the_view_is_still_but_not_for_ever(studio, visit, monkeypatch):
    def settled() -> float:
        start = time.monotonic()
        visit.settle()
        return time.monotonic() - start

    diffused(studio, visit, Drawing("tiny", "3", cells=4, steps=2))
    assert settled() < 0.1
    studio.show(visit, View(side=9))
    assert settled() > 0.5
    monkeypatch.setattr(visit_module, "PATIENCE", 0.3)
    monkeypatch.setattr(visit_module, "STILL", 2.0)
    assert 0.2 < settled() < 1.0


def test_a_large_picture_can_be_stopped(studio, visit):
    studio.show(visit, LARGE)
    slow = studio.complete(visit)
    next(slow)
    assert visit.stop()["busy"] is None
    assert list(slow) == []


def test_the_selected_row_is_shown_and_a_diffusion_begins_with_the_first(studio, visit):
    diffused(studio, visit, replace(DRAWING, count=3, seed=2**32 - 1))
    visit.select(2)
    frame, _ = studio.show(visit, SMALL)
    assert frame["selected"] == 2 and "seed 1" in " ".join(frame["caption"])
    visit.select(3)
    assert visit.selected == 2
    diffused(studio, visit, DRAWING)
    assert visit.selected == 0


def test_a_latent_of_another_model_is_refused(studio, visit):
    before = visit.latent
    with pytest.raises(ValueError, match="channels"):
        visit.take(visit.pipe, DRAWING, Latent(torch.zeros(1, 5, 4, 4), 1.0))
    assert visit.latent is before


def test_history_and_trajectory_are_bounded(studio, visit, monkeypatch):
    monkeypatch.setattr(visit_module, "MAX_HISTORY", 3)
    for seed in range(4):
        diffused(studio, visit, replace(DRAWING, seed=seed))
    assert [entry.drawing.seed for entry in visit.history] == [3, 2, 1]
    monkeypatch.setattr(visit_module, "MAX_KEPT", 100)  # two latents of 3 × 4 × 4
    diffused(studio, visit, replace(DRAWING, steps=9))
    assert len(visit.history) == 2 and len(visit.frames) == 2 and visit.frames[-1] is visit.latent


def test_without_a_latent_the_page_says_so(studio):
    with pytest.raises(ValueError, match="press Diffuse"):
        studio.show(Visit(), SMALL)


def test_a_failing_diffusion_leaves_the_latent_and_the_page_usable(studio, visit):
    before = visit.latent
    with pytest.raises(ValueError, match="eleven"):
        diffused(studio, visit, replace(DRAWING, label="eleven"))
    assert visit.latent is before and studio.show(visit, SMALL)


def test_on_zero_gpu_only_diffusing_asks_for_the_gpu(tiny_weights, monkeypatch):
    lent = []

    def gpu(duration):
        return lambda function: lambda *args: lent.append(args) or function(*args)

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    studio, visit = Studio(Models(tiny_weights.parent, device="cpu")), Visit()
    diffused(studio, visit, DRAWING)
    studio.show(visit, SMALL)
    assert len(lent) == 1 and visit.latent.tensor.device.type == "cpu"
