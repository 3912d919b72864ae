"""One session, without a page: what is under way gives way, stops, and is remembered."""

import itertools
import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from r2id.demo import keeper
from r2id.demo import session as session_module
from r2id.demo.models import Models
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.demo.serving import generation as generation_module
from r2id.demo.serving.generation import GenerationService
from r2id.demo.session import MAX_STILL_WAIT, STILL_SECONDS, Session
from r2id.latent import Latent

REQUEST = GenerateRequest("tiny", "3", cells=4, steps=4, seed=5)
SMALL, LARGE = ViewRequest(side=32), ViewRequest(side=640)


@pytest.fixture(scope="module")
def service(tiny_weights):
    return GenerationService(Models(tiny_weights.parent, device="cpu"))


@pytest.fixture
def session(service):
    """With the opening latent."""
    session = Session()
    pipe, latent = service.first_latent(REQUEST)
    session.load(pipe, REQUEST, latent)
    return session


def diffused(service, session, request) -> list[dict]:
    session.submit(request)
    return list(service.generate(session))


def test_every_step_is_a_frame_and_later_frames_have_larger_orders(service, session):
    frames = diffused(service, session, replace(REQUEST, count=3))
    assert [frame["busy"]["text"].split(",")[0] for frame in frames] == [f"Step {i} of 4" for i in (1, 2, 3, 4)]
    assert all(len(frame["thumbs"]) == 3 for frame in frames)
    orders = [frame["order"] for frame in [*frames, service.show(session, SMALL)[0], session.idle()]]
    assert all(a < b for a, b in itertools.pairwise(orders))
    assert (
        len(session.frames) == 4
        and session.frames[-1] is session.latent
        and session.history[0].latent is session.latent
    )


def test_stop_keeps_the_step_that_is_there(service, session):
    session.submit(replace(REQUEST, steps=50))
    steps = service.generate(session)
    next(steps), next(steps)
    seen = session.latent
    assert session.stop()["busy"] is None
    assert list(steps) == [] and session.latent is seen and session.done == 2
    frame, _ = service.show(session, SMALL)
    assert "stopped after step 2 of 50" in " ".join(frame["caption"]) and session.history[0].done == 2


def test_stop_before_its_turn_leaves_everything_as_it_was(service, session):
    before = session.latent
    session.submit(REQUEST)
    session.stop()
    assert list(service.generate(session)) == [] and session.latent is before


def test_a_new_wish_ends_the_one_under_way(service, session):
    session.submit(replace(REQUEST, steps=50))
    first = service.generate(session)
    next(first)
    session.submit(replace(REQUEST, label="7"))
    assert list(first) == []
    assert len(list(service.generate(session))) == 4 and session.request.label == "7"
    assert len(session.history) == 2  # the opening and the second


def test_while_it_diffuses_previews_follow_the_view_and_nothing_else_is_shown(service, session):
    session.submit(REQUEST)
    steps = service.generate(session)
    next(steps)
    assert service.show(session, ViewRequest(side=40, ratio="2:1")) is None
    assert next(steps)["ratio"] == 2
    steps.close()
    assert service.show(session, SMALL)


def test_a_resample_that_began_before_a_diffusion_is_not_shown_after_it(service, session):
    service.show(session, LARGE)
    slow = service.complete(session)
    next(slow)
    diffused(service, session, REQUEST)
    assert list(slow) == []


def test_an_image_that_is_there_is_not_made_again(service, session):
    assert service.show(session, SMALL)
    assert service.show(session, SMALL) is None
    assert service.show(session, replace(SMALL, zoom=2))


def test_a_large_image_shows_progress_and_gives_way(service, session, monkeypatch):
    monkeypatch.setattr(generation_module, "PROGRESS_SECONDS", 0)
    service.show(session, SMALL)
    frame, number = service.show(session, LARGE)
    assert frame["busy"]["share"] is None and "preview" in " ".join(frame["caption"]) and number
    assert service.show(session, LARGE) is None  # under way
    slow = service.complete(session)
    frames = [next(slow)]
    assert list(service.complete(session)) == []  # it is worked on
    frames += list(slow)
    shares = [frame["busy"]["share"] for frame in frames[:-1]]
    assert shares == sorted(shares) and len(shares) > 3 and frames[-1]["busy"] is None
    service.show(session, replace(LARGE, zoom=2))
    slow = service.complete(session)
    next(slow)
    assert service.show(session, LARGE)[1] > number  # the preview at the other one took its place
    assert list(slow) == []


