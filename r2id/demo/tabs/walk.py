"""Moves between the image on the page and another one: a slider, a loop, and animations of it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from r2id.demo.animate import encode
from r2id.demo.assets import constant, template
from r2id.demo.controls import Dropdown
from r2id.demo.page import SESSION_SECONDS, Page
from r2id.demo.request import ViewRequest
from r2id.demo.session import ORDER, Session, label_text, png, render
from r2id.demo.tabs.compare import repeatable_request, title
from r2id.demo.tabs.history import FILES, bar_html, download
from r2id.demo.walk import MAX_POSITIONS, Walk, images, loop
from r2id.demo.web_decoder import latent_value
from r2id.demo.wiring import (
    BACKGROUND,
    DECODE,
    GENERATE,
    IMMEDIATE,
    data_uri,
    gradio_errors,
    pane_value,
    served_file,
    stoppable,
)
from r2id.demo.word import small_row
from r2id.latent import Latent
from r2id.limits import SEEDS, check_int
from r2id.pipeline import Pipeline

SIDE = 512  # long side in pixels of an image on the slider
SERVER_SIDE, PREVIEW_SIDE = 256, 64  # the same where the server decodes all of them, and while they are generated
PREVIEWS = 5  # positions that are shown while all are generated
SIZES = [128, 256, 512, 1024]  # long sides in pixels of an animation
POSITIONS = 24
STOP = "Stop the walk"
HEADING, HINT = "Between two images", "every position is an image generated on its own"


@dataclass(frozen=True, eq=False)
class Walked:
    """A walk that was made. latent: one row a position. number: a later walk has a larger one."""

    pipe: Pipeline
    latent: Latent
    name: str
    number: int


def way(walk: Walk) -> str:
    """What a walk goes from and to, in words."""
    end = replace(walk.start, label=walk.label, other="", seed=walk.seed)
    return " to ".join(f"{label_text(request)}, seed {request.seed}" for request in (walk.start, end))


def words_at(walk: Walk, share: float, label: dict[str, float] | None) -> str:
    """A position in words."""
    parts = label or {}
    named = " and ".join(f"{100 * weight:.0f} % {name}" for name, weight in parts.items())
    return f"{100 * share:.0f} % of the way" + (f": {named}" if len(parts) > 1 else "")


def slider_value(walk: Walk, walked: Walked, rows: Sequence[int], side: int, **parts) -> dict[str, Any]:
    """The value of the slider's component, see web/walk.js. rows: those it goes through. parts: what else it holds."""
    named = [words_at(walk, share, label) for share, label in zip(walk.shares, walk.labels(), strict=True)]
    latent, words = latent_value(walked.pipe, walked.latent[0], ""), [named[row] for row in rows]
    value = dict(order=next(ORDER), number=walked.number, latent=latent, words=words, side=side)
    return value | dict(images=[], decoder=None) | parts


def sources(walked: Walked, rows: Sequence[int], side: int) -> list[str]:
    """Images of some positions with this long side, as a browser takes them."""
    view = ViewRequest(side, f"{walked.latent.aspect:.6g}", fit="stretch")
    return [data_uri(png(render(walked.pipe, walked.latent[row], view))) for row in rows]


