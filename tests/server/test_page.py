"""What the page and its tabs share."""

import types

import gradio as gr

from r2id.demo import page as page_module
from r2id.demo.request import GenerateRequest
from r2id.demo.session import Session

FINE = "pixels.*decoded in [0-9]+ ms"  # the image is there in full


def test_a_tab_that_is_not_open_is_left_as_it_is(tiny):
    heard, session = [], Session()
    event = types.SimpleNamespace(label="History", select=lambda fn, *_, **__: heard.append(fn))
    event.change = event.select
    page = page_module.Page(None, None, None, event, None, None, [], [])
    page.watch(event, lambda session: session.tab, [], ["a single output"])
    opened, renewed = heard
    assert list(opened(session)) == [gr.skip()]  # there is no latent; in a list of its own this would be a value
    session.load(tiny, GenerateRequest("tiny", "3"), tiny.diffuse(["3"], seed=0))
    session.tab = "Models"
    assert list(renewed(session)) == [gr.skip()]
    session.tab = "History"
    assert list(renewed(session)) == list(opened(session)) == ["History"]
