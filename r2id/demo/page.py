"""The page: its layout, and which event calls what. The work is in `session.py`, the controls are in `controls.py`."""

import base64
import contextlib
import html
import io
import os
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from r2id.demo import controls
from r2id.demo.controls import generate_request_of, generate_values, usual_fit, view_request_of, view_values
from r2id.demo.illustrations import draw_cells
from r2id.demo.models import Models, line_of
from r2id.demo.request import GenerateRequest, ViewRequest, from_query, to_dict
from r2id.demo.serving.generation import GenerationService
from r2id.demo.session import Session
from r2id.latent import Latent
from r2id.limits import SEEDS, short_repr

HERE = Path(__file__).parent / "web"
INLINE = 2**18  # bytes; larger images travel as files
LIFE = 3600  # seconds without use after which a user's latents are dropped
TITLE = "<h1>r2id</h1>Diffuse an image once, in a small latent; then resample that to any resolution and aspect ratio."
NO_WEIGHTS = """<b>There are no weights yet.</b> Drop a folder of them into weights/, or train some; then reload.
<pre>python -m train.train_resampler --config train/configs/mnist_resampler.toml
python -m train.train_denoiser --config train/configs/mnist_r2id.toml
python -m train.export runs/mnist weights/mnist</pre>"""

QUIET = dict(show_progress="hidden", api_visibility="private")
OTHER = dict(concurrency_id="other", concurrency_limit=2)
IN_TURN = dict(concurrency_limit=None)  # for what waits by itself, see fair_queue.py
AT_ONCE = dict(queue=False, **QUIET)  # for what takes a few milliseconds, or answers a slider: a queue costs 60 ms
LIGHT = dict(concurrency_id="resample", concurrency_limit=4, **QUIET)  # for what makes an image
LARGE = dict(concurrency_id="large", concurrency_limit=2, **QUIET)  # for large images
SLOW = dict(**OTHER, **QUIET)  # for encodes, strips, animations
HEAVY = dict(**IN_TURN, **QUIET)  # for what diffuses
FROM_STAGE = "frame => [100 * frame.asked[0], 100 * frame.asked[1], frame.asked[2]].map(v => +v.toPrecision(4))"


def words_of(error: Exception) -> str:
    """One line for users. What is not the work's own objection is told by its kind; the log has the rest."""
    if not isinstance(error, ValueError):
        with contextlib.suppress(OSError):  # the log may be what is full
            traceback.print_exception(error)
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        kind = "out of memory" if memory else getattr(error, "strerror", None) or type(error).__name__
        error = ValueError(f"the server could not do this ({kind}): ask for less, or try again later")
    return line_of(error)


