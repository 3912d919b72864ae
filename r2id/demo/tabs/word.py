"""A word of up to twelve letters, one latent each, side by side; as PNG and as SVG."""

import html
import math
import secrets
from dataclasses import dataclass, replace

import gradio as gr

from r2id.demo.assets import function, template
from r2id.demo.controls import Number, Slider, generate_request_of, logarithmic_slider
from r2id.demo.page import SESSION_SECONDS, Page
from r2id.demo.request import LIMITS, ViewRequest, sides
from r2id.demo.session import Session, png
from r2id.demo.svg import svg
from r2id.demo.tabs.compare import title
from r2id.demo.wiring import BACKGROUND, DECODE, GENERATE, IMMEDIATE, gradio_errors, image_html, served_file, stoppable
from r2id.demo.word import MAX_LETTERS, can_spell, enlarge_row, resample_row, row_size, seeds_of, spell
from r2id.image import to_pil
from r2id.latent import Latent
from r2id.limits import SEEDS
from r2id.pipeline import Pipeline

FRAMES = ["9:16", "3:4", "1:1", "4:3", "16:9"]
HEIGHT, MAX_HEIGHT = 256, 1024  # pixels
MAX_ZOOM = LIMITS["zoom"][1]
PREVIEW_HEIGHT = 48  # pixels, while the word is generated
STOP = "Stop writing"
HEADING, HINT = "A word", "each letter is a latent of its own; the row below is decoded from all of them"


@dataclass(frozen=True, eq=False)
class Word:
    """What was written. latent: one row a letter."""

    pipe: Pipeline
    latent: Latent
    parameters: dict

    @property
    def name(self) -> str:
        return self.parameters["word"]


