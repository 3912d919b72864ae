"""An image of the user's own, drawn or uploaded: encoded to a latent, and what that loses."""

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

from r2id.demo.controls import Slider, generate_request_of, view_request_of
from r2id.demo.page import AT_ONCE, LIFE, LIGHT, SLOW, Page, gradio_errors
from r2id.demo.request import GenerateRequest
from r2id.demo.session import Session, whole_size
from r2id.demo.tabs.compare import SHOWN, row_of
from r2id.image import MAX_IMAGE_PIXELS, from_pil, to_pil
from r2id.latent import Latent
from r2id.pipeline import Pipeline

MOST = 1024  # long side in pixels of what is kept of an image
HINT = "Draw with a finger or the mouse, or upload an image: how well the latent holds it is shown here."

# A drawing travels as a PNG with a transparent ground; "input" is triggered after every stroke.
BOARD = """<div class="sketch">
  <canvas width="280" height="280" role="img" aria-label="Board to draw on, with a finger or the mouse"></canvas>
  <button>Clear the board</button>
</div>"""
BOARD_JS = """const board = element.querySelector("canvas"), pen = board.getContext("2d");
let last = null;
const send = image => { props.value = image; trigger("input"); };
const paint = () => { board.style.background = props.ground; };
const line = event => {
  const scale = board.width / board.clientWidth, to = [event.offsetX * scale, event.offsetY * scale];
  Object.assign(pen, { strokeStyle: props.ink, lineWidth: board.width * 0.09, lineCap: "round" });
  pen.beginPath();
  pen.moveTo(...(last ?? to));
  pen.lineTo(...to);
  pen.stroke();
  last = to;
};
board.onpointerdown = event => { if (!event.button) { board.setPointerCapture(event.pointerId); line(event); } };
board.onpointermove = event => { if (last) line(event); };
board.onpointerup = board.onpointercancel = () => { if (last) { last = null; send(board.toDataURL()); } };
element.querySelector("button").onclick = () => { pen.clearRect(0, 0, board.width, board.height); send(""); };
watch("ground", paint);
paint();"""


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
    if (reduce := min(height, width) / pipe.config.training_size) > 1:
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
    large = to_pil(pipe.resample(latent, size=whole_size(latent, SHOWN), fit="contain")[0])
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
            many = len(page.draw)
            request = described(given, replace(generate_request_of(*values[:many]), cells=int(cells)))
            _, latent = encoded(page.models.get(request.model), given, request)
            return page.restore(
                session, request, view_request_of(*values[many:]), latent, lock=values[many - 1], origin=given.origin
            )

    def fitted(model: str | None, cells: int):
        """Slider and board for another model."""
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
        given = gr.State(None, time_to_live=LIFE)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                board = gr.HTML(None, html_template=BOARD, js_on_load=BOARD_JS, ground="#000", ink="#fff")
                upload = gr.UploadButton("Upload an image", file_types=["image"])
            with gr.Column(scale=2, min_width=280):
                cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size of your image (cells)")
                seen = gr.HTML(HINT)
                button = gr.Button("Put it on the page", variant="primary", interactive=False)

    page.draw[0].change(fitted, [page.draw[0], cells], [cells, board], **AT_ONCE)
    board.input(drawn, board, given, trigger_mode="always_last", **LIGHT)  # without a queue, a State has no change
    upload.upload(uploaded, upload, given, **SLOW)
    changes = [given.change, cells.change, page.draw[0].change]
    gr.on(changes, looked, [given, cells, *page.draw], [seen, button], trigger_mode="always_last", **SLOW)
    to_page = button.click(put, [page.session, given, cells, *page.draw, *page.view], page.restored, **SLOW)
    to_page.then(**page.again)
    to_page.success(None, None, None, js="() => document.querySelector('#show').scrollIntoView()")