@contextlib.contextmanager
def gradio_errors():
    """Whatever goes wrong in the work is told in one line."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(html.escape(words_of(error), quote=False), print_exception=False) from None


@dataclass
class Page:
    """What the tabs build on: the components of the main area, and what to do with them."""

    models: Models
    service: GenerationService
    session: gr.State  # a Session
    version: gr.Number  # Session.version, hidden; changes after another latent has come or another row was selected
    stage: gr.HTML  # the big image
    draw: list[gr.components.Component]  # controls, in the order of GenerateRequest's fields; then the lock of the seed
    view: list[gr.components.Component]  # controls, in the order of ViewRequest's fields
    again: dict[str, Any] = field(default_factory=dict)  # `event.then(**page.again)` brings the big image up to date

    @property
    def restored(self) -> list[gr.components.Component]:
        """The outputs of an event whose function returns `restore(…)`."""
        return [self.session, *self.draw, *self.view]

    def restore(
        self,
        session: Session,
        request: GenerateRequest,
        view: ViewRequest,
        latent: Latent | None = None,
        *,
        lock=True,
        origin="",
        done=None,
    ) -> list[Any]:
        """The page as if this had been made now: values for `restored`; `.then(**page.again)` has to follow.

        Without a latent only the controls change, and the one on the page is marked as old. origin: where a latent that
        was not diffused comes from, in a few words. done: steps taken, where fewer than request.steps. lock: whether
        Diffuse is to keep the seed. Raises ValueError for a model or a label that is not there, and for a latent of
        another model.
        """
        pipe = self.models.get(request.model)
        for name in (request.label, request.other):
            if name not in ("", *pipe.labels):
                raise ValueError(f"label {short_repr(name)}: {request.model} has {', '.join(pipe.labels) or 'none'}")
        if latent is not None:
            session.take(pipe, request, latent, origin=origin, done=done)
        return [session, *generate_values(request, lock, pipe, self.models.names), *view_values(view)]

    def watch(self, tab: gr.Tab, fn: Callable, inputs: Sequence, outputs: Sequence):
        """fn(session, *inputs) → values of outputs, whenever this tab is opened, and whenever another latent has come
        while it is open; never without a latent. fn may be a generator."""

        def look(session: Session, *values):
            result = fn(session, *values) if session.latent is not None else gr.skip()
            if isinstance(result, Iterator):
                yield from result
            else:
                yield result

        def opened(session: Session, *values):
            with gradio_errors():
                yield from look(session, *values)

        def renewed(session: Session, *values):
            if session.tab != tab.label:
                return (yield gr.skip())  # of all outputs: in a list, it would be the value of a single one
            with gradio_errors():
                yield from look(session, *values)

        tab.select(opened, [self.session, *inputs], outputs, **SLOW)
        self.version.change(renewed, [self.session, *inputs], outputs, trigger_mode="always_last", **SLOW)


def stoppable(press: gr.Button, halt: gr.Button, session: gr.State, fn: Callable, *what, **how):
    """`press.click(fn, *what, **how)`, while which `halt` can be pressed: fn has to look whether that button's name is
    among `Session.stopped`."""
    on, off = (f"() => ({{__type__: 'update', interactive: {state}}})" for state in ("true", "false"))
    press.click(lambda session: session.stopped.discard(halt.value), session, None, **AT_ONCE)
    press.click(None, None, halt, js=on)  # before fn: events of one click wait for each other
    run = press.click(fn, *what, **how)
    for over in (run.success, run.failure):
        over(None, None, halt, js=off)
    halt.click(lambda session: session.stopped.add(halt.value), session, None, **AT_ONCE)
    halt.click(None, None, halt, js=off)
    return run


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def img(image, alt: str) -> str:
    """A PIL image as HTML."""
    image.save(file := io.BytesIO(), format="PNG")
    return f'<img src="{data_uri(file.getvalue())}" alt="{html.escape(alt)}">'


def text(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def place(name: str) -> Path:
    """Where to put a file of this name so that Gradio serves it and clears it away."""
    folder = Path(get_upload_folder()) / os.urandom(8).hex()
    folder.mkdir(parents=True)
    return folder / name


@lru_cache(16)  # a frame repeats the image of the one before
def source(png: bytes, name: str) -> str | dict[str, Any]:
    """A PNG as the browser gets it: within the page, or as a file."""
    if len(png) <= INLINE:
        return data_uri(png)
    (path := place(name)).write_bytes(png)
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def staged(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame as the browser gets it."""
    if "image" not in frame:
        return frame
    thumbs = [data_uri(thumb) for thumb in frame["thumbs"]]
    return {**frame, "image": source(frame["image"], frame["name"]), "thumbs": thumbs}


