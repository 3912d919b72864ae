"""Encodes the user's own image, drawn or uploaded, and shows what the latent loses."""

import base64
import binascii
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gradio as gr
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from r2id.demo.assets import function, template
from r2id.demo.controls import Slider, generate_request_of, view_request_of
from r2id.demo.page import SESSION_SECONDS, Page
from r2id.demo.request import MAX_RATIO, GenerateRequest, sides
from r2id.demo.session import Session, frame_size
from r2id.demo.tabs.compare import ROW_SIDE, row_of, title
from r2id.demo.wiring import BACKGROUND, DECODE, IMMEDIATE, data_uri, gradio_errors
from r2id.image import from_pil, to_pil
from r2id.image_file import open_image
from r2id.latent import Latent
from r2id.pipeline import Pipeline

LONG_SIDE = 2048  # pixels of what is kept of an image
SHOWN_SIDE = 640  # pixels of the image that is cropped on the page
KEPT = 4, 8, 12, 16  # cells whose reconstructions stand side by side
RATIOS = [("its own", ""), *((ratio, ratio) for ratio in ("9:16", "3:4", "1:1", "4:3", "16:9"))]
HINT = "Draw with a finger or the mouse, or upload an image: what a latent keeps of it is shown here."
SCALE = "The higher, the closer to your image: 20 is rough, 30 is good, 40 is hard to tell apart"  # PSNR, dB


@dataclass(frozen=True, eq=False)
class Given:
    """The user's image: upright, in sRGB, its long side at most LONG_SIDE pixels, its ratio within 1:4 … 4:1.

    origin: what to call it. notes: what was done to it.
    """

    image: Image.Image
    origin: str
    notes: tuple[str, ...] = ()


def open_upload(file: str | bytes, origin: str, name: str | None = None) -> Given:
    """Reads an image file, and crops and reduces it to what the page can show. Raises ValueError, see `open_image`."""
    image = open_image(file, name=name, shortest=LONG_SIDE)
    notes = image.info.pop("notes", ())
    width, height = image.size
    if max(width, height) > MAX_RATIO * min(width, height):
        size = min(width, MAX_RATIO * height), min(height, MAX_RATIO * width)
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        image = image.crop((left, top, left + size[0], top + size[1]))
        shape = f"{MAX_RATIO} : 1, the widest" if width > height else f"1 : {MAX_RATIO}, the tallest"
        notes += (f"it is cropped to {shape} frame that the page can show",)
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    return Given(image, origin, notes)


def cropped(given: Given, region: Sequence[float]) -> Given:
    """The part (left, top, right, bottom) in fractions of the image. Raises ValueError for anything else."""
    try:
        edges = [min(max(float(edge), 0.0), 1.0) for edge in region]
        (left, top, right, bottom), (width, height) = edges, given.image.size
        box = [round(left * width), round(top * height), round(right * width), round(bottom * height)]
        for axis in (0, 1):  # rounding must not make the widest frame wider
            box[axis + 2] = min(box[axis + 2], box[axis] + MAX_RATIO * (box[3 - axis] - box[1 - axis]))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("the part of your image did not arrive: move it again") from None
    return replace(given, image=given.image.crop(box))


def crop_value(given: Given | None, ratio: str) -> dict | None:
    """The value of the component that crops; ratio: of the frame, "" for the image's own."""
    if given is None:
        return None
    shown = given.image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    shown.convert("RGBA").save(file := io.BytesIO(), "PNG")
    width, height = shown.size
    return dict(
        src=data_uri(file.getvalue()), width=width, height=height, ratio=sides(1, ratio)[1] if ratio else width / height
    )


