"""The installed models with an image each, their model cards, and models of the Hugging Face Hub."""

import html
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import gradio as gr

from r2id.demo.assets import function, text
from r2id.demo.events import Events
from r2id.demo.models import MAX_HUB, Models
from r2id.demo.page import Page
from r2id.demo.session import Session, thumbs
from r2id.demo.wiring import BACKGROUND, IMMEDIATE, data_uri, gradio_errors
from r2id.hub import MAX_HUB_BYTES
from r2id.pipeline import Pipeline

LIMITS = f"safetensors files only, up to {MAX_HUB_BYTES / 2**30:.0f} GB; the last {MAX_HUB} stay"

CARD_SIDE = 160  # long side in pixels of a model's image


def build(page: Page) -> None:
    model = page.generate_controls[0]
    images: WeakKeyDictionary[Pipeline, bytes] = WeakKeyDictionary()
    with gr.Tab("Models") as tab, gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.HTML("<h3>Installed models</h3>Generate uses the chosen one.")
            gallery = gr.HTML(elem_id="gallery", apply_default_css=False, js_on_load=text("history.js"))
            chosen, made = gr.Textbox(visible="hidden"), gr.Number(-1, visible="hidden")
            broken = gr.HTML(broken_html(page.models))
            hub = gr.Textbox(
                label="A model of the Hugging Face Hub", placeholder="owner/name", info=LIMITS, max_length=200
            )
            add = gr.Button("Add this model", size="sm")
        with gr.Column(scale=5, min_width=320):
            card = gr.Markdown(elem_id="card", container=True)

    def cards(name: str | None) -> str:
        return gallery_html(page.models, images, name)

    def look(session: Session):
        """How many cards have an image, more and more, each generated once for all users; and what is broken."""
        page.models.scan()
        yield len(images), broken_html(page.models)
        for each in page.models.names:
            if (pipe := page.models.get(each)) not in images:
                with gradio_errors(), page.service.queue.turn((session, "gallery")):
                    _, latent = page.service.first_latent(page.service.default_request(each))
                    images[pipe] = thumbs(pipe.low_priority, latent, CARD_SIDE)[0]
                yield len(images), gr.skip()

    def pick(event: gr.EventData) -> str:
        with gradio_errors():
            page.models.get(event.key)
            return event.key

    def card_of(name: str | None) -> str:
        with gradio_errors():
            return described(page.models, name) if name in page.models.names else "Choose a model to see its card."

    def added(hub_id: str) -> list:
        """The new model, chosen, and the text box cleared."""
        with gradio_errors():
            name = page.models.add(hub_id)
            return [name, ""]

    adapt = dict(
        fn=Events(page).adapt_to_model,
        inputs=[chosen, *page.generate_controls[1:]],
        outputs=page.generate_controls,
        **IMMEDIATE,
    )
    tab.select(card_of, model, card, **IMMEDIATE)
    tab.select(cards, model, gallery, **IMMEDIATE)
    tab.select(look, page.session, [made, broken], **BACKGROUND)
    made.change(cards, chosen, gallery, trigger_mode="always_last", **IMMEDIATE)
    model.change(None, model, chosen, js=function("same"))
    chosen.change(card_of, chosen, card, **IMMEDIATE)
    chosen.change(cards, chosen, gallery, **IMMEDIATE)
    gallery.select(pick, None, chosen, **IMMEDIATE).success(**adapt)
    wait = BACKGROUND | dict(show_progress="minimal")  # shows that a download is running
    gr.on([add.click, hub.submit], added, hub, [chosen, hub], **wait).success(**adapt)


def gallery_html(models: Models, images: Mapping[Pipeline, bytes], chosen: str | None) -> str:
    """A button a model with an image of it, where there is one yet."""
    found = []
    for name in models.names:
        pipe = models.get(name)
        count, (h, w), png = len(pipe.labels), pipe.config.defaults.latent_size, images.get(pipe)
        image = f'<img src="{data_uri(png)}" alt="">' if png else "<i></i>"
        facts = f"{count} {'label' if count == 1 else 'labels'}, {w} × {h} cells"
        found.append(
            f'<button data-key="{html.escape(name)}" aria-pressed="{str(name == chosen).lower()}">{image}'
            f"<b>{html.escape(name)}</b><span>{facts}</span></button>"
        )
    return "".join(found)


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