class Events:
    """The functions behind the main area's events."""

    def __init__(self, page: Page):
        self.page, self.models, self.service = page, page.models, page.service

    def opened(self, session: Session, http: gr.Request):
        """Notices, stage, controls; with a latent: the link's, to be diffused, or the one that all share."""
        self.models.scan()
        faults = [f"{name} cannot be used: {fault}" for name, fault in self.models.faults.items()]
        lines = [*map(html.escape, faults), *[NO_WEIGHTS] * (not self.models.names)]
        notice = "".join(f"<div class=notice>{line}</div>" for line in lines)
        if not self.models.names:
            return [notice, staged(session.idle()), *[gr.skip()] * len(self.page.restored)]
        with gradio_errors():
            values = self.followed(session, http) if "model" in http.query_params else None
            if values is None:
                request = self.service.usual(self.models.names[0])
                pipe, latent = self.service.opening(request)
                values = self.page.restore(session, request, ViewRequest(fit=usual_fit(pipe)), latent, lock=False)
        return [notice, gr.skip(), *values]

    def followed(self, session: Session, http: gr.Request) -> list[Any] | None:
        """The page that a link asks for; None where it cannot be. Links made here name a seed; in one written by hand,
        what is left out is the model's own."""
        said = dict(http.query_params)
        try:
            if "seed" not in said:
                usual = self.service.usual(said["model"])
                said = to_dict(usual, ViewRequest(fit=usual_fit(self.models.get(usual.model)))) | said
            request, view = from_query(said)
            values = self.page.restore(session, request, view)
        except ValueError as error:
            return gr.Warning(html.escape(f"this link cannot be followed: {error}", quote=False))
        session.want(request)
        session.view = view
        return values

    def show(self, session: Session, *values):
        """Session, stage, version, and the number of a large image that is to be completed."""
        try:
            with self.service.queue.turn((session, "images")):
                shown = self.service.show(session, view_request_of(*values))
        except Exception as error:
            return session, staged(session.idle(words_of(error))), session.version, gr.skip()
        if not shown:
            return [gr.skip()] * 4
        frame, large = shown
        return session, staged(frame), session.version, large or gr.skip()

    def work(self, frames: Iterator[dict], session: Session):
        """Frames → session, stage. A generator that yields nothing would empty them."""
        yielded = False
        try:
            for frame in frames:
                yielded = True
                yield session, staged(frame)
        except Exception as error:
            yield session, staged(session.idle(words_of(error)))
        else:
            if not yielded:
                yield gr.skip(), gr.skip()

    def complete(self, session: Session):
        yield from self.work(self.service.complete(session), session)

    def generate(self, session: Session):
        yield from self.work(self.service.generate(session), session)

    def want(self, session: Session, *values):
        """Diffuse: session, stage, seed."""
        with gradio_errors():
            request = generate_request_of(*values)
            self.models.get(request.model)
            if not values[-1]:
                request = replace(request, seed=secrets.randbelow(SEEDS))
            return session, staged(session.want(request)), request.seed

    def stop(self, session: Session):
        return staged(session.stop())

    def turned(self, session: Session, event: gr.SelectData):
        session.tab = event.value

    def select(self, session: Session, event: gr.EventData):
        session.select(event.index)

    def reset(self, session: Session):
        return view_values(ViewRequest(fit=usual_fit(session.pipe)) if session.pipe else ViewRequest())

    def adapted(self, *values):
        """The request's controls at another model: what that cannot do becomes what it usually does."""
        with gradio_errors():
            asked, usual = generate_request_of(*values), self.service.usual(values[0])
            pipe = self.models.get(usual.model)
            (low, high), (narrow, wide) = pipe.config.trained_cells, pipe.config.trained_aspects
            fits = dict(
                count=True,
                seed=True,
                label=asked.label in ("", *pipe.labels),
                cells=low <= asked.cells <= high and asked.cells % pipe.config.size_multiple == 0,
                shape=narrow <= asked.aspect <= wide,
            )
            kept = {name: getattr(asked, name) for name, fit in fits.items() if fit}
            return generate_values(replace(usual, **kept), values[-1], pipe, self.models.names)

    def marked(self, session: Session, *values):
        """The cells that Diffuse would fill, as an image, and whether the latent on the page is another one."""
        if values[0] is None:  # the controls are not yet set
            return gr.skip(), gr.skip()
        with gradio_errors():
            asked, made = generate_request_of(*values), session.coming
            h, w = size = asked.latent_size(self.models.get(asked.model).config.size_multiple)
            grid = img(draw_cells(size, asked.aspect), f"the latent's {w} × {h} cells") + f"{w} × {h} cells"
        if made is None or session.origin:
            return grid, ""
        if not values[-1]:
            asked = replace(asked, seed=made.seed)
        old = [f"{controls.WORDS[f.name]} {getattr(made, f.name) or 'none'}" for f in fields(GenerateRequest)
               if getattr(made, f.name) != getattr(asked, f.name)]  # fmt: skip
        words = f"The latent on the page was made with {', '.join(old)}: press Generate to draw anew."
        return grid, f"<div class=notice role=status>{html.escape(words)}</div>" if old else ""

    def saved(self, session: Session):
        session.row.save(path := place("latent.safetensors"))
        return gr.DownloadButton(value=str(path), interactive=True)

    def loaded(self, session: Session, file: str, *values):
        """A latent file in place of the present latent, for the model that is chosen."""
        with gradio_errors():
            latent, many = Latent.load(file), len(self.page.generate_controls)
            asked = generate_request_of(*values[:many])
            request = replace(asked, count=len(latent), cells=max(latent.size), shape=f"{latent.aspect:.6g}")
            origin = f"latent from {Path(file).name}"
            return self.page.restore(session, request, view_request_of(*values[many:]), latent, origin=origin)


