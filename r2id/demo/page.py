"""The page: its layout, and which event calls which function of `events.py`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from r2id.demo import controls, first_visit, web_decoder
from r2id.demo.assets import function, template, text
from r2id.demo.controls import generate_control_values, view_control_values
from r2id.demo.events import Events
from r2id.demo.models import Models
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.demo.serving.generation import GenerationService
from r2id.demo.session import Session
from r2id.demo.wiring import BACKGROUND, DECODE, DECODE_LARGE, GENERATE, IMMEDIATE, gradio_errors
from r2id.latent import Latent
from r2id.limits import short_repr

SESSION_SECONDS = 3600  # without use, after which a session is dropped
TITLE = "<h1>r2id</h1> <p>An image kept as a few numbers, sharp at every size: zoom in.</p>"


@dataclass
class Page:
    """What the tabs build on: the components of the main area, and what to do with them."""

    models: Models
    service: GenerationService
    session: gr.State  # a Session
    version: gr.Number  # Session.version, hidden: changes with the latent and with the selected row
    stage: gr.HTML  # the large image
    keeper: gr.HTML  # the history in the browser, see keeper.py
    generate_controls: list[gr.components.Component]  # in the order of GenerateRequest's fields, then the seed's lock
    view_controls: list[gr.components.Component]  # in the order of ViewRequest's fields
    decoder: Any = None  # the event that says whether the browser decodes; `page.decoder.then(…)` hears of it
    refresh: dict[str, Any] = field(default_factory=dict)  # `event.then(**page.refresh)` updates the large image

    @property
    def named(self) -> dict[str, gr.components.Component]:
        """The generate controls by the names of GenerateRequest's fields."""
        return dict(zip(controls.NAMES, self.generate_controls, strict=False))

    @property
    def restored(self) -> list[gr.components.Component]:
        """The outputs of an event whose function returns `restore(…)`."""
        return [self.session, *self.generate_controls, *self.view_controls]

    def restore(
        self,
        session: Session,
        request: GenerateRequest,
        view: ViewRequest,
        latent: Latent | None = None,
        *,
        lock: bool = True,
        origin: str = "",
        done: int | None = None,
        small: list[bytes] | None = None,
    ) -> list[Any]:
        """Values for `restored` that show this request and view; has to be followed by `.then(**page.refresh)`.

        latent: becomes the session's; without one only the controls change. lock: whether Generate keeps the seed.
        origin, done, small: see `Session.load`. Raises ValueError if the model or a label does not exist, and for
        a latent of another model.
        """
        pipe = self.models.get(request.model)
        for name in (request.label, request.other):
            if name not in ("", *pipe.labels):
                raise ValueError(f"label {short_repr(name)}: {request.model} has {', '.join(pipe.labels) or 'none'}")
        if latent is not None:
            session.load(pipe, request, latent, origin=origin, done=done, small=small)
        values = generate_control_values(request, lock, pipe, self.models.names)
        return [session, *values, *view_control_values(view)]

    def watch(self, tab: gr.Tab, fn: Callable, inputs: Sequence, outputs: Sequence) -> None:
        """Sets outputs to fn(session, *inputs) when the tab is opened, and when the latent changes while it is open.

        fn may be a generator; it is not called without a latent.
        """

        def update(session: Session, *values):
            result = fn(session, *values) if session.latent is not None else gr.skip()
            if isinstance(result, Iterator):
                yield from result
            else:
                yield result

        def opened(session: Session, *values):
            with gradio_errors():
                yield from update(session, *values)

        def renewed(session: Session, *values):
            if session.tab != tab.label:
                return (yield gr.skip())  # not in a list: skips all outputs
            with gradio_errors():
                yield from update(session, *values)

        tab.select(opened, [self.session, *inputs], outputs, **BACKGROUND)
        self.version.change(renewed, [self.session, *inputs], outputs, trigger_mode="always_last", **BACKGROUND)


def pane_script() -> str:
    """What the panes of the page share, with the decoder; the large image, the first of them, brings it along."""
    names = ("gestures", "view_drawing", "view", "pane")
    return web_decoder.script() + "".join(text(f"{name}.js") for name in names)


