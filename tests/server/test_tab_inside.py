"""What the tab Inside shows where there is little to show."""

import pytest

from r2id.demo.session import TROUBLES, Session
from r2id.demo.tabs.inside import decoder_html, loss_html, steps_html

SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"


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


def test_it_says_who_decodes_and_why(tiny, tiny_pixels):
    session = Session()
    session.pipe = tiny
    assert "until this browser has shown" in decoder_html(session)
    session.local = True
    assert "This browser decodes" in decoder_html(session)
    for session.trouble, why in TROUBLES.items():
        session.local = False
        assert f"The server decodes the image, not this browser: {why}." in decoder_html(session)
    session.pipe = tiny_pixels
    assert "this model's resampler" in decoder_html(session)
