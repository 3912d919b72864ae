"""The tab Compare: as a user sees it, and the functions behind it."""

import re
import types
from dataclasses import replace

import gradio as gr
import pytest

from r2id.demo.controls import view_values
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.demo.serving.worker import QueuedPipeline
from r2id.demo.session import Session
from r2id.demo.tabs.compare import SIZES_TITLE, STOP_SIZES, STRIP, diffused, latent_sizes, strip, title, wanted, wipe

pytest_plugins = "browser"


@pytest.fixture
def holding(tiny_weights):
    """What a user has whose image `tiny` drew."""
    session, pipe = Session(), QueuedPipeline.from_pretrained(tiny_weights)
    session.take(
        pipe, GenerateRequest("tiny", "3", cells=6, shape="3:2"), pipe.diffuse(["3"], latent_size=(4, 6), seed=0)
    )
    return session


def test_the_strip_goes_up_to_1024_and_the_line_is_moved_with_the_keyboard(phone):
    session = phone("dark")
    page = session.page
    session.shows("resampled in")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    page.get_by_role("heading", name="Decoded or enlarged?").hover()
    page.mouse.wheel(0, 200)
    alts = page.locator(".wipe img")
    alts.nth(1).wait_for()
    assert ["enlarged" in alts.nth(i).get_attribute("alt") for i in (0, 1)] == [True, False]
    page.get_by_label("Share of the bicubic enlargement").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.wipe > div').style.getPropertyValue('--cut') === '49%'")
    page.get_by_role("heading", name="One latent, every size").scroll_into_view_if_needed()
    page.get_by_alt_text("decoded to pixels, 1024 × 1024 pixels").wait_for()
    assert page.locator(".images img").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_line_stands_in_the_present_view(session):
    page = session.page
    session.shows("resampled in")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    page.locator(".wipe img").nth(1).wait_for()
    before = page.locator(".wipe img").nth(1).get_attribute("src")
    session.type("Zoom (×)", "8")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    page.wait_for_function("before => document.querySelectorAll('.wipe img')[1].src !== before", arg=before)


def test_latent_sizes_and_models_stand_side_by_side(session):
    page = session.page
    session.shows("resampled in")
    session.press("Diffuse at several sizes")
    for cells in (4, 8, 12, 16):
        page.get_by_text(re.compile(f"^{cells} × {cells} cells: diffused in [0-9]+ ms")).wait_for()
    page.get_by_role("button", name="Stop sizes", disabled=True).wait_for()
    session.press("Diffuse with both")
    for model in ("tiny", "twin"):
        page.get_by_text(re.compile(f"^{model}, 4 cells, 4 steps: diffused in [0-9]+ ms")).wait_for()
    page.get_by_label("Second model").click()
    page.get_by_role("option", name="tiny").click()
    session.press("Diffuse with both")
    page.get_by_text("tiny twice: choose two different models").wait_for()


def test_diffusing_at_several_sizes_ends_where_stop_was_pressed(holding, tiny):
    service = types.SimpleNamespace(denoise=lambda d: tiny.diffuse_steps(d.labels, latent_size=(4, 4), steps=4, seed=0))
    page = types.SimpleNamespace(service=service, models=types.SimpleNamespace(get=lambda name: tiny))
    request = replace(holding.made, steps=4)
    looks = diffused(page, holding, {"first": request, "second": request}, SIZES_TITLE, STOP_SIZES)
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
    holding.take(tiny, holding.made, tiny.diffuse(["4"], latent_size=(4, 6), seed=0))
    assert list(looks) == []


def test_a_user_without_a_latent_sees_nothing():
    assert [look for look in strip(Session()) if look[0] != gr.skip()] == []
    assert wipe(Session(), *view_values(ViewRequest())) == gr.skip()


def test_pixel_space_is_enlarged_and_decoded_too(tiny_pixels):
    session = Session()
    session.take(tiny_pixels, GenerateRequest("pixels", "3"), tiny_pixels.diffuse(["3"], seed=0))
    shown = wipe(session, *view_values(ViewRequest(ratio="2:1", fit="cover", zoom=3)))
    assert shown["ratio"] == 2 and shown["images"].count("<img") == 2 and "320 × 160 pixels" in shown["words"]
    assert wipe(session, 256, "7:1", "cover", 50, 50, 1) == gr.skip()


def test_only_what_was_diffused_can_be_diffused_again(holding):
    assert wanted(holding) == holding.made
    holding.take(holding.pipe, holding.made, holding.latent, origin="your drawing")
    with pytest.raises(ValueError, match="press Generate first"):
        wanted(holding)


@pytest.mark.parametrize(
    "trained, sizes",
    [((4, 16, 1), [4, 8, 12, 16]), ((8, 8, 1), [8]), ((4, 16, 8), [8, 16]), ((32, 64, 8), [32, 40, 56, 64])],
)
def test_latent_sizes_span_what_was_trained(trained, sizes):
    assert latent_sizes(*trained) == sizes