def build(
    models: Models, tabs: Sequence[Callable[[Page], None]], api: Callable[[GenerationService], None]
) -> gr.Blocks:
    """The page with these tabs below its main area. api: adds the endpoints for programs."""
    service = GenerationService(models)
    with gr.Blocks(title="r2id", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        gr.HTML(TITLE, elem_id="title")
        notice = gr.HTML(elem_id="faults")
        session = gr.State(Session(), time_to_live=SESSION_SECONDS)
        version, large = (gr.Number(0, visible="hidden") for _ in range(2))  # a State has no change without a queue
        keeper = gr.HTML(html_template="", js_on_load=text("keeper.js"), elem_classes="mark")
        with gr.Column(elem_id="show"):
            stage = gr.HTML(apply_default_css=False, **template("stage", pane_script()))
        first = controls.first_row()
        note = gr.HTML(elem_id="note")
        with gr.Row(elem_id="drawers"):
            with gr.Accordion("Image: ratio, size, fit, zoom", open=False):
                view, reset = controls.image_drawer(first["side"])
            with gr.Accordion("Latent: cells, blend, count, steps", open=False):
                generate, extra = controls.latent_drawer(first)
                with gr.Row():
                    save = gr.DownloadButton("Save latent", size="sm", min_width=80, interactive=False)
                    load = gr.UploadButton("Load latent", size="sm", min_width=80, file_types=[".safetensors"])
        page = Page(models, service, session, version, stage, keeper, generate, view)
        first_visit.build(page)
        events = Events(page)
        stage.value = events.first_value()
        shown = [session, stage, version, large, keeper]
        page.refresh = dict(
            fn=events.show, inputs=[session, *view], outputs=shown, js=function("refreshView"), **IMMEDIATE
        )
        opening = blocks.load(events.open, session, [notice, stage, *page.restored, keeper], **DECODE)
        opening.then(**page.refresh)
        submitted = wire_generating(page, events, opening, first["generate"])
        wire_view(page, events, large, reset)
        wire_latent(page, events, extra["follow"], save, load)
        mark = dict(fn=events.mark, inputs=[session, *generate], outputs=[extra["grid"], note], **IMMEDIATE)
        gr.on([control.change for control in (*generate, version)], trigger_mode="always_last", **mark)
        submitted.success(**mark)
        if tabs:
            with gr.Tabs(overflow_behavior="wrap") as strip:
                for tab in tabs:
                    tab(page)
            strip.select(events.open_tab, session, None, **IMMEDIATE)
        api(service)
    return blocks


def wire_generating(page: Page, events: Events, opening, button: gr.Button):
    """The opening of the page and the button generate. Returns the event that follows the button."""
    session, stage, keeper, generate, named = page.session, page.stage, page.keeper, page.generate_controls, page.named
    run = dict(fn=events.generate, inputs=session, outputs=[session, stage], trigger_mode="multiple", **GENERATE)
    opening.then(**run).then(**page.refresh)
    submitted = button.click(events.submit, [session, *generate], [session, stage, named["seed"], keeper], **IMMEDIATE)
    submitted.success(**run).then(**page.refresh)
    stage.stop(events.stop, session, stage, **IMMEDIATE)
    keeper.restore(events.restore, session, [*page.restored, page.version], **DECODE).then(**page.refresh)
    page.version.change(events.keep, session, keeper, **IMMEDIATE)
    named["model"].change(lambda model: gr.Button(interactive=bool(model)), named["model"], button, **IMMEDIATE)
    named["model"].input(events.adapt_to_model, generate, generate, **IMMEDIATE)
    return submitted


def wire_view(page: Page, events: Events, large: gr.Number, reset: gr.Button) -> None:
    """Stage and controls show one view. large: changes where a large image is to be decoded."""
    session, stage, view = page.session, page.stage, page.view_controls
    stage.select(events.select, session, None, **IMMEDIATE).then(**page.refresh)
    stage.input(None, None, view[3:], js=function("fromStage"))
    gr.on([control.change for control in view], None, view, None, js=function("showView"))
    stage.look(events.look, session, page.refresh["outputs"], trigger_mode="always_last", **IMMEDIATE)
    stage.small(events.small, session, stage, **IMMEDIATE)
    page.decoder = stage.decoder(events.decoder_reported, session, None, **IMMEDIATE)
    # An event of its own, so the next view need not wait.
    large.change(events.complete, session, [session, stage], trigger_mode="multiple", **DECODE_LARGE)
    reset.click(events.reset, session, view, **IMMEDIATE)


def wire_latent(
    page: Page, events: Events, follow: gr.Checkbox, save: gr.DownloadButton, load: gr.UploadButton
) -> None:
    """The latent's ratio follows that of the image, and its file goes out and in."""
    session, ratio, shape = page.session, page.view_controls[1], page.named["shape"]
    gr.on([follow.change, ratio.change], None, [follow, ratio, shape], shape, js=function("followRatio"))
    page.version.change(events.save_latent, session, save, **IMMEDIATE)
    inputs = [session, load, *page.generate_controls, *page.view_controls]
    load.upload(events.load_latent, inputs, page.restored, **DECODE).then(**page.refresh)