def test_background_work_waits_until_the_view_is_still_but_not_forever(service, session, monkeypatch):
    now, changes = [100.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if changes and now[0] > changes[0]:  # somebody moves a slider
            service.show(session, ViewRequest(side=8 + len(changes)))
            changes.pop(0)

    def waited() -> float:
        start = now[0]
        session.wait_until_still()
        return now[0] - start

    monkeypatch.setattr(session_module, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert waited() == 0
    service.show(session, ViewRequest(side=40))
    assert waited() == pytest.approx(STILL_SECONDS, rel=0.2)
    changes += [now[0] + 0.5 * STILL_SECONDS]
    service.show(session, ViewRequest(side=41))
    assert waited() == pytest.approx(1.5 * STILL_SECONDS, rel=0.3)
    changes += [now[0] + 0.5 * STILL_SECONDS * i for i in range(1, 60)]
    service.show(session, ViewRequest(side=42))
    assert waited() == pytest.approx(MAX_STILL_WAIT, rel=0.1)


def test_a_large_image_can_be_stopped(service, session):
    service.show(session, LARGE)
    slow = service.complete(session)
    next(slow)
    assert session.stop()["busy"] is None
    assert list(slow) == []


def test_the_selected_row_is_shown_and_a_diffusion_begins_with_the_first(service, session):
    diffused(service, session, replace(REQUEST, count=3, seed=2**32 - 1))
    session.select(2)
    frame, _ = service.show(session, SMALL)
    assert frame["selected"] == 2 and "seed 1" in " ".join(frame["caption"])
    session.select(3)
    assert session.selected == 2
    diffused(service, session, REQUEST)
    assert session.selected == 0


def test_a_latent_of_another_model_is_refused(service, session):
    before = session.latent
    with pytest.raises(ValueError, match="channels"):
        session.load(session.pipe, REQUEST, Latent(torch.zeros(1, 5, 4, 4), 1.0))
    assert session.latent is before


def test_history_and_trajectory_are_bounded(service, session, monkeypatch):
    monkeypatch.setattr(session_module, "MAX_HISTORY", 3)
    for seed in range(4):
        diffused(service, session, replace(REQUEST, seed=seed))
    assert [entry.request.seed for entry in session.history] == [3, 2, 1]
    monkeypatch.setattr(session_module, "MAX_KEPT", 100)  # two latents of 3 × 4 × 4
    diffused(service, session, replace(REQUEST, steps=9))
    assert len(session.history) == 2 and len(session.frames) == 2 and session.frames[-1] is session.latent


def test_without_a_latent_the_page_says_so(service):
    with pytest.raises(ValueError, match="press Generate"):
        service.show(Session(), SMALL)


def test_a_failing_diffusion_leaves_the_latent_and_the_page_usable(service, session):
    before = session.latent
    with pytest.raises(ValueError, match="eleven"):
        diffused(service, session, replace(REQUEST, label="eleven"))
    assert session.latent is before and service.show(session, SMALL)


def test_on_zero_gpu_only_diffusing_asks_for_the_gpu(tiny_weights, monkeypatch):
    lent = []

    def gpu(duration):
        return lambda function: lambda *args: lent.append(args) or function(*args)

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    service, session = GenerationService(Models(tiny_weights.parent, device="cpu")), Session()
    diffused(service, session, REQUEST)
    service.show(session, SMALL)
    assert len(lent) == 1 and session.latent.tensor.device.type == "cpu"


# what the browser keeps


def test_a_kept_history_comes_back_in_an_empty_session(service, session):
    diffused(service, session, replace(REQUEST, count=2))
    kept = {"server": "another run", "entries": [keeper.pack(entry) for entry in session.history]}
    entries, restarted = keeper.unpack(json.loads(json.dumps(kept)), service.models)
    other = Session()
    shown = other.merge(entries)
    assert restarted and shown.same(session.history[0]) and not other.empty
    assert all(
        one.same(old) and one.thumbs == old.thumbs for one, old in zip(other.history, session.history, strict=True)
    )
    assert torch.equal(other.latent.tensor, session.latent.tensor) and service.show(other, SMALL)
    assert other.merge(entries) is None and len(other.history) == 2  # what is there is not added twice
    assert keeper.unpack({"server": keeper.SERVER, "entries": []}, service.models) == ([], False)


def test_the_browser_gets_every_entry_once(service, session):
    first = keeper.keep(session)
    assert first["keep"] == keeper.pack(session.history[0]) and keeper.keep(session) is None
    diffused(service, session, replace(REQUEST, seed=6))
    second = keeper.keep(session)
    assert second["keep"]["key"] != first["keep"]["key"] and keeper.keep(session) is None
    assert keeper.keep(Session()) is None


@pytest.mark.parametrize(
    "change",
    [
        dict(latent="AAAA"),
        dict(latent="no base64"),
        dict(latent=3),
        dict(request={"model": "absent"}),
        dict(request={"model": "tiny", "colour": 1}),
        dict(request={"model": "tiny", "count": 3}),
        dict(request=None),
        dict(done=0),
        dict(done=10**9),
        dict(origin="two\nlines"),
        dict(origin=None),
    ],
    ids=str,
)
def test_forged_entries_are_left_out(service, session, change):
    good = keeper.pack(session.history[0])
    for wrong in (good | change, {k: v for k, v in good.items() if k not in change}, None, 3):
        entries, _ = keeper.unpack({"server": "", "entries": [wrong, good]}, service.models)
        assert [entry.same(session.history[0]) for _, entry in entries] == [True]
    for kept in (None, [], {"entries": None}, "x"):
        assert keeper.unpack(kept, service.models) == ([], False)
