"""Compares one latent at many sizes and with bicubic enlargement; one label and seed at latent sizes and by models."""

import html
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import gradio as gr
import torch
from PIL import Image

from r2id.demo.assets import constant, function, template, text
from r2id.demo.controls import Dropdown, view_request_of
from r2id.demo.illustrations import (
    SIZES,
    decode_view,
    enlarge_bicubic,
    equal_numbers_pixels,
    fit_inside,
    resize_box,
)
from r2id.demo.page import Page
from r2id.demo.request import GenerateRequest
from r2id.demo.session import Session, frame_size, label_text
from r2id.demo.wiring import BACKGROUND, GENERATE, IMMEDIATE, gradio_errors, image_html, stoppable
from r2id.image import to_pil
from r2id.interpolation import share_done

ROW_SIDE = 256  # long side in pixels of an image in a row
WIPE_SIDE = 320  # long side in pixels of an image beside its enlargement
MAX_LATENT_SIZES = 4
STRIP = "One latent, every size", "long side 8 to 1024 pixels, shown equally large"
SIZES_TITLE = "Latents of several sizes", "same label and seed, generated at each size"
MODELS_TITLE = "Two models", "same seed, and same label where both know it, each with its own defaults"
STOP_SIZES, STOP_MODELS = "Stop the sizes", "Stop the models"

MARK = dict(html_template="", js_on_load=text("seen.js"), elem_classes="mark")


