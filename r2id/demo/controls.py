"""The controls of a request and of a view, and their values as `GenerateRequest` and `ViewRequest`."""

from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio import component_meta

from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.limits import SEEDS
from r2id.pipeline import Pipeline
from r2id.sampler import SAMPLERS

MAX_SIDE, MAX_STEPS, MAX_COUNT = 4096, 100, 16  # pixels, denoiser runs, images
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
WORDS = {  # GenerateRequest's fields where a person reads them
    "model": "model", "label": "label", "other": "second label", "blend": "share of the second label",
    "count": "images at once", "cells": "latent size", "shape": "latent ratio", "steps": "steps",
    "guidance": "guidance", "sampler": "sampler", "eta": "η", "seed": "seed",
}  # fmt: skip

# JavaScript: controls follow each other without asking the server.
ASPECT = "(t => +`${t}`.split(':').reduce((w, h) => w / h))"  # of '16:9' or '1.78'
TO_RATIO = f"v => {RATIOS}.find(t => Math.abs(v - Math.log2({ASPECT}(t))) < 0.01) ?? (2 ** v).toFixed(2)"
TO_SIDE = "v => { const s = 2 ** v, unit = s < 64 ? 1 : s < 1024 ? 8 : 64; return Math.round(s / unit) * unit }"
TO_ZOOM = "v => +(2 ** v).toPrecision(3)"
LOG, LOG_ASPECT = "v => Math.log2(v) || 0", f"t => Math.log2({ASPECT}(t)) || 0"
SIZE = f"""(s, t) => {{ const a = {ASPECT}(t) || 1;
    return [Math.round(s * Math.min(1, a)) || 1, Math.round(s / Math.max(1, a)) || 1] }}"""
FROM_SIZE = f"""(w, h, s, t) => !w || !h || `${{({SIZE})(s, t)}}` === `${{[w, h]}}` ? [s, t]
    : [Math.max(w, h), w === h ? '1:1' : `${{w}}:${{h}}`]"""


# For every class of a component Gradio would write a .pyi beside its file.
component_meta.create_or_modify_pyi = lambda *_: None


class Slider(gr.Slider):
    def preprocess(self, payload):  # a number being typed is no mistake: the 5 of 512 is brought into range
        return self.value if payload is None else min(max(payload, self.minimum), self.maximum)


class Number(gr.Number):
    def preprocess(self, payload):
        return self.value if payload is None else super().preprocess(min(max(payload, self.minimum), self.maximum))


def logarithmic(control, low: float, high: float, start: float, step: float, text: str, log: str) -> None:
    """A slider of log2 under a control; the control is what counts. text, log: JavaScript, from and to log2."""
    slider = gr.Slider(low, high, start, step=step, label=control.label, show_label=False, elem_classes="drawn")
    slider.input(None, slider, control, js=text)
    # The slider stays where it was put, as near as the control's value comes to it.
    control.change(None, [control, slider], slider, js=f"(v, s) => ({text})(s) == v ? s : ({log})(v)")


def ratio_control(title: str) -> gr.Dropdown:
    """An aspect ratio: chosen, typed or drawn."""
    control = gr.Dropdown(RATIOS, value="1:1", allow_custom_value=True, label=title, elem_classes="typed")
    logarithmic(control, -2, 2, 0, 0.02, TO_RATIO, LOG_ASPECT)
    return control


def generate_column() -> tuple[list[gr.components.Component], dict[str, gr.components.Component]]:
    """The controls of a request in the order of its fields, then the lock of the seed; and what else stands there."""
    gr.HTML("<h2>Draw <small>makes a latent</small></h2>")
    with gr.Row():
        label, model = (gr.Dropdown(label=name, min_width=80) for name in ("Label", "Model"))
    with gr.Row():
        other = gr.Dropdown([("none", "")], value="", label="Blended with", min_width=80)
        blend = Slider(0, 100, value=50, step=5, precision=0, label="Share (%)", min_width=80, elem_classes="narrow")
    count = Slider(1, MAX_COUNT, value=1, step=1, precision=0, label="Images at once")
    cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size, long side (cells)")
    shape = ratio_control("Latent ratio (w : h)")
    with gr.Row():
        follow = gr.Checkbox(False, label="follows the image's ratio", min_width=100)
        grid = gr.HTML(elem_id="cells")
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, maximum=SEEDS - 1, label="Seed", min_width=100)
        lock = gr.Checkbox(False, label="keep this seed", min_width=100)
    press = gr.Button("Diffuse", variant="primary", interactive=False)
    note = gr.HTML(elem_id="note")
    with gr.Accordion("Advanced", open=False):
        steps = Slider(1, MAX_STEPS, value=20, step=1, precision=0, label="Steps (denoiser runs)")
        guidance = Slider(0, 8, value=1.5, step=0.05, label="Guidance (×, 1 is none)")
        sampler = gr.Dropdown(list(SAMPLERS), value="dpm++", label="Sampler")
        eta = Slider(0, 2, value=0, step=0.05, label="η: fresh noise at every step (×, ddim only)")
    controls = [model, label, other, blend, count, cells, shape, steps, guidance, sampler, eta, seed, lock]
    return controls, dict(follow=follow, grid=grid, note=note, press=press)


