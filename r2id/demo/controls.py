"""The page's controls, and the `GenerateRequest` and `ViewRequest` that they describe."""

import math
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio import component_meta

from r2id.demo.assets import function
from r2id.demo.request import MAX_ZOOM, GenerateRequest, ViewRequest
from r2id.limits import SEEDS
from r2id.pipeline import Pipeline
from r2id.sampler import SAMPLERS

MAX_SIDE, MAX_STEPS, MAX_COUNT = 4096, 100, 16  # pixels, denoiser runs, images
SIDE = 512  # long side in pixels of the first image, and after Reset
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
NAMES = {  # fields of GenerateRequest as the page calls them
    "model": "model", "label": "label", "other": "second label", "blend": "share of the second label",
    "count": "number of images", "cells": "latent size", "shape": "latent ratio", "steps": "steps",
    "guidance": "guidance", "sampler": "sampler", "eta": "fresh noise", "seed": "seed",
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


def first_row() -> dict[str, gr.components.Component]:
    """What everybody needs, by name: resolution, model, label, Generate, seed and its lock."""
    limits = dict(precision=0, minimum=1, maximum=MAX_SIDE)
    with gr.Row(elem_id="first-row"):
        with gr.Column(scale=5, min_width=260, elem_id="resolution"):
            side = Number(SIDE, label="Resolution, long side (pixels)", elem_classes="typed", **limits)
            logarithmic_slider(side, 2, 12, math.log2(SIDE), 0.05, "Side")
        model, label = (Dropdown(label=name, min_width=96, scale=2) for name in ("Model", "Label"))
        generate = gr.Button(
            "Generate", variant="primary", interactive=False, min_width=140, scale=2, elem_id="generate"
        )
        with gr.Column(scale=3, min_width=200), gr.Row(elem_id="seed"):
            seed = gr.Number(0, precision=0, minimum=0, maximum=SEEDS - 1, label="Seed", min_width=90)
            lock = gr.Checkbox(False, label="keep this seed", container=False, min_width=90)
    return dict(side=side, model=model, label=label, generate=generate, seed=seed, lock=lock)


def latent_drawer(first: dict) -> tuple[list[gr.components.Component], dict[str, gr.components.Component]]:
    """What else decides the next latent. Returns the controls in the order of GenerateRequest's fields, then the seed's
    lock; and other components by name. first: what `first_row` gave."""
    with gr.Row():
        with gr.Column(min_width=200):
            other = Dropdown([("none", "")], value="", label="Blended with")
            blend = Slider(0, 100, value=50, step=5, precision=0, label="Share of the second label (%)")
            count = Slider(1, MAX_COUNT, value=1, step=1, precision=0, label="Number of images")
        with gr.Column(min_width=200):
            named = dict(label="Latent size, long side (cells)", info="more hold more detail")
            cells = Slider(1, 64, value=8, step=1, precision=0, **named)
            shape = ratio_control("Latent ratio (w : h)")
            with gr.Row():
                follow = gr.Checkbox(False, label="follows the image's ratio", min_width=100, container=False)
                grid = gr.HTML(elem_id="cells")
        with gr.Column(min_width=200):
            named = dict(label="Steps (denoiser runs)", info="from noise to the image; more take longer")
            steps = Slider(1, MAX_STEPS, value=20, step=1, precision=0, **named)
            named = dict(label="Guidance (×, 1 is none)", info="how strongly the label counts")
            guidance = Slider(0, 8, value=1.5, step=0.05, **named)
            sampler = gr.Dropdown(list(SAMPLERS), value="dpm++", label="Sampler")
            eta = Slider(0, 2, value=0, step=0.05, label="Fresh noise at every step (η ×, ddim only)")
    controls = [first["model"], first["label"], other, blend, count, cells, shape]
    controls += [steps, guidance, sampler, eta, first["seed"], first["lock"]]
    return controls, dict(follow=follow, grid=grid)


def image_drawer(side: gr.Number) -> tuple[list[gr.components.Component], gr.Button]:
    """What else decides the image. Returns the controls in the order of ViewRequest's fields, and the button that
    resets them. side: the resolution."""
    limits = dict(precision=0, minimum=1, maximum=MAX_SIDE)
    with gr.Row():
        with gr.Column(min_width=200):
            ratio = ratio_control("Image ratio (w : h)")
            with gr.Row():
                wide = Number(SIDE, label="Width (pixels)", min_width=80, **limits)
                high = Number(SIDE, label="Height (pixels)", min_width=80, **limits)
        with gr.Column(min_width=200):
            fits = "contain goes on beyond the edge, cover crops, stretch distorts"
            fit = gr.Radio(["contain", "cover", "stretch"], label="Fit", info=fits)
            reset = gr.Button("Reset", size="sm")
        with gr.Column(min_width=200):
            zoom = Number(1, minimum=1, maximum=MAX_ZOOM, label="Zoom (×)", elem_classes="typed")
            logarithmic_slider(zoom, 0, math.log2(MAX_ZOOM), 0, 0.05, "Zoom")
            x = Slider(0, 100, value=50, step=0.1, label="Centre, from the left (%)")
            y = Slider(0, 100, value=50, step=0.1, label="Centre, from the top (%)")
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


def default_view(pipe: Pipeline | None) -> ViewRequest:
    """The view that a page opens with: the model's own fit, if there is a model."""
    return ViewRequest(SIDE, fit=pipe.config.fit) if pipe else ViewRequest(SIDE)
