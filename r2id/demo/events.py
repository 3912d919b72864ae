"""The functions behind the events of the main area. They take and return the values of components."""

import html
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gradio as gr

from r2id.demo import keeper
from r2id.demo.assets import text
from r2id.demo.controls import (
    NAMES,
    default_view,
    generate_control_values,
    generate_request_of,
    view_control_values,
    view_request_of,
)
from r2id.demo.illustrations import draw_cells
from r2id.demo.request import LIMITS, MAX_RATIO, GenerateRequest, ViewRequest, from_query, to_dict
from r2id.demo.session import TROUBLES, Session
from r2id.demo.wiring import error_line, gradio_errors, image_html, served_path, stage_value
from r2id.latent import Latent
from r2id.limits import SEEDS


class Events:
    """page: a `Page`."""

    def __init__(self, page):
        self.page, self.models, self.service = page, page.models, page.service

    def open(self, session: Session, http: gr.Request) -> list[Any]:
        """The page was opened: notices, stage, `Page.restored`, keeper. Shows what the link asks for, or the latent
        that all new pages begin with."""
        self.models.scan()
        faults = [f"{name} cannot be used: {fault}" for name, fault in self.models.faults.items()]
        lines = [*map(html.escape, faults), *[text("no_weights.html")] * (not self.models.names)]
        notice = "".join(f"<div class=notice>{line}</div>" for line in lines)
        if not self.models.names:
            return [notice, stage_value(session.idle()), *[gr.skip()] * len(self.page.restored), gr.skip()]
        with gradio_errors():
            values = self.follow_link(session, http) if "model" in http.query_params else None
            if values is None:
                request, view, frame = self.first()
                _, latent = self.service.first_latent(request)
                values = self.page.restore(session, request, view, latent, lock=False, small=frame["thumbs"])
        return [notice, gr.skip(), *values, keeper.ask()]

    def first(self) -> tuple[GenerateRequest, ViewRequest, dict[str, Any]]:
        """What all new pages begin with: request, view and frame."""
        request = self.service.default_request(self.models.names[0])
        view = default_view(self.models.get(request.model))
        return request, view, self.service.first_frame(request, view)

    def first_value(self) -> dict[str, Any] | None:
        """The stage of a page that is sent, before any event; None if it will have to wait for its image."""
        if not self.models.names or "SPACES_ZERO_GPU" in os.environ:  # lends its GPU to events only
            return None
        try:
            return stage_value({**self.first()[2], "decoder": None})
        except Exception as error:
            return stage_value(Session().idle(error_line(error)))

    def follow_link(self, session: Session, http: gr.Request) -> list[Any] | None:
        """`Page.restored` for the link that was opened; None if it cannot be followed. Links made here name a seed;
        in those written by hand, fields that are missing take the model's own defaults."""
        params = dict(http.query_params)
        try:
            if "seed" not in params:
                request = self.service.default_request(params["model"])
                params = to_dict(request, default_view(self.models.get(request.model))) | params
            request, view = from_query(params)
            values = self.page.restore(session, request, view)
        except ValueError as error:
            return gr.Warning(html.escape(f"this link cannot be followed: {error}", quote=False))
        session.submit(request)
        session.view = view
        return values

    def show(self, session: Session, *values) -> list[Any]:
        """A view is wanted: session, stage, version, the number of a large image to be completed, keeper."""
        return self._show(session, lambda: view_request_of(*values))

    def look(self, session: Session, event: gr.EventData) -> list[Any]:
        """The same for a view that the stage asks for."""
        return self._show(session, lambda: ViewRequest(**dict(event.view)), image=bool(event._data.get("image")))

    def _show(self, session: Session, view_of: Callable[[], ViewRequest], **options) -> list[Any]:
        if session.empty:
            return [gr.skip()] * 4 + [keeper.ask()]
        try:
            with self.service.queue.turn((session, "images")):
                shown = self.service.show(session, view_of(), **options)
        except Exception as error:
            return [session, stage_value(session.idle(error_line(error))), session.version, gr.skip(), gr.skip()]
        if not shown:
            return [gr.skip()] * 5
        frame, large = shown
        return [session, stage_value(frame), session.version, large or gr.skip(), gr.skip()]

    def small(self, session: Session):
        """The handle was moved while the server decodes: stage."""
        with gradio_errors(), self.service.queue.turn((session, "images")):
            frame = self.service.small(session)
        return stage_value(frame) if frame else gr.skip()

    def decoder_reported(self, session: Session, event: gr.EventData) -> None:
        """The browser decodes from now on, or cannot and says why."""
        session.trouble = event.reason if event.reason in ("", *TROUBLES) else "missing"
        session.local = not session.trouble

    def _stream(self, frames: Iterator[dict], session: Session):
        """Frames → session, stage. A generator that yields nothing would empty the components."""
        yielded = False
        try:
            for frame in frames:
                yielded = True
                yield session, stage_value(frame)
        except Exception as error:
            yield session, stage_value(session.idle(error_line(error)))
        else:
            if not yielded:
                yield gr.skip(), gr.skip()

    def complete(self, session: Session):
        """Decodes a large image: session, stage."""
        yield from self._stream(self.service.complete(session), session)

    def generate(self, session: Session):
        """Runs what `submit` took: session, stage."""
        yield from self._stream(self.service.generate(session), session)

    def submit(self, session: Session, *values) -> list[Any]:
        """Generate was pressed: session, stage, seed, keeper."""
        with gradio_errors():
            request, ask = generate_request_of(*values), keeper.ask() if session.empty else gr.skip()
            self.models.get(request.model)
            if not values[-1]:
                request = replace(request, seed=secrets.randbelow(SEEDS))
            return [session, stage_value(session.submit(request)), request.seed, ask]

    def keep(self, session: Session):
        """The latent has changed: keeper."""
        return keeper.keep(session) or gr.skip()

    def restore(self, session: Session, event: gr.EventData) -> list[Any]:
        """The browser has sent what it keeps: `Page.restored`, version."""
        skipped = [gr.skip()] * (len(self.page.restored) + 1)
        entries, restarted = keeper.unpack(event.kept, self.models)
        session.tab = session.tab or str(event.tab)
        current = session.merge(entries)
        if restarted and entries:
            gr.Info("The server was restarted. The history of this page was restored from your browser.")
        elif current:
            gr.Info("This page was idle for too long. Its history was restored from your browser.")
        elif session.empty:
            gr.Warning("The server no longer has the latent of this page, and the browser kept none: press Generate.")
        if not current:
            return skipped[:-1] + [session.version or gr.skip()]
        try:
            values = self.page.restore(session, current.request, session.view, lock=True)
        except ValueError:
            return skipped
        return [*values, session.version]

    def stop(self, session: Session):
        return stage_value(session.stop())

    def open_tab(self, session: Session, event: gr.SelectData) -> None:
        session.tab = event.value

    def select(self, session: Session, event: gr.EventData) -> None:
        session.select(event.index)

    def reset(self, session: Session) -> list[Any]:
        return view_control_values(default_view(session.pipe))

    def adapt_to_model(self, *values) -> list[Any]:
        """Another model was chosen: its controls, with its own cells, steps and guidance, and its own label or ratio
        where it was not trained for the ones that were set."""
        with gradio_errors():
            request, default = generate_request_of(*values), self.service.default_request(values[0])
            pipe = self.models.get(default.model)
            narrow, wide = pipe.config.trained_aspects
            keeps = dict(
                count=True,
                seed=True,
                label=request.label in ("", *pipe.labels),
                shape=narrow <= request.aspect <= wide,
            )
            kept = {name: getattr(request, name) for name, keep in keeps.items() if keep}
            return generate_control_values(replace(default, **kept), values[-1], pipe, self.models.names)

    def mark(self, session: Session, *values):
        """The cells of the next latent as an image, and a note if the controls differ from the latent on the page."""
        if values[0] is None:  # the controls are not set yet
            return gr.skip(), gr.skip()
        with gradio_errors():
            request, shown = generate_request_of(*values), session.latest_request
            h, w = size = request.latent_size(self.models.get(request.model).config.size_multiple)
            grid = image_html(draw_cells(size, request.aspect), f"the latent's {w} × {h} cells") + f"{w} × {h} cells"
        if shown is None or session.origin:
            return grid, ""
        if not values[-1]:
            request = replace(request, seed=shown.seed)
        changed = [f"{NAMES[f.name]} {getattr(shown, f.name) or 'none'}" for f in fields(GenerateRequest)
                   if getattr(shown, f.name) != getattr(request, f.name)]  # fmt: skip
        note = f"The latent on the page was made with {', '.join(changed)}: press Generate to make a new one."
        return grid, f"<div class=notice role=status>{html.escape(note)}</div>" if changed else ""

    def save_latent(self, session: Session):
        session.row.save(path := served_path("latent.safetensors"))
        return gr.DownloadButton(value=str(path), interactive=True)

    def load_latent(self, session: Session, file: str, *values) -> list[Any]:
        """Replaces the latent by that of a file, for the model that is chosen: `Page.restored`."""
        with gradio_errors():
            latent, many, name = Latent.load(file), len(self.page.generate_controls), Path(file).name
            if not 1 / MAX_RATIO <= latent.aspect <= MAX_RATIO:
                shown = f"the page shows 1 : {MAX_RATIO} … {MAX_RATIO} : 1, use the endpoint resample"
                raise ValueError(f"{name}: its frame is {latent.aspect:.3g} : 1; {shown}")
            (_, most_rows), (_, most_cells) = LIMITS["count"], LIMITS["cells"]
            if len(latent) > most_rows or max(latent.size) > most_cells:
                held = f"{len(latent)} images of {' x '.join(map(str, latent.size))} cells"
                shown = f"the page takes up to {most_rows} of {most_cells} x {most_cells}, Pipeline.resample more"
                raise ValueError(f"{name}: {held}; {shown}")
            request, view = generate_request_of(*values[:many]), view_request_of(*values[many:])
            request = replace(request, count=len(latent), cells=max(latent.size), shape=f"{latent.aspect:.6g}")
            return self.page.restore(session, request, view, latent, origin=f"latent from {name}")
