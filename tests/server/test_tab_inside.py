"""The tab Inside: as a user sees it, and what stands where there is nothing to show."""

import pytest

from r2id.demo.illustrations import GAP
from r2id.demo.tabs.inside import FINE, loss_html, steps_html

pytest_plugins = "browser"

SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"


def test_channels_steps_and_coordinates_are_those_of_the_latent_on_the_page(phone):
    session = phone("dark")
    page = session.page
    session.shows("resampled in")
    page.get_by_role("tab", name="Inside").click()
    page.get_by_alt_text("3 maps of 4 by 4 cells, one a channel").wait_for()
    page.get_by_text("This latent was not diffused just now").wait_for()
    page.get_by_text("This model ships no report of its loss").wait_for()
    session.press("Diffuse")
    steps = page.get_by_alt_text("the image as expected after each of 4 steps")
    steps.wait_for()
    assert steps.evaluate("image => image.decode().then(() => image.naturalWidth)") == 4 * (FINE + GAP) + GAP
    page.get_by_alt_text("absolute coordinates over an image of 256 by 256 pixels").wait_for()
    session.type("Image ratio (w : h)", "16:9")
    page.get_by_alt_text("absolute coordinates over an image of 256 by 144 pixels").wait_for()
    assert not page.evaluate(SIDEWAYS)


def test_the_loss_is_drawn_where_the_report_holds_it():
    rows = [{"t": t, "conditional": t / 5, "null": t / 4} for t in (0.0, 0.5, 1.0)]
    assert 'alt="loss against noise level t' in loss_html({"loss": [{"rows": rows}]})
    assert "<img" not in loss_html(None) and "no report" in loss_html(None)
    assert "no readable losses" in loss_html({"loss": [{"rows": [*rows, {"t": 0.7}]}]})


@pytest.mark.parametrize("size", [(4, 4), (1, 9)])
def test_steps_that_were_left_out_are_owned_up_to(tiny, size):
    latent = tiny.diffuse(["3"], latent_size=size, steps=1, seed=0)
    assert "left out" not in steps_html(tiny, [latent] * 3, 3)
    assert "3 of 7 steps" in steps_html(tiny, [latent] * 3, 7)