def row_of(images: Sequence[tuple[str, Image.Image]], alt: str) -> str:
    """HTML of (caption, image) side by side, equally large. alt: what all images show."""
    parts = []
    for caption, image in images:
        image = resize_box(image, fit_inside((ROW_SIDE, ROW_SIDE), image.width / image.height))
        parts.append(
            f"<figure>{image_html(image, f'{alt}, {caption}')}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return f'<div class="images{" many" * (len(parts) > MAX_LATENT_SIZES)}">{"".join(parts)}</div>'


def title(heading: str, status: str) -> str:
    return f"<h3 class=title>{heading} <small role=status>{html.escape(status)}</small></h3>"


def strip(session: Session) -> Iterator[tuple]:
    """Decodes the selected latent at all sizes: images, title with progress. Ends early when the latent changes."""
    pipe, row, images = session.pipe and session.pipe.low_priority, session.row, []
    yield gr.skip(), title(*STRIP)
    for height, width in [frame_size(row, side) for side in SIZES] if row else ():
        image_CHW = torch.empty(pipe.config.channels, height, width)
        for box, tile_BCHW in pipe.resample_tiles(row, size=(height, width), fit="contain"):
            left, top, right, bottom = box
            if session.row is not row:
                return
            image_CHW[:, top:bottom, left:right] = tile_BCHW[0]
            session.wait_until_still()  # a slider in motion waits for one tile at most
            if max(height, width) > ROW_SIDE:
                progress = f"{width} × {height} pixels: {share_done(box, (height, width)):.0%} decoded"
                yield gr.skip(), title(STRIP[0], progress)
        images.append((f"{width} × {height} pixels", to_pil(image_CHW)))
        if max(height, width) >= ROW_SIDE:
            yield row_of(images, "decoded to pixels"), title(*STRIP)


def wipe(session: Session, *values):
    """The current view of the selected latent, enlarged and decoded."""
    if not (row := session.row):
        return gr.skip()
    try:
        view = replace(view_request_of(*values), side=WIPE_SIDE)
    except ValueError:  # shown by the stage
        return gr.skip()
    pipe = session.pipe
    before = image_html(enlarge_bicubic(pipe, row, view), "the current view, enlarged")
    after = image_html(decode_view(pipe, row, view), "the current view, decoded from the latent")
    (height, width), (h, w), (_, channels, *_) = view.size, row.size, row.tensor.shape
    rows, columns = equal_numbers_pixels(row, pipe.config.channels)
    words = f"Left: an image of {columns} × {rows} pixels, which are as many numbers as the latent holds "
    words += f"({w} × {h} cells of {channels}), enlarged. "
    words += f"Right: the latent decoded at {width} × {height} pixels. Zoom into the large image to look closer."
    return dict(images=before + after, ratio=width / height, words=words)


def generate_each(
    page: Page, session: Session, requests: dict[str, GenerateRequest], heading: tuple[str, str], stop_name: str
) -> Iterator[tuple]:
    """Generates the named requests one by one: images with the time that they took, title with progress. stop_name: of
    the button that ends it."""
    images = []
    for name, request in requests.items():
        pipe, spent = page.models.get(request.model), 0.0
        steps = page.service.diffuse_steps(request)
        for index in range(1, request.steps + 1):
            if stop_name in session.stopped:
                return (yield gr.skip(), title(*heading))
            start = time.perf_counter()
            latent = next(steps).latent
            spent += time.perf_counter() - start
            yield gr.skip(), title(heading[0], f"{name}: step {index} of {request.steps}")
        start = time.perf_counter()
        image = to_pil(pipe.resample(latent, size=frame_size(latent, ROW_SIDE), fit="contain")[0])
        times = f"generated in {1000 * spent:.0f} ms, decoded in {1000 * (time.perf_counter() - start):.0f} ms"
        images.append((f"{name}: {times}", image))
        yield row_of(images, label_text(request)), title(*heading)


def repeatable_request(session: Session) -> GenerateRequest:
    """The request that made the large image. Raises ValueError for a latent that was not generated here."""
    if session.row_request is None or session.origin:
        raise ValueError("the latent on the page was not generated, so it has no label and seed: press Generate first")
    return session.row_request


def latent_sizes(low: int, high: int, size_multiple: int) -> list[int]:
    """Up to MAX_LATENT_SIZES multiples of size_multiple, evenly spread over low…high, both ends included."""
    sizes = range(-(-low // size_multiple) * size_multiple, high + 1, size_multiple)
    return sorted({sizes[round(i * (len(sizes) - 1) / (MAX_LATENT_SIZES - 1))] for i in range(MAX_LATENT_SIZES)})


def build(page: Page) -> None:
    with gr.Tab("Compare") as tab:
        build_strip(page, tab)
        build_wipe(page, tab)
        build_sizes(page)
        build_models(page, tab)


def build_strip(page: Page, tab: gr.Tab) -> None:
    """The image on the page, decoded at every size."""
    mark, heading, images = gr.HTML(**MARK), gr.HTML(title(*STRIP)), gr.HTML()
    gr.on([page.version.change, tab.select], None, None, mark, js=function("unique"))
    mark.seen(strip, page.session, [images, heading], trigger_mode="always_last", **BACKGROUND)


def build_wipe(page: Page, tab: gr.Tab) -> None:
    """The view on the page, decoded and enlarged."""
    mark, _ = gr.HTML(**MARK), gr.HTML(title("Decoded or enlarged?", "drag the line, or use the arrow keys"))
    pair = gr.HTML(**template("wipe"))
    changes = [page.version.change, tab.select, *[control.change for control in page.view_controls[1:]]]
    gr.on(changes, None, None, mark, js=function("unique"))
    mark.seen(wipe, [page.session, *page.view_controls], pair, trigger_mode="always_last", **BACKGROUND)


def build_sizes(page: Page) -> None:
    """The label and seed on the page, generated at several latent sizes."""

    def generate(session: Session):
        with gradio_errors(), page.service.queue.turn(session):
            request = repeatable_request(session)
            config = page.models.get(request.model).config
            requests = [replace(request, cells=n) for n in latent_sizes(*config.trained_cells, config.size_multiple)]
            names = ["{1} × {0} cells".format(*d.latent_size(config.size_multiple)) for d in requests]
            yield from generate_each(page, session, dict(zip(names, requests, strict=True)), SIZES_TITLE, STOP_SIZES)

    heading = gr.HTML(title(*SIZES_TITLE))
    with gr.Row():
        press = gr.Button("Generate at several sizes", scale=0, min_width=280)
        halt = gr.Button(STOP_SIZES, scale=0, min_width=160, interactive=False)
    wire(page, press, halt, generate, [page.session], [gr.HTML(), heading], SIZES_TITLE)


def build_models(page: Page, tab: gr.Tab) -> None:
    """The label and seed on the page, generated by two models."""

    def generate(session: Session, *models: str):
        with gradio_errors(), page.service.queue.turn(session):
            request = repeatable_request(session)
            if models[0] == models[1]:
                raise ValueError(f"{models[0]} twice: choose two different models")
            requests = [request_for(page, request, model) for model in models]
            names = [f"{d.model}, {label_text(d)}, {d.cells} cells, {d.steps} steps" for d in requests]
            yield from generate_each(page, session, dict(zip(names, requests, strict=True)), MODELS_TITLE, STOP_MODELS)

    def choices(first: str, second: str):
        """The installed models; a chosen one stays chosen while it is installed."""
        names = page.models.names
        first = first if first in names else next(iter(names), None)
        second = second if second in names else next((name for name in names if name != first), None)
        return gr.Dropdown(names, value=first), gr.Dropdown(names, value=second)

    heading = gr.HTML(title(*MODELS_TITLE))
    with gr.Row():
        models = [Dropdown(label=label, min_width=140) for label in ("First model", "Second model")]
        press = gr.Button("Generate with both", scale=0, min_width=220)
        halt = gr.Button(STOP_MODELS, scale=0, min_width=200, interactive=False)
    gr.on([page.version.change, tab.select], choices, models, models, **IMMEDIATE)
    wire(page, press, halt, generate, [page.session, *models], [gr.HTML(), heading], MODELS_TITLE)


def request_for(page: Page, request: GenerateRequest, model: str) -> GenerateRequest:
    """The request with the defaults of a model; with its own label too, where it does not know the request's."""
    own, labels = page.service.default_request(model), ("", *page.models.get(model).labels)
    if request.label in labels and request.other in labels:
        own = replace(own, label=request.label, other=request.other, blend=request.blend)
    return replace(own, seed=request.seed)


def wire(page: Page, press: gr.Button, halt: gr.Button, generate: Callable, inputs, outputs, words) -> None:
    """Generates where `press` is pressed, until `halt` is. outputs: images, heading; words: of the heading at rest."""
    press.click(None, None, outputs[1], js=constant(title(words[0], "waiting for its turn")))
    run = stoppable(press, halt, page.session, generate, inputs, outputs, **GENERATE)
    run.failure(None, None, outputs[1], js=constant(title(*words)))
