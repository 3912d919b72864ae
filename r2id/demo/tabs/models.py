"""The installed models, their model cards, and models of the Hugging Face Hub."""

import html

import gradio as gr

from r2id.demo.assets import function
from r2id.demo.events import Events
from r2id.demo.models import MAX_HUB, Models
from r2id.demo.page import Page
from r2id.demo.wiring import BACKGROUND, IMMEDIATE, gradio_errors
from r2id.hub import MAX_HUB_BYTES

LIMITS = f"safetensors files only, up to {MAX_HUB_BYTES / 2**30:.0f} GB; the last {MAX_HUB} stay"


def build(page: Page) -> None:
    names, model = page.models.names, page.generate_controls[0]
    with gr.Tab("Models") as tab, gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = gr.Radio(names, label="Installed models", info="Generate uses the chosen one.")
            broken = gr.HTML(broken_html(page.models))
            hub = gr.Textbox(
                label="A model of the Hugging Face Hub", placeholder="owner/name", info=LIMITS, max_length=200
            )
            add = gr.Button("Add this model", size="sm")
        with gr.Column(scale=5, min_width=320):
            card = gr.Markdown(elem_id="card", container=True)

    def look(name: str | None) -> list:
        """Choices, and what is broken. Keeps the choice: it may have changed meanwhile."""
        page.models.scan()
        names = page.models.names
        return [gr.Radio(names) if name in names else gr.Radio(names, value=None), broken_html(page.models)]

    def card_of(name: str | None) -> str:
        with gradio_errors():
            return described(page.models, name) if name in page.models.names else "Choose a model to see its card."

    def added(hub_id: str) -> list:
        """Choices with the new model chosen, and the text box cleared."""
        with gradio_errors():
            name = page.models.add(hub_id)
            return [gr.Radio(page.models.names, value=name), ""]

    adapt = dict(
        fn=Events(page).adapt_to_model,
        inputs=[chosen, *page.generate_controls[1:]],
        outputs=page.generate_controls,
        **IMMEDIATE,
    )
    tab.select(look, model, [chosen, broken], **BACKGROUND).then(card_of, chosen, card, **IMMEDIATE)
    model.change(None, model, chosen, js=function("same"))
    chosen.change(card_of, chosen, card, **IMMEDIATE)
    chosen.input(**adapt)
    wait = BACKGROUND | dict(show_progress="minimal")  # shows that a download is running
    gr.on([add.click, hub.submit], added, hub, [chosen, hub], **wait).success(**adapt)


def broken_html(models: Models) -> str:
    """The models that cannot be used, and why, as HTML."""
    lines = [f"<div class=notice><b>{html.escape(name)}</b> cannot be used: {html.escape(fault)}</div>"
             for name, fault in models.faults.items()]  # fmt: skip
    return "".join(lines)


def described(models: Models, name: str) -> str:
    """What a model was trained for, and its card, as Markdown."""
    config = models.get(name).config
    (low, high), (narrow, wide), side = config.trained_cells, config.trained_aspects, config.encoder_size
    cells = f"{low}" if low == high else f"{low} to {high}"
    shapes = "square ones" if narrow == wide == 1 else f"ratios from {narrow:.2f} to {wide:.2f}"
    facts = (
        f"{len(config.labels)} labels; latents of {cells} cells on the long side, {shapes}; trained at {side} pixels"
    )
    return f"**{facts}.**\n\n{models.card(name) or 'There is no model card beside its weights.'}"