def build(page: Page) -> None:
    def go(session: Session, label: str, seed: int, positions: int):
        """Walk, slider, title with progress."""
        with gradio_errors(), page.service.queue.turn(session):
            start = replace(repeatable_request(session), count=1)
            pipe = page.models.get(start.model)
            walk, number = Walk(start, label or "", int(seed), int(positions)), next(ORDER)
            some = [round(i * (walk.positions - 1) / (PREVIEWS - 1)) for i in range(PREVIEWS)]
            for step in page.service.model_steps(start.model, walk.labels(), walk.options(pipe)):
                if STOP in session.stopped:
                    return (yield gr.skip(), gr.skip(), title(HEADING, HINT))
                said = f"{walk.positions} images together: step {step.index} of {step.steps}"
                walked = Walked(pipe.low_priority, step.latent, way(walk), number)
                previews = dict(preview=True, images=sources(walked, some, PREVIEW_SIDE))
                yield gr.skip(), slider_value(walk, walked, some, PREVIEW_SIDE, **previews), title(HEADING, said)
            shown = pane_value(page.service, session, pipe, walked.latent)
            if session.local and shown["decoder"]:
                side = SIDE
            else:
                side, shown["images"] = SERVER_SIDE, sources(walked, range(walk.positions), SERVER_SIDE)
            value = slider_value(walk, walked, range(walk.positions), side, **shown)
            yield walked, value, title(HEADING, walked.name)

    def look(walked: Walked | None, event: gr.EventData):
        """A position in a view that is asked for, where the server decodes."""
        if walked is None:
            return gr.skip()
        with gradio_errors():
            view, row = dict(event.view), walked.latent[check_int(event.at, "position", 0, len(walked.latent) - 1)]
            asked = ViewRequest(**view | dict(ratio=f"{row.aspect:.6g}"))
            both = render(walked.pipe, row, asked), small_row(walked.pipe, row)
            source, small = (data_uri(png(image_CHW)) for image_CHW in both)
            return dict(number=walked.number, look=dict(at=event.at, view=view, src=source, small=small))

    def saved(walked: Walked | None, kind: str, side: int, length: float):
        """Progress, download."""
        with gradio_errors():
            if walked is None:
                raise ValueError("there is no walk yet: press Make the walk")
            frames, count = [], len(walked.latent)
            for frame in images(walked.pipe, walked.latent, int(side)):
                frames.append(frame)
                yield bar_html(len(frames) / count, f"image {len(frames)} of {count}"), gr.skip()
            file = served_file(f"r2id-walk.{kind}", encode(loop(frames), length, kind))
            yield "", download(file, "Download")

    def adapt(model: str | None, label: str):
        """Labels of the chosen model; one that it has stays."""
        if not model:
            return gr.skip()
        with gradio_errors():
            labels = page.models.get(model).labels
        return gr.Dropdown([*labels, ("any", "")], value=label if label in labels else (labels or [""])[-1])

    with gr.Tab("Between"), gr.Row():
        walked = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Column(scale=1, min_width=280):
            gr.HTML("<h3>To another image</h3>The walk starts from the image on the page and ends at this one. "
                    "Latent size, steps and guidance stay.")  # fmt: skip
            label = Dropdown(label="Label at the end")
            with gr.Row():
                seed = gr.Number(1, precision=0, minimum=0, maximum=SEEDS - 1, label="Seed at the end", min_width=120)
                other = gr.Button("Another seed", size="sm", min_width=110, scale=0)
            positions = gr.Slider(8, MAX_POSITIONS, value=POSITIONS, step=1, precision=0, label="Images on the way")
            with gr.Row():
                press = gr.Button("Make the walk", variant="primary", min_width=140)
                halt = gr.Button(STOP, size="sm", min_width=110, scale=0, interactive=False)
        with gr.Column(scale=2, min_width=320):
            said = gr.HTML(title(HEADING, HINT))
            stage = gr.HTML(None, apply_default_css=False, **template("walk"))
        with gr.Column(scale=1, min_width=260):
            gr.HTML("<h3>Save as an animation</h3>It goes there and back, and loops.")
            kind = gr.Radio(FILES, value="gif", label="File")
            side = gr.Radio(SIZES, value=256, label="Long side (pixels)")
            length = gr.Slider(2, 10, value=5, step=0.5, label="Length, there and back (seconds)")
            make = gr.Button("Make the file", size="sm")
            bar = gr.HTML(elem_classes="making")
            file = gr.DownloadButton("Download", size="sm", interactive=False)

    model = page.generate_controls[0]
    model.change(adapt, [model, label], label, **IMMEDIATE)
    other.click(lambda: secrets.randbelow(SEEDS), None, seed, **IMMEDIATE)
    press.click(None, None, said, js=constant(title(HEADING, "waiting for its turn")))
    run = stoppable(
        press, halt, page.session, go, [page.session, label, seed, positions], [walked, stage, said], **GENERATE
    )
    stage.look(look, walked, stage, trigger_mode="always_last", **DECODE)
    run.failure(None, None, said, js=constant(title(HEADING, HINT)))
    made = make.click(saved, [walked, kind, side, length], [bar, file], **BACKGROUND)
    made.failure(lambda: "", None, bar, **IMMEDIATE)
