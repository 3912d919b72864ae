"""The first visit of a browser shows the first image being generated, step by step, once, and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import gradio as gr

from r2id.demo.assets import text
from r2id.demo.serving.generation import GenerationService
from r2id.demo.session import thumbs
from r2id.demo.wiring import BACKGROUND, data_uri, gradio_errors
from r2id.pipeline import Pipeline

if TYPE_CHECKING:
    from r2id.demo.page import Page

SIDE = 160  # long side in pixels of a step


class FirstSteps:
    """The steps of the image that a new page shows, as small images made once for all users."""

    def __init__(self, service: GenerationService):
        self._service = service
        self._known: WeakKeyDictionary[Pipeline, list[str]] = WeakKeyDictionary()

    def __call__(self) -> list[str]:
        """Every step of the first model as a PNG's data URI; empty without a model."""
        models = self._service.models
        if not models.names:
            return []
        pipe, latents = self._service.first_steps(self._service.default_request(models.names[0]))
        if pipe not in self._known:
            self._known[pipe] = [data_uri(thumbs(pipe.low_priority, latent, SIDE)[0]) for latent in latents]
        return self._known[pipe]


def build(page: Page) -> None:
    """Call it after the large image. The browser asks where it was never here, no link names an image, and motion is
    welcome; see web/first_visit.js."""
    first = gr.HTML(html_template="", js_on_load=text("first_visit.js"), elem_classes="mark")
    steps = FirstSteps(page.service)

    def asked():
        with gradio_errors(), page.service.queue.turn(steps):
            return steps()

    first.ask(asked, None, first, **BACKGROUND)