def view_column() -> tuple[list[gr.components.Component], gr.Button]:
    """The controls of a view in the order of its fields, and the button that resets them."""
    gr.HTML(
        "<h2>Resample <small>the same latent</small></h2><p class=hint>Drag <b>Resolution</b>: no second diffusion, "
        "no enlargement; every size is decoded anew from the same few cells.</p>"
    )
    limits = dict(precision=0, minimum=1, maximum=MAX_SIDE)
    side = Number(256, label="Resolution, long side (pixels)", elem_classes="typed", **limits)
    logarithmic(side, 2, 12, 8, 0.05, TO_SIDE, LOG)
    ratio = ratio_control("Image ratio (w : h)")
    with gr.Row():
        wide = Number(256, label="Width (pixels)", min_width=80, **limits)
        high = Number(256, label="Height (pixels)", min_width=80, **limits)
    fit = gr.Radio(["contain", "cover", "stretch"], label="Fit", info="go on beyond the edge, cut, or pull")
    zoom = Number(1, minimum=1, maximum=64, label="Zoom (×)", elem_classes="typed")
    logarithmic(zoom, 0, 6, 0, 0.05, TO_ZOOM, LOG)
    x = Slider(0, 100, value=50, step=0.1, label="Centre, from the left (%)")
    y = Slider(0, 100, value=50, step=0.1, label="Centre, from the top (%)")
    reset = gr.Button("Reset", size="sm")
    gr.on([side.change, ratio.change], None, [side, ratio], [wide, high], js=SIZE)
    typed = [event for control in (wide, high) for event in (control.submit, control.blur)]
    gr.on(typed, None, [wide, high, side, ratio], [side, ratio], js=FROM_SIZE)
    return [side, ratio, fit, x, y, zoom], reset


def generate_request_of(
    model, label, other, blend, count, cells, shape, steps, guidance, sampler, eta, seed, lock
) -> GenerateRequest:
    """The request that the controls describe: there, the blend is in percent, and η counts with DDIM only."""
    blend, eta = blend / 100 if other else 0.0, eta if sampler == "ddim" else 0.0
    size = dict(count=int(count), cells=int(cells), shape=str(shape))
    how = dict(steps=int(steps), guidance=guidance, sampler=sampler, eta=eta, seed=int(seed))
    return GenerateRequest(model or "", label or "", other or "", blend, **size, **how)


def generate_values(request: GenerateRequest, lock: bool, pipe: Pipeline, models: list[str]) -> list[Any]:
    """The controls at this request, with the choices and ranges of its model."""
    (low, high), size_multiple, (narrow, wide) = (
        pipe.config.trained_cells,
        pipe.config.size_multiple,
        pipe.config.trained_aspects,
    )
    trained = f"trained from {narrow:.2f} to {wide:.2f}" if narrow < wide else f"trained at {wide:.3g} only"
    ends = min(low, request.cells), max(high, low + size_multiple, request.cells)  # a slider needs two positions
    special = dict(
        model=gr.Dropdown(models, value=request.model),
        label=gr.Dropdown([*pipe.labels, ("any", "")], value=request.label),
        other=gr.Dropdown([("none", ""), *pipe.labels], value=request.other),
        blend=100 * request.blend if request.other else 50,
        cells=gr.Slider(*ends, step=size_multiple, value=request.cells),
        shape=gr.Dropdown(RATIOS, value=request.shape, allow_custom_value=True, info=trained),
    )
    return [*(asdict(request) | special).values(), lock]


def view_request_of(side, ratio, fit, x, y, zoom) -> ViewRequest:
    """The view that the controls describe: there, x and y are in percent."""
    return ViewRequest(int(side), str(ratio), fit, x / 100, y / 100, zoom)


def view_values(view: ViewRequest) -> list[Any]:
    return [view.side, view.ratio, view.fit, 100 * view.x, 100 * view.y, view.zoom]


def usual_fit(pipe: Pipeline) -> str:
    """The model's own fit, among those on the page."""
    return pipe.config.fit.replace("published", "cover")