def encode(pipe: Pipeline, given: Given, request: GenerateRequest) -> tuple[Tensor, Latent]:
    """The image (1, C, H, W) in [0, 1], reduced to the size that the encoder sees, and its latent with the request's
    number of cells."""
    image_BCHW = from_pil(given.image, pipe.config.channels, pipe.config.background)[None]
    latent = pipe.encode(image_BCHW, latent_size=request.latent_size(pipe.config.size_multiple))
    height, width = image_BCHW.shape[2:]
    if (reduce := min(height, width) / pipe.config.encoder_size) > 1:
        image_BCHW = F.interpolate(image_BCHW, size=(round(height / reduce), round(width / reduce)), mode="area")
    return image_BCHW, latent


def fit_request(given: Given, request: GenerateRequest) -> GenerateRequest:
    """The request for one image, with the frame of the given one."""
    width, height = given.image.size
    unit = math.gcd(width, height)
    return replace(request, count=1, shape=f"{width // unit}:{height // unit}")


def psnr(image_BCHW: Tensor, again_BCHW: Tensor) -> str:
    """Peak signal-to-noise ratio of images in [0, 1], in words."""
    error = (again_BCHW - image_BCHW).square().mean().item()
    return f"{-10 * math.log10(error):.1f} dB" if error else "infinite"


def reconstruction_html(pipe: Pipeline, given: Given, request: GenerateRequest) -> str:
    """The image, its reconstruction and how close they are, as HTML."""
    image_BCHW, latent = encode(pipe, given, fit_request(given, request))
    (height, width), (h, w) = image_BCHW.shape[2:], latent.size
    again_BCHW = pipe.resample(latent, size=(height, width), fit="stretch")
    large = to_pil(pipe.resample(latent, size=frame_size(latent, ROW_SIDE), fit="contain")[0])
    images = [
        (f"{given.origin}, {width} × {height} pixels", to_pil(image_BCHW[0])),
        (f"reconstruction, {width} × {height} pixels", to_pil(again_BCHW[0])),
        (f"the same latent, {large.width} × {large.height} pixels", large),
    ]
    words = f"<b>What {w} × {h} cells keep: PSNR {psnr(image_BCHW, again_BCHW)}</b>. {SCALE}. "
    words += f"Measured at {width} × {height} pixels, the size of the training images."
    notes = "".join(f"<p>Note: {html.escape(note)}.</p>" for note in given.notes)
    return f"<p>{words}</p>{notes}{row_of(images, 'own image')}"


def kept_html(pipe: Pipeline, given: Given, request: GenerateRequest) -> str:
    """What latents of several sizes keep of the image, with their PSNR, as HTML."""
    (low, high), multiple = pipe.config.trained_cells, pipe.config.size_multiple
    images = []
    for cells in [n for n in KEPT if low <= n <= high and n % multiple == 0] or [high]:
        image_BCHW, latent = encode(pipe, given, fit_request(given, replace(request, cells=cells)))
        again_BCHW = pipe.resample(latent, size=tuple(image_BCHW.shape[2:]), fit="stretch")
        (h, w), numbers = latent.size, latent.tensor.numel()
        caption = f"{w} × {h} cells, {numbers:,} numbers: PSNR {psnr(image_BCHW, again_BCHW)}"
        images.append((caption, to_pil(again_BCHW[0])))
    return title("What more cells keep", "the same image from latents of several sizes") + row_of(images, "kept")


def reconstruction(page: Page, given: Given | None, cells: int, *values):
    """The reconstruction, what more cells keep, and the button that puts the latent on the page."""
    if given is None:
        return (yield HINT, "", gr.Button(interactive=False))
    with gradio_errors():
        request = replace(generate_request_of(*values), cells=int(cells))
        pipe = page.models.get(request.model)
        yield reconstruction_html(pipe, given, request), gr.skip(), gr.Button(interactive=True)
        yield gr.skip(), kept_html(pipe.low_priority, given, request), gr.skip()