def build(
    models: Models, tabs: Sequence[Callable[[Page], None]], api: Callable[[GenerationService], None]
) -> gr.Blocks:
    """The page with these tabs below its main area; api adds the endpoints for programs."""
    service = GenerationService(models)
    with gr.Blocks(title="r2id", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        gr.HTML(TITLE)
        notice = gr.HTML(elem_id="faults")
        session = gr.State(Session(), time_to_live=LIFE)
        version, large = (gr.Number(0, visible="hidden") for _ in range(2))  # a State has no change without a queue
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=260):
                draw, extra = controls.generate_column()
            with gr.Column(scale=6, min_width=320, elem_id="show"):
                stage = gr.HTML(apply_default_css=False, html_template=text("stage.html"), js_on_load=text("stage.js"))
            with gr.Column(scale=3, min_width=260, elem_id="resample"):
                view, reset = controls.view_column()
                with gr.Row():
                    save = gr.DownloadButton("Save latent", size="sm", min_width=80, interactive=False)
                    load = gr.UploadButton("Load latent", size="sm", min_width=80, file_types=[".safetensors"])
        page = Page(models, service, session, version, stage, draw, view)
        events, named, ratio = Events(page), dict(zip(controls.WORDS, draw, strict=False)), view[1]
        press, follow = extra["press"], extra["follow"]
        page.again = dict(fn=events.show, inputs=[session, *view], outputs=[session, stage, version, large], **AT_ONCE)
        work = dict(inputs=session, outputs=[session, stage], trigger_mode="multiple")
        run = dict(fn=events.generate, **work, **HEAVY)

        opening = blocks.load(events.opened, session, [notice, stage, *page.restored], **LIGHT)
        opening.then(**page.again)
        opening.then(**run).then(**page.again)
        wanted = press.click(events.want, [session, *draw], [session, stage, named["seed"]], **AT_ONCE)
        wanted.success(**run).then(**page.again)
        stage.stop(events.stop, session, stage, **AT_ONCE)
        stage.select(events.select, session, None, **AT_ONCE).then(**page.again)
        stage.input(None, stage, view[3:], js=FROM_STAGE)
        gr.on([control.change for control in view], trigger_mode="always_last", **page.again)
        large.change(events.complete, **work, **LARGE)  # an event of its own: the next view does not wait for it
        reset.click(events.reset, session, view, **AT_ONCE)
        named["model"].change(lambda model: gr.Button(interactive=bool(model)), named["model"], press, **AT_ONCE)
        named["model"].input(events.adapted, draw, draw, **AT_ONCE)
        mark = dict(fn=events.marked, inputs=[session, *draw], outputs=[extra["grid"], extra["note"]], **AT_ONCE)
        gr.on([control.change for control in (*draw, version)], trigger_mode="always_last", **mark)
        wanted.success(**mark)
        to_shape = dict(inputs=[follow, ratio, named["shape"]], outputs=named["shape"])
        gr.on([follow.change, ratio.change], None, **to_shape, js="(follow, r, shape) => follow ? r : shape")
        version.change(events.saved, session, save, **AT_ONCE)
        load.upload(events.loaded, [session, load, *draw, *view], page.restored, **LIGHT).then(**page.again)
        if tabs:
            with gr.Tabs() as strip:
                for tab in tabs:
                    tab(page)
            strip.select(events.turned, session, None, **AT_ONCE)
        api(service)
    return blocks