def build(page: Page) -> None:
    def write(session: Session, text: str, seeds: str, seed: int, keep: bool, frame: str, *values):
        """Word, seed, title with progress, image: after every step."""
        with gradio_errors(), page.service.queue.turn(session):
            request = replace(generate_request_of(*values), count=1, shape=frame)
            pipe = page.models.get(request.model)
            letters = spell(text, pipe.labels)
            seed = int(seed) if keep else secrets.randbelow(SEEDS)
            options = request.diffuse_options(pipe.config.size_multiple)
            options["seed"] = seeds_of(seed, len(letters), one_seed=seeds == "one")
            parameters = dict(model=request.model, word="".join(letters), **options)
            for step in page.service.model_steps(request.model, letters, options):
                if STOP in session.stopped:
                    break
                row = resample_row(pipe.low_priority, step.latent, height=PREVIEW_HEIGHT)
                said = title(HEADING, f"step {step.index} of {step.steps}")
                yield gr.skip(), seed, said, image_html(to_pil(row), f"{''.join(letters)}, taking shape")
            else:
                yield Word(pipe, step.latent, parameters), seed, title(HEADING, HINT), gr.skip()
                return
            yield gr.skip(), gr.skip(), title(HEADING, HINT), gr.skip()

    def show(word: Word | None, height: int, zoom: float, x: float, y: float, compare: bool):
        """The row, the row beside its enlargement, the file."""
        if word is None:
            return gr.skip(), gr.skip(), gr.skip()
        with gradio_errors():
            region = ViewRequest(x=x / 100, y=y / 100, zoom=zoom).region
            pipe, how = word.pipe.low_priority, dict(height=int(height), region=region)
            row_CHW = resample_row(pipe, word.latent, **how)
            rows, columns = row_size(word.latent, how["height"])
            file = served_file(f"{word.name}-{columns}x{rows}.png", png(row_CHW, word.parameters | how))
            button = gr.DownloadButton("Save the row as PNG", value=str(file), interactive=True)
            shown = image_html(to_pil(row_CHW), f"the word {word.name}, {columns} by {rows} pixels")
            if not compare:
                return gr.HTML(shown, visible=True), gr.HTML(visible="hidden"), button
            enlarged = image_html(enlarge_row(pipe, word.latent, **how), f"the word {word.name}, enlarged bicubically")
            words = "Left: every letter as an image of as many numbers as its latent holds, enlarged bicubically. "
            words += "Right: decoded from the latents. Drag the line."
            pair = dict(images=enlarged + shown, ratio=columns / rows, words=words)
            return gr.HTML(visible="hidden"), gr.HTML(pair, visible=True), button

    def drawn(word: Word | None) -> list[str]:
        """The SVG file: its name, type and content."""
        with gradio_errors():
            if word is None:
                raise ValueError("there is no word yet: press Write the word")
            content = svg(word.pipe.low_priority, word.latent, title=word.name)
            return [f"{word.name}.svg", "image/svg+xml", content]

    def offer(model: str | None, frame: str):
        """What the chosen model can write: a line, the button, the frame."""
        if not model:
            return gr.skip(), gr.skip(), gr.skip()
        with gradio_errors():
            config = page.models.get(model).config
        offered, (narrow, wide) = can_spell(config.labels), config.trained_aspects
        if not offered:
            line = f"{html.escape(model)} makes no single letters: choose a model of letters or digits above."
            return line, gr.Button(interactive=False), gr.skip()
        known = f"{html.escape(model)} writes {html.escape(' '.join(config.labels))}"
        inside = [name for name in FRAMES if narrow - 1e-6 <= sides(1, name)[1] <= wide + 1e-6]
        frame = frame if frame in inside else next(iter(["1:1"] if "1:1" in inside else inside), frame)
        return known, gr.Button(interactive=True), gr.Radio(value=frame)

    with gr.Tab("Word"), gr.Row():
        word = gr.State(None, time_to_live=SESSION_SECONDS)
        file = gr.JSON(visible="hidden")
        with gr.Column(scale=1, min_width=280):
            text = gr.Textbox(label=f"Your word (1 to {MAX_LETTERS} letters)", max_length=MAX_LETTERS, value="HELLO")
            known = gr.HTML(elem_classes="hint")
            seeds = gr.Radio([("one for all letters", "one"), ("one for each letter", "each")], value="one",
                             label="Seeds", info="One for all makes the letters alike.")  # fmt: skip
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, maximum=SEEDS - 1, label="Seed of the word",
                                 min_width=120)  # fmt: skip
                keep = gr.Checkbox(False, label="keep this seed", min_width=120, container=False)
            frame = gr.Radio(FRAMES, value="3:4", label="Frame of each letter (w : h)")
            with gr.Row():
                press = gr.Button("Write the word", variant="primary", min_width=140, elem_id="write-word")
                halt = gr.Button(STOP, size="sm", min_width=110, scale=0, interactive=False)
        with gr.Column(scale=3, min_width=320):
            said = gr.HTML(title(HEADING, HINT))
            image = gr.HTML(elem_classes="row-image")
            pair = gr.HTML(**template("wipe"), visible="hidden", elem_classes="row-image")
            with gr.Row():
                with gr.Column(min_width=200):
                    height = Number(HEIGHT, precision=0, minimum=8, maximum=MAX_HEIGHT, label="Height (pixels)",
                                    elem_classes="typed")  # fmt: skip
                    logarithmic_slider(height, 3, 10, 8, 0.05, "Side")
                    compare = gr.Checkbox(False, label="compare with the bicubic enlargement", container=False)
                with gr.Column(min_width=200):
                    zoom = Number(1, minimum=1, maximum=MAX_ZOOM, label="Zoom into the row (×)", elem_classes="typed")
                    logarithmic_slider(zoom, 0, math.log2(MAX_ZOOM), 0, 0.05, "Zoom")
                with gr.Column(min_width=200):
                    x = Slider(0, 100, value=50, step=0.1, label="Centre of the row's zoom, from the left (%)")
                    y = Slider(0, 100, value=50, step=0.1, label="Centre of the row's zoom, from the top (%)")
            with gr.Row():
                save = gr.DownloadButton("Save the row as PNG", size="sm", min_width=140, interactive=False)
                draw = gr.Button("Save the row as SVG", size="sm", min_width=140)

    view = [word, height, zoom, x, y, compare]
    inputs = [page.session, text, seeds, seed, keep, frame, *page.generate_controls]
    run = stoppable(press, halt, page.session, write, inputs, [word, seed, said, image], **GENERATE)
    run.success(show, view, [image, pair, save], **DECODE)
    run.failure(lambda: title(HEADING, HINT), None, said, **IMMEDIATE)
    text.submit(None, None, None, js="() => document.getElementById('write-word').click()")
    changes = [control.change for control in view[1:]]
    gr.on(changes, show, view, [image, pair, save], trigger_mode="always_last", **DECODE)
    draw.click(drawn, word, file, **BACKGROUND).success(None, file, None, js=function("saveText", "tabs.js"))
    page.generate_controls[0].change(offer, [page.generate_controls[0], frame], [known, press, frame], **IMMEDIATE)
