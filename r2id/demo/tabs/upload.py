"""Encodes the user's own image, drawn or uploaded, and shows what the latent loses."""

import base64
import binascii
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from r2id.demo.assets import function, template
from r2id.demo.controls import Slider, generate_request_of, view_request_of
from r2id.demo.page import SESSION_SECONDS, Page
from r2id.demo.request import GenerateRequest
from r2id.demo.session import Session, frame_size
from r2id.demo.tabs.compare import ROW_SIDE, row_of
from r2id.demo.wiring import BACKGROUND, DECODE, IMMEDIATE, gradio_errors
from r2id.image import from_pil, to_pil
from r2id.image_file import MAX_IMAGE_PIXELS
from r2id.latent import Latent
from r2id.pipeline import Pipeline

MOST = 1024  # long side in pixels of what is kept of an image
HINT = "Draw with a finger or the mouse, or upload an image: how well the latent holds it is shown here."


@dataclass(frozen=True, eq=False)
class Given:
    """What the user gave, the right way up and MOST pixels long at most; origin: what to call it."""

    image: Image.Image
    origin: str


def opened(file: Path | io.BytesIO, name: str) -> Image.Image:
    """An image file of any kind; of an animation, the first frame. Raises ValueError, one line, for other files."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height <= MAX_IMAGE_PIXELS:
                image = ImageOps.exif_transpose(image)
                image.thumbnail((MOST, MOST))
                return image
    except Exception:  # decoders raise whatever a broken file leads them into
        raise ValueError(f"{name}: not an image that can be read; give a PNG, JPEG, WebP or GIF file") from None
    raise ValueError(f"{name} of {width} × {height} pixels: must have at most {MAX_IMAGE_PIXELS:,}, shrink it first")


def encoded(pipe: Pipeline, given: Given, request: GenerateRequest) -> tuple[Tensor, Latent]:
    """The image, (1, C, H, W) in [0, 1], at the training size at most, and its latent, with the cells of request."""
    image_BCHW = from_pil(given.image, pipe.config.channels, pipe.config.background)[None]
    latent = pipe.encode(image_BCHW, latent_size=request.latent_size(pipe.config.size_multiple))
    height, width = image_BCHW.shape[2:]
    if (reduce := min(height, width) / pipe.config.encoder_size) > 1:
        image_BCHW = F.interpolate(image_BCHW, size=(round(height / reduce), round(width / reduce)), mode="area")
    return image_BCHW, latent


def described(given: Given, request: GenerateRequest) -> GenerateRequest:
    """The request with as many cells and this image's frame. Raises ValueError for a frame beyond 1:4…4:1."""
    width, height = given.image.size
    unit = math.gcd(width, height)
    return replace(request, count=1, shape=f"{width // unit}:{height // unit}")


def loss(pipe: Pipeline, given: Given, request: GenerateRequest) -> str:
    """The image, its reconstruction and the error between them, as HTML."""
    image_BCHW, latent = encoded(pipe, given, described(given, request))
    (height, width), (h, w) = image_BCHW.shape[2:], latent.size
    again_BCHW = pipe.resample(latent, size=(height, width), fit="stretch")
    error = (again_BCHW - image_BCHW).square().mean().item()
    ratio = f"{-10 * math.log10(error):.1f} dB" if error else "infinite"
    large = to_pil(pipe.resample(latent, size=frame_size(latent, ROW_SIDE), fit="contain")[0])
    images = [
        (f"{given.origin}, {width} × {height} pixels", to_pil(image_BCHW[0])),
        (f"reconstruction, {width} × {height} pixels", to_pil(again_BCHW[0])),
        (f"the same latent, {large.width} × {large.height} pixels", large),
    ]
    words = (
        f"<b>Reconstruction error: PSNR {ratio}</b> (higher is better), mean squared error {error:.2g} of values from "
    )
    words += f"0 to 1, with {w} × {h} cells, over {width} × {height} pixels, the size of the training images."
    return f"<p>{words}</p>{row_of(images, 'own image')}"


def build(page: Page) -> None:
    def drawn(data: str | None):
        """The board's PNG as a data URI, "" where it was cleared → what is given."""
        if not data:
            return None
        with gradio_errors():
            try:
                png = base64.b64decode(data.partition(",")[2], validate=True)
            except binascii.Error:
                raise ValueError("the drawing did not arrive: draw it again") from None
            return Given(opened(io.BytesIO(png), "drawing"), "your drawing")

    def uploaded(file: str):
        with gradio_errors():
            name = Path(file).name
            return Given(opened(Path(file), name), f"your image {name}")

    def looked(given: Given | None, cells: int, *values):
        if given is None:
            return HINT, gr.Button(interactive=False)
        with gradio_errors():
            request = replace(generate_request_of(*values), cells=int(cells))
            return loss(page.models.get(request.model), given, request), gr.Button(interactive=True)

    def put(session: Session, given: Given, cells: int, *values):
        with gradio_errors():
            many = len(page.generate_controls)
            request = described(given, replace(generate_request_of(*values[:many]), cells=int(cells)))
            _, latent = encoded(page.models.get(request.model), given, request)
            return page.restore(
                session, request, view_request_of(*values[many:]), latent, lock=values[many - 1], origin=given.origin
            )

    def fitted(model: str | None, cells: int):
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

    with gr.Tab("Your own image"):
        given = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                board = gr.HTML(None, **template("board"), ground="#000", ink="#fff")
                upload = gr.UploadButton("Upload an image", file_types=["image"])
            with gr.Column(scale=2, min_width=280):
                cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size of your image (cells)")
                seen = gr.HTML(HINT)
                button = gr.Button("Put it on the page", variant="primary", interactive=False)

    page.generate_controls[0].change(fitted, [page.generate_controls[0], cells], [cells, board], **IMMEDIATE)
    board.input(drawn, board, given, trigger_mode="always_last", **DECODE)  # without a queue, a State has no change
    upload.upload(uploaded, upload, given, **BACKGROUND)
    changes = [given.change, cells.change, page.generate_controls[0].change]
    gr.on(
        changes,
        looked,
        [given, cells, *page.generate_controls],
        [seen, button],
        trigger_mode="always_last",
        **BACKGROUND,
    )
    to_page = button.click(
        put, [page.session, given, cells, *page.generate_controls, *page.view_controls], page.restored, **BACKGROUND
    )
    to_page.then(**page.refresh)
    to_page.success(None, None, None, js=function("showStage"))
