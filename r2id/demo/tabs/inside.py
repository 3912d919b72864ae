"""What is inside: the latent's channels, the coordinates, the denoiser's loss, the steps of the generation."""

from collections.abc import Iterator

import gradio as gr
from PIL import Image

from r2id.demo.assets import function
from r2id.demo.controls import view_request_of
from r2id.demo.illustrations import MAX_STEPS_SHOWN, channel_maps, coordinate_systems, loss_against_t, trajectory
from r2id.demo.page import Page
from r2id.demo.request import ViewRequest
from r2id.demo.session import TROUBLES, Session, frame_size
from r2id.demo.tabs.compare import MARK
from r2id.demo.web_decoder import can_decode
from r2id.demo.wiring import DECODE, IMMEDIATE, image_html
from r2id.image import to_pil
from r2id.latent import Latent
from r2id.pipeline import Pipeline

STEP_SIDE, MANY_STEPS_SIDE = 128, 64  # long sides in pixels of a step, the latter where many are decoded


def build(page: Page) -> None:
    with gr.Tab("Inside") as tab:
        decoder = gr.HTML(elem_classes="inside")
        with gr.Row():
            with gr.Column(min_width=320):
                channels = gr.HTML(elem_classes="inside")
            with gr.Column(min_width=320):
                steps = gr.HTML(elem_classes="inside")
        with gr.Row():
            with gr.Column(min_width=320):
                mark = gr.HTML(**MARK)
                coordinates = gr.HTML(elem_classes="inside")
            with gr.Column(min_width=320):
                loss = gr.HTML(elem_classes="inside")

    def look(session: Session, *values) -> Iterator[list]:
        """Coordinates, channels, loss; then the steps, which take time to decode."""
        pipe, row, model = session.pipe, session.row, session.request.model
        frames, done, selected = session.frames, session.done, session.selected
        shown = coordinates_html(view_request_of(*values), row.aspect)
        yield [decoder_html(session), shown, channels_html(row), loss_html(page.models.report(model)), gr.skip()]
        yield [*[gr.skip()] * 4, steps_html(pipe, [frame[selected] for frame in frames], done)]

    def moved(session: Session, *values) -> str:
        if session.tab != tab.label or session.latent is None:
            return gr.skip()
        return coordinates_html(view_request_of(*values), session.latent.aspect)

    def decoding(session: Session) -> str:
        return decoder_html(session) if session.tab == tab.label and session.latent is not None else gr.skip()

    page.decoder.then(decoding, page.session, decoder, **IMMEDIATE)
    page.watch(tab, look, page.view_controls, [decoder, coordinates, channels, loss, steps])
    # Not the resolution: it does not change the illustration.
    shaped = [control.change for control in page.view_controls[1:]]
    gr.on(shaped, None, None, mark, js=function("unique"))
    mark.seen(moved, [page.session, *page.view_controls], coordinates, trigger_mode="always_last", **DECODE)


def decoder_html(session: Session) -> str:
    """Who decodes the large image."""
    if not can_decode(session.pipe):
        words = "The server decodes the image: this model's resampler is one that browsers cannot run."
    elif session.local:
        words = """This browser decodes the image, in its GPU: the server sent the latent's tokens once, and a new
            size, shape or zoom asks it for nothing. Files to download are the server's."""
    elif session.trouble:
        words = f"The server decodes the image, not this browser: {TROUBLES[session.trouble]}."
    else:
        words = "The server decodes the image until this browser has shown that it can."
    return f"<h3>Who decodes</h3><p>{words}</p>"


def figure(title: str, images: list[tuple[Image.Image, str]], words: str) -> str:
    """HTML of images (drawn at twice their size, with alternative text) side by side, with title and explanation."""
    shown = "".join(
        f'<div style="max-width: {image.width // 2}px">{image_html(image, alt)}</div>' for image, alt in images
    )
    return f"<h3>{title}</h3><div>{shown}</div><p>{words}</p>"


def channels_html(row: Latent) -> str:
    (h, w), count = row.size, row.tensor.shape[1]
    words = f"""The selected image as it is stored: {count} channels of {w} × {h} cells, {row.tensor.numel():,}
        numbers, orange above 0 and blue below. Every size of it on this page, small or large, is decoded from these."""
    alt = f"{count} maps of {w} by {h} cells, one a channel"
    return figure("The latent's channels", [(channel_maps(row), alt)], words)


def steps_html(pipe: Pipeline, frames: list[Latent], done: int) -> str:
    """frames: one row after each step that was kept; done: steps taken."""
    title = "The generation, step by step"
    if not frames:
        return f"<h3>{title}</h3><p>This latent was not generated just now: press Generate to see its steps here.</p>"
    size = frame_size(frames[0], STEP_SIDE if len(frames) <= MAX_STEPS_SHOWN else MANY_STEPS_SIDE)
    image = trajectory([to_pil(pipe.resample(frame, size=size, fit="contain")[0]) for frame in frames])
    kept = "" if len(frames) >= done else f" {len(frames)} of {done} steps are shown."
    words = f"""The image that the denoiser expects after every step. It starts from noise: the first steps settle
        the rough shape, the last ones the detail.{kept}"""
    return figure(title, [(image, f"the image as expected after each of {len(frames)} steps")], words)


def coordinates_html(view: ViewRequest, aspect: float) -> str:
    absolute, relative = coordinate_systems(view, aspect)
    height, width = view.size
    words = f"""The model gets two positions for each of the {width} × {height} pixels. Absolute coordinates span the
        latent's frame from edge to edge whatever its shape; relative ones have the same unit across and down, so that a
        circle stays round. Dark is beyond the frame. Change the ratio, the fit or the zoom, and watch."""
    alt = f"coordinates over an image of {width} by {height} pixels"
    shown = [(absolute, f"absolute {alt}"), (relative, f"relative {alt}")]
    return figure("The two coordinate systems", shown, words)


def loss_html(report: dict | None) -> str:
    title = "The denoiser's loss"
    try:
        image = loss_against_t(report)
    except ValueError:
        return f"<h3>{title}</h3><p>The report beside this model's weights holds no readable losses.</p>"
    if image is None:
        return f"<h3>{title}</h3><p>This model ships no report of its loss at each noise level.</p>"
    words = """How wrong the denoiser is at each noise level t, lower is better: near 0 it sees almost all of the
        image, near 1 almost only noise. Where the curves part, it relies on the label."""
    return figure(title, [(image, "loss against noise level t, with the label and without")], words)