def put(page: Page, session: Session, given: Given, cells: int, *values) -> list:
    """Encodes the image, and shows its latent as the large image."""
    with gradio_errors():
        many = len(page.generate_controls)
        request = fit_request(given, replace(generate_request_of(*values[:many]), cells=int(cells)))
        _, latent = encode(page.models.get(request.model), given, request)
        return page.restore(
            session, request, view_request_of(*values[many:]), latent, lock=values[many - 1], origin=given.origin
        )


def fitted(page: Page, model: str | None, cells: int):
    """Slider and board for the chosen model."""
    if not model:
        return gr.skip(), gr.skip()
    with gradio_errors():
        config = page.models.get(model).config
    (low, high), size_multiple = config.trained_cells, config.size_multiple
    cells = cells if low <= cells <= high else max(config.defaults.latent_size)
    ground = [round(255 * c) for c in (config.background * 3)[:3]]
    slider = gr.Slider(low, max(high, low + size_multiple), step=size_multiple, value=cells, interactive=low < high)
    return slider, gr.HTML(ground="rgb({}, {}, {})".format(*ground), ink="#fff" if sum(ground) < 384 else "#000")


def build(page: Page) -> None:
    with gr.Tab("Your image"):
        given = gr.State(None, time_to_live=SESSION_SECONDS)  # without a queue, a State has no change
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                board = build_given(given)
            with gr.Column(scale=2, min_width=280):
                cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size of your image (cells)")
                seen, kept = gr.HTML(HINT), gr.HTML()
                button = gr.Button("Put it on the page", variant="primary", interactive=False)
    model = page.generate_controls[0]
    model.change(partial(fitted, page), [model, cells], [cells, board], **IMMEDIATE)
    looked = dict(fn=partial(reconstruction, page), inputs=[given, cells, *page.generate_controls])
    looked["outputs"] = [seen, kept, button]
    gr.on([given.change, cells.change, model.change], **looked, trigger_mode="always_last", **BACKGROUND)
    inputs = [page.session, given, cells, *page.generate_controls, *page.view_controls]
    to_page = button.click(partial(put, page), inputs, page.restored, **BACKGROUND)
    to_page.then(**page.refresh)
    to_page.success(None, None, None, js=function("showStage"))


def build_given(given: gr.State) -> gr.HTML:
    """A board to draw on, and an upload with a frame that crops it, which set `given`. Returns the board."""

    def drawn(data: str | None):
        """The board's PNG as a data URI ("" if it was cleared) → Given."""
        if not data:
            return None
        with gradio_errors():
            try:
                png = base64.b64decode(data.partition(",")[2], validate=True)
            except binascii.Error:
                raise ValueError("the drawing did not arrive: draw it again") from None
            return open_upload(png, "your drawing", "drawing")

    def uploaded(file: str, ratio: str):
        """The whole image, the component that crops it, which sends the part, and the choice of its frame."""
        with gradio_errors():
            whole = open_upload(file, f"your image {Path(file).name}")
            return whole, crop_value(whole, ratio), gr.Radio(visible=True)

    def part(whole: Given | None, event: gr.EventData):
        if whole is None:
            return gr.skip()
        with gradio_errors():
            return cropped(whole, event.region)

    gr.HTML("<h3>Draw something</h3>or upload an image")
    board = gr.HTML(None, **template("board"), ground="#000", ink="#fff")
    upload = gr.UploadButton("Upload an image", file_types=["image"])
    crop, whole = gr.HTML(None, **template("crop")), gr.State(None, time_to_live=SESSION_SECONDS)
    ratio = gr.Radio(RATIOS, value="", label="Frame of your image (w : h)", visible=False)
    drawing = board.input(drawn, board, given, trigger_mode="always_last", **DECODE)
    drawing.success(lambda: (None, None, gr.Radio(visible=False)), None, [whole, crop, ratio], **DECODE)
    upload.upload(uploaded, [upload, ratio], [whole, crop, ratio], **BACKGROUND)
    crop.input(part, whole, given, trigger_mode="always_last", **DECODE)
    ratio.input(crop_value, [whole, ratio], crop, **DECODE)
    return board
