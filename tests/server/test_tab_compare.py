"""The functions behind the tab Compare."""

import types
from dataclasses import replace

import gradio as gr
import pytest

from r2id.demo.controls import view_control_values
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.demo.serving.worker import QueuedPipeline
from r2id.demo.session import Session
from r2id.demo.tabs.compare import (
    SIZES_TITLE,
    STOP_SIZES,
    STRIP,
    generate_each,
    latent_sizes,
    repeatable_request,
    strip,
    title,
    wipe,
)


@pytest.fixture
def holding(tiny_weights):
    """What a user has whose image `tiny` drew."""
    session, pipe = Session(), QueuedPipeline.from_pretrained(tiny_weights)
    session.load(
        pipe, GenerateRequest("tiny", "3", cells=6, shape="3:2"), pipe.diffuse(["3"], latent_size=(4, 6), seed=0)
    )
    return session


def test_diffusing_at_several_sizes_ends_where_stop_was_pressed(holding, tiny):
    service = types.SimpleNamespace(
        diffuse_steps=lambda d: tiny.diffuse_steps(d.labels, latent_size=(4, 4), steps=4, seed=0)
    )
    page = types.SimpleNamespace(service=service, models=types.SimpleNamespace(get=lambda name: tiny))
    request = replace(holding.request, steps=4)
    looks = generate_each(page, holding, {"first": request, "second": request}, SIZES_TITLE, STOP_SIZES)
    for _ in range(7):  # four steps, their image, two steps
        images, heading = next(looks)
    assert "second: step 2 of 4" in heading
    holding.stopped.add(STOP_SIZES)
    assert list(looks) == [(gr.skip(), title(*SIZES_TITLE))]


def test_the_strip_gives_way_to_another_latent(holding, tiny):
    looks = strip(holding)
    next(looks)
    images, heading = next(looks)
    assert heading == title(*STRIP) and images.count("<img") == 6  # 8 … 256, before the ones that take long
    assert "256 × 171 pixels" in images and "256 × 256" not in images
    assert "512 × 341 pixels: " in next(looks)[1]
    holding.load(tiny, holding.request, tiny.diffuse(["4"], latent_size=(4, 6), seed=0))
    assert list(looks) == []


def test_a_user_without_a_latent_sees_nothing():
    assert [look for look in strip(Session()) if look[0] != gr.skip()] == []
    assert wipe(Session(), *view_control_values(ViewRequest())) == gr.skip()


def test_pixel_space_is_enlarged_and_decoded_too(tiny_pixels):
    session = Session()
    session.load(tiny_pixels, GenerateRequest("pixels", "3"), tiny_pixels.diffuse(["3"], seed=0))
    shown = wipe(session, *view_control_values(ViewRequest(ratio="2:1", fit="cover", zoom=3)))
    assert shown["ratio"] == 2 and shown["images"].count("<img") == 2 and "320 × 160 pixels" in shown["words"]
    assert wipe(session, 256, "7:1", "cover", 50, 50, 1) == gr.skip()


def test_only_what_was_diffused_can_be_diffused_again(holding):
    assert repeatable_request(holding) == holding.request
    holding.load(holding.pipe, holding.request, holding.latent, origin="your drawing")
    with pytest.raises(ValueError, match="press Generate first"):
        repeatable_request(holding)


@pytest.mark.parametrize(
    "trained, sizes",
    [((4, 16, 1), [4, 8, 12, 16]), ((8, 8, 1), [8]), ((4, 16, 8), [8, 16]), ((32, 64, 8), [32, 40, 56, 64])],
)
def test_latent_sizes_span_what_was_trained(trained, sizes):
    assert latent_sizes(*trained) == sizes
