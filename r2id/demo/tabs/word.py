"""A word of up to twelve letters, one latent each, side by side; as PNG and as SVG."""

import html
import secrets
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from torch import Tensor

from r2id.demo.assets import function, template
from r2id.demo.controls import Number, generate_request_of, logarithmic_slider
from r2id.demo.page import SESSION_SECONDS, Page
from r2id.demo.request import ViewRequest, sides
from r2id.demo.session import ORDER, Session, png
from r2id.demo.svg import svg
from r2id.demo.tabs.compare import title
from r2id.demo.web_decoder import latent_value
from r2id.demo.wiring import (
    BACKGROUND,
    DECODE,
    GENERATE,
    IMMEDIATE,
    data_uri,
    gradio_errors,
    image_source,
    pane_value,
    stoppable,
)
from r2id.demo.word import MAX_LETTERS, can_spell, resample_row, row_size, seeds_of, small_row, spell
from r2id.latent import Latent
from r2id.limits import SEEDS, check_int
from r2id.pipeline import Pipeline
from r2id.position import FULL

FRAMES = ["9:16", "3:4", "1:1", "4:3", "16:9"]
HEIGHT, MAX_HEIGHT = 256, 1024  # pixels
PREVIEW_HEIGHT = 48  # pixels, while the word is generated
STOP = "Stop writing"
HEADING, HINT = "A word", "each letter is a latent of its own; the row below is decoded from all of them: zoom in"
NONE = "there is no word yet: press Write the word"


@dataclass(frozen=True, eq=False)
class Word:
    """What was written. latent: one row a letter. number: a later word has a larger one."""

    pipe: Pipeline
    latent: Latent
    parameters: dict
    number: int

    @property
    def name(self) -> str:
        return self.parameters["word"]

    def image(self, height: int, region: tuple[float, ...]) -> Tensor:
        """The row, or a part of it, (C, H, W) in [0, 1]."""
        return resample_row(self.pipe.low_priority, self.latent, height=height, region=region)

    def value(self, **parts) -> dict[str, Any]:
        """The value of the row's component, see web/row.js. parts: what else it holds."""
        latent = latent_value(self.pipe, self.latent, str(self.number))
        return dict(order=next(ORDER), latent=latent, text=self.name) | parts


def build(page: Page) -> None:
    def write(session: Session, text: str, seeds: str, seed: int, keep: bool, frame: str, height: int, *values):
        """Word, seed, title with progress, row: after every step."""
        with gradio_errors(), page.service.queue.turn(session):
            request = replace(generate_request_of(*values), count=1, shape=frame)
            pipe = page.models.get(request.model)
            letters = spell(text, pipe.labels)
            seed = int(seed) if keep else secrets.randbelow(SEEDS)
            options = request.diffuse_options(pipe.config.size_multiple)
            options["seed"] = seeds_of(seed, len(letters), one_seed=seeds == "one")
            parameters = dict(model=request.model, word="".join(letters), **options)
            number = next(ORDER)
            for step in page.service.model_steps(request.model, letters, options):
                if STOP in session.stopped:
                    return (yield gr.skip(), gr.skip(), title(HEADING, HINT), gr.skip())
                word = Word(pipe, step.latent, parameters, number)
                image = dict(src=data_uri(png(word.image(PREVIEW_HEIGHT, FULL))))
                said = title(HEADING, f"step {step.index} of {step.steps}")
                yield gr.skip(), seed, said, word.value(height=int(height), preview=True, image=image)
            shown = word.value(height=int(height), **pane_value(page.service, session, pipe, word.latent))
            yield word, seed, title(HEADING, HINT), shown

    def look(session: Session, word: Word | None, event: gr.EventData):
        """The row in a view that it asks for, where the server decodes."""
        if word is None:
            return gr.skip()
        with gradio_errors():
            view, height = dict(event.view), check_int(event.height, "height", 8, MAX_HEIGHT)
            region = ViewRequest(**{name: view[name] for name in ("x", "y", "zoom")}).region
            source = image_source(png(word.image(height, region)), f"{word.name}.png")
            small = data_uri(png(small_row(word.pipe.low_priority, word.latent)))
            decoder = pane_value(page.service, session, word.pipe, word.latent)
            return word.value(image=dict(src=source, view=view, small=small), **decoder)

    def saved(word: Word | None, height: int, seen: list[float]) -> list[str]:
        """The PNG file of the part that is seen, centre and zoom: its name, type and content."""
        with gradio_errors():
            if word is None:
                raise ValueError(NONE)
            rows, columns = row_size(word.latent, int(height))
            how = dict(height=rows, region=ViewRequest(**dict(zip(("x", "y", "zoom"), seen, strict=True))).region)
            content = png(word.image(**how), word.parameters | how)
            return [f"{word.name}-{columns}x{rows}.png", "image/png", data_uri(content)]

    def drawn(word: Word | None) -> list[str]:
        """The SVG file: its name, type and content."""
        with gradio_errors():
            if word is None:
                raise ValueError(NONE)
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
            row, seen = gr.HTML(None, apply_default_css=False, **template("row")), gr.JSON(visible="hidden")
            with gr.Row():
                with gr.Column(min_width=200):
                    height = Number(HEIGHT, precision=0, minimum=8, maximum=MAX_HEIGHT, label="Height (pixels)",
                                    elem_classes="typed")  # fmt: skip
                    logarithmic_slider(height, 3, 10, 8, 0.05, "Side")
                with gr.Column(min_width=200):
                    save = gr.Button("Save the row as PNG", size="sm", min_width=140)
                    draw = gr.Button("Save the row as SVG", size="sm", min_width=140)

    inputs = [page.session, text, seeds, seed, keep, frame, height, *page.generate_controls]
    run = stoppable(press, halt, page.session, write, inputs, [word, seed, said, row], **GENERATE)
    run.failure(lambda: title(HEADING, HINT), None, said, **IMMEDIATE)
    text.submit(None, None, None, js="() => document.getElementById('write-word').click()")
    row.look(look, [page.session, word], row, trigger_mode="always_last", **DECODE)
    height.change(None, height, None, js=function("resizeRow", "tabs.js"))
    save_text = dict(fn=None, inputs=file, js=function("saveText", "tabs.js"))
    save.click(saved, [word, height, seen], file, js=function("seenRow", "tabs.js"), **BACKGROUND).success(**save_text)
    draw.click(drawn, word, file, **BACKGROUND).success(**save_text)
    page.generate_controls[0].change(offer, [page.generate_controls[0], frame], [known, press, frame], **IMMEDIATE)
