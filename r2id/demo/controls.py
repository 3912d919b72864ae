"""The page's controls, and the `GenerateRequest` and `ViewRequest` that they describe."""

from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio import component_meta

from r2id.demo.assets import function
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.limits import SEEDS
from r2id.pipeline import Pipeline
from r2id.sampler import SAMPLERS

MAX_SIDE, MAX_STEPS, MAX_COUNT = 4096, 100, 16  # pixels, denoiser runs, images
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
NAMES = {  # fields of GenerateRequest as the page calls them
    "model": "model", "label": "label", "other": "second label", "blend": "share of the second label",
    "count": "number of images", "cells": "latent size", "shape": "latent ratio", "steps": "steps",
    "guidance": "guidance", "sampler": "sampler", "eta": "η", "seed": "seed",
}  # fmt: skip

# Gradio would write a .pyi file beside the source of every component class.
component_meta.create_or_modify_pyi = lambda *_: None


class Slider(gr.Slider):
    """Clamps a number that is still being typed, such as the 5 of 512, instead of refusing it."""

    def preprocess(self, payload):
        return self.value if payload is None else min(max(payload, self.minimum), self.maximum)


class Dropdown(gr.Dropdown):
    """Passes values on unchecked: its choices change while the page is open, and requests are checked anyway."""

    def preprocess(self, payload):
        return payload


class Number(gr.Number):
    """The same for a number without a slider."""

    def preprocess(self, payload):
        return self.value if payload is None else super().preprocess(min(max(payload, self.minimum), self.maximum))


def logarithmic_slider(control, low: float, high: float, start: float, step: float, kind: str) -> None:
    """Adds a slider for the log2 of a control's value. kind: "Ratio", "Side" or "Zoom", see web/events.js."""
    slider = gr.Slider(low, high, start, step=step, label=control.label, show_label=False, elem_classes="log-slider")
    slider.input(None, slider, control, js=function(f"to{kind}"))
    control.change(None, [control, slider], slider, js=function(f"from{kind}"))


def ratio_control(title: str) -> gr.Dropdown:
    """An aspect ratio that can be chosen, typed or set with a slider."""
    control = gr.Dropdown(RATIOS, value="1:1", allow_custom_value=True, label=title, elem_classes="typed")
    logarithmic_slider(control, -2, 2, 0, 0.02, "Ratio")
    return control


def generate_column() -> tuple[list[gr.components.Component], dict[str, gr.components.Component]]:
    """Controls in the order of GenerateRequest's fields, then the seed's lock; and the other components by name."""
    gr.HTML("<h2>Generate <small>makes a latent</small></h2>")
    with gr.Row():
        label, model = (Dropdown(label=name, min_width=80) for name in ("Label", "Model"))
    with gr.Row():
        other = Dropdown([("none", "")], value="", label="Blended with", min_width=80)
        blend = Slider(0, 100, value=50, step=5, precision=0, label="Share (%)", min_width=80, elem_classes="narrow")
    count = Slider(1, MAX_COUNT, value=1, step=1, precision=0, label="Number of images")
    cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size, long side (cells)")
    shape = ratio_control("Latent ratio (w : h)")
    with gr.Row():
        follow = gr.Checkbox(False, label="follows the image's ratio", min_width=100)
        grid = gr.HTML(elem_id="cells")
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, maximum=SEEDS - 1, label="Seed", min_width=100)
        lock = gr.Checkbox(False, label="keep this seed", min_width=100)
    generate = gr.Button("Generate", variant="primary", interactive=False)
    note = gr.HTML(elem_id="note")
    with gr.Accordion("Advanced", open=False):
        steps = Slider(1, MAX_STEPS, value=20, step=1, precision=0, label="Steps (denoiser runs)")
        guidance = Slider(0, 8, value=1.5, step=0.05, label="Guidance (×, 1 is none)")
        sampler = gr.Dropdown(list(SAMPLERS), value="dpm++", label="Sampler")
        eta = Slider(0, 2, value=0, step=0.05, label="η: fresh noise at every step (×, ddim only)")
    controls = [model, label, other, blend, count, cells, shape, steps, guidance, sampler, eta, seed, lock]
    return controls, dict(follow=follow, grid=grid, note=note, generate=generate)


def view_column() -> tuple[list[gr.components.Component], gr.Button]:
    """Controls in the order of ViewRequest's fields, and the button that resets them."""
    gr.HTML(
        "<h2>Resample <small>the same latent</small></h2><p class=hint>Drag <b>Resolution</b>: nothing is "
        "generated again or enlarged; every size is decoded from the same few cells.</p>"
    )
    limits = dict(precision=0, minimum=1, maximum=MAX_SIDE)
    side = Number(256, label="Resolution, long side (pixels)", elem_classes="typed", **limits)
    logarithmic_slider(side, 2, 12, 8, 0.05, "Side")
    ratio = ratio_control("Image ratio (w : h)")
    with gr.Row():
        wide = Number(256, label="Width (pixels)", min_width=80, **limits)
        high = Number(256, label="Height (pixels)", min_width=80, **limits)
    fit = gr.Radio(["contain", "cover", "stretch"], label="Fit", info="go on beyond the edge, cut, or pull")
    zoom = Number(1, minimum=1, maximum=64, label="Zoom (×)", elem_classes="typed")
    logarithmic_slider(zoom, 0, 6, 0, 0.05, "Zoom")
    x = Slider(0, 100, value=50, step=0.1, label="Centre, from the left (%)")
    y = Slider(0, 100, value=50, step=0.1, label="Centre, from the top (%)")
    reset = gr.Button("Reset", size="sm")
    gr.on([side.change, ratio.change], None, [side, ratio], [wide, high], js=function("toSize"))
    typed = [event for control in (wide, high) for event in (control.submit, control.blur)]
    gr.on(typed, None, [wide, high, side, ratio], [side, ratio], js=function("fromSize"))
    return [side, ratio, fit, x, y, zoom], reset


def generate_request_of(
    model, label, other, blend, count, cells, shape, steps, guidance, sampler, eta, seed, lock
) -> GenerateRequest:
    """The request that the controls describe. They hold the blend in percent, and an η that only DDIM uses."""
    blend, eta = blend / 100 if other else 0.0, eta if sampler == "ddim" else 0.0
    size = dict(count=int(count), cells=int(cells), shape=str(shape))
    how = dict(steps=int(steps), guidance=guidance, sampler=sampler, eta=eta, seed=int(seed))
    return GenerateRequest(model or "", label or "", other or "", blend, **size, **how)


def generate_control_values(request: GenerateRequest, lock: bool, pipe: Pipeline, models: list[str]) -> list[Any]:
    """Values of the controls for this request, with the choices and ranges of its model."""
    config = pipe.config
    (low, high), (narrow, wide), size_multiple = config.trained_cells, config.trained_aspects, config.size_multiple
    trained = f"trained from {narrow:.2f} to {wide:.2f}" if narrow < wide else f"trained at {wide:.3g} only"
    ends = (
        min(low, request.cells),
        max(high, low + size_multiple, request.cells),
    )  # a slider needs at least two positions
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
    """The view that the controls describe. They hold x and y in percent."""
    return ViewRequest(int(side), str(ratio), fit, x / 100, y / 100, zoom)


def view_control_values(view: ViewRequest) -> list[Any]:
    """Values of the controls for this view."""
    return [view.side, view.ratio, view.fit, 100 * view.x, 100 * view.y, view.zoom]


def default_fit(pipe: Pipeline) -> str:
    """The model's own fit, if the page offers it."""
    return pipe.config.fit
