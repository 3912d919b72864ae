"""One latent at many sizes, and against bicubic enlargement; one label and seed at several latent sizes and models."""

import html
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import gradio as gr
import torch
from PIL import Image

from r2id.demo.controls import view_request_of
from r2id.demo.illustrations import SIZES, bicubic, decoded, inside, shown
from r2id.demo.page import AT_ONCE, HEAVY, SLOW, Page, gradio_errors, img, stoppable
from r2id.demo.request import GenerateRequest
from r2id.demo.session import Session, named_label, whole_size
from r2id.image import to_pil
from r2id.interpolation import share_done

SHOWN = 256  # long side in pixels of an image in a row
WIPED = 320  # long side in pixels of the image beside its enlargement
AT_MOST = 4  # latent sizes
STRIP = "One latent, every size", "long side 8 to 1024 pixels, shown equally large"
SIZES_TITLE = "Latents of several sizes", "same label and seed, diffused anew"
MODELS_TITLE = "Two models", "same label and seed, each with its own defaults"
STOP_SIZES, STOP_MODELS = "Stop sizes", "Stop models"

# What nobody looks at costs nothing: "seen" is triggered while the element is on the screen, once for every new value.
SEEN = """let seen = false, done = null;
const look = () => { if (seen && props.value && done !== props.value) { done = props.value; trigger("seen"); } };
new IntersectionObserver(([entry]) => { seen = entry.isIntersecting; look(); }).observe(element);
watch("value", look);"""
MARK = dict(html_template="", js_on_load=SEEN, elem_classes="mark")
NEW = "() => performance.now()"  # a value that such an element has not had

WIPE = """<figure class="wipe" hidden><div>
  <p></p><span>bicubic</span><span>decoded</span>
  <input type="range" min="0" max="100" value="50" aria-label="Share of the bicubic enlargement, on the left (%)">
</div><figcaption></figcaption></figure>"""
WIPE_JS = """const [figure, pair, cut] = ["figure", "p", "input"].map(name => element.querySelector(name));
const box = pair.parentNode;
cut.oninput = () => box.style.setProperty("--cut", cut.value + "%");
watch("value", () => {
  pair.innerHTML = props.value.images;
  box.style.setProperty("--ratio", props.value.ratio);
  figure.lastElementChild.textContent = props.value.words;
  figure.hidden = false;
});"""


def row_of(images: Sequence[tuple[str, Image.Image]], alt: str) -> str:
    """(caption, image) beside each other, equally large; alt: what all of them are."""
    parts = []
    for caption, image in images:
        image = shown(image, inside((SHOWN, SHOWN), image.width / image.height))
        parts.append(
            f"<figure>{img(image, f'{alt}, {caption}')}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return f'<div class="images{" many" * (len(parts) > AT_MOST)}">{"".join(parts)}</div>'


def title(words: str, more: str) -> str:
    return f"<h3 class=title>{words} <small role=status>{html.escape(more)}</small></h3>"


def strip(session: Session) -> Iterator[tuple]:
    """The selected latent at all sizes: images, title with the progress. Ends where another latent has come."""
    pipe, row, images = session.pipe and session.pipe.low_priority, session.row, []
    yield gr.skip(), title(*STRIP)
    for height, width in [whole_size(row, side) for side in SIZES] if row else ():
        image_CHW = torch.empty(pipe.config.channels, height, width)
        for box, tile_BCHW in pipe.resample_tiles(row, size=(height, width), fit="contain"):
            left, top, right, bottom = box
            if session.row is not row:
                return
            image_CHW[:, top:bottom, left:right] = tile_BCHW[0]
            session.settle()  # whoever moves a slider waits for no more than a tile
            if max(height, width) > SHOWN:
                progress = f"{width} × {height} pixels: {share_done(box, (height, width)):.0%} decoded"
                yield gr.skip(), title(STRIP[0], progress)
        images.append((f"{width} × {height} pixels", to_pil(image_CHW)))
        if max(height, width) >= SHOWN:
            yield row_of(images, "decoded to pixels"), title(*STRIP)


def wipe(session: Session, *values):
    """The present view of the selected latent, enlarged and decoded."""
    if not (row := session.row):
        return gr.skip()
    try:
        view = replace(view_request_of(*values), side=WIPED)
    except ValueError:  # the big image tells
        return gr.skip()
    pipe = session.pipe
    before = img(bicubic(pipe, row, view), "the present view, enlarged bicubically")
    after = img(decoded(pipe, row, view), "the present view, decoded from the latent")
    (height, width), short = view.size, pipe.config.training_size
    words = f"Left: decoded with {short} pixels on the short side, as in training, then enlarged bicubically. "
    words += f"Right: decoded at {width} × {height} pixels. Zoom and move the big image to look closer."
    return dict(images=before + after, ratio=width / height, words=words)


def diffused(
    page: Page, session: Session, requests: dict[str, GenerateRequest], heading: tuple[str, str], stop: str
) -> Iterator[tuple]:
    """Diffuses the named requests one by one: images with the time that they took, title with the progress. stop:
    name of the button that ends it."""
    images = []
    for name, request in requests.items():
        pipe, spent = page.models.get(request.model), 0.0
        steps = page.service.denoise(request)
        for index in range(1, request.steps + 1):
            if stop in session.stopped:
                return (yield gr.skip(), title(*heading))
            start = time.perf_counter()
            latent = next(steps).latent
            spent += time.perf_counter() - start
            yield gr.skip(), title(heading[0], f"{name}: step {index} of {request.steps}")
        start = time.perf_counter()
        image = to_pil(pipe.resample(latent, size=whole_size(latent, SHOWN), fit="contain")[0])
        times = f"diffused in {1000 * spent:.0f} ms, resampled in {1000 * (time.perf_counter() - start):.0f} ms"
        images.append((f"{name}: {times}", image))
        yield row_of(images, named_label(request)), title(*heading)


def wanted(session: Session) -> GenerateRequest:
    """What made the image on the page."""
    if session.request is None or session.origin:
        raise ValueError("the latent on the page was not diffused, so it has no label and seed: press Generate first")
    return session.request


def latent_sizes(low: int, high: int, size_multiple: int) -> list[int]:
    """At most AT_MOST multiples of size_multiple, from the first to the last one in low…high."""
    sizes = range(-(-low // size_multiple) * size_multiple, high + 1, size_multiple)
    return sorted({sizes[round(i * (len(sizes) - 1) / (AT_MOST - 1))] for i in range(AT_MOST)})


def build(page: Page) -> None:
    def of_sizes(session: Session):
        with gradio_errors(), page.service.queue.turn(session):
            request = wanted(session)
            config = page.models.get(request.model).config
            asked = [replace(request, cells=n) for n in latent_sizes(*config.trained_cells, config.size_multiple)]
            names = ["{1} × {0} cells".format(*d.latent_size(config.size_multiple)) for d in asked]
            yield from diffused(page, session, dict(zip(names, asked, strict=True)), SIZES_TITLE, STOP_SIZES)

    def of_models(session: Session, *models: str):
        with gradio_errors(), page.service.queue.turn(session):
            request = wanted(session)
            if models[0] == models[1]:
                raise ValueError(f"{models[0]} twice: choose two different models")
            kept = dict(label=request.label, other=request.other, blend=request.blend, seed=request.seed)
            asked = [replace(page.service.usual(model), **kept) for model in models]
            names = [f"{d.model}, {d.cells} cells, {d.steps} steps" for d in asked]
            yield from diffused(page, session, dict(zip(names, asked, strict=True)), MODELS_TITLE, STOP_MODELS)

    def choices(first: str, second: str):
        """The installed models; those that were chosen stay as long as they are there."""
        names = page.models.names
        first = first if first in names else next(iter(names), None)
        second = second if second in names else next((name for name in names if name != first), None)
        return gr.Dropdown(names, value=first), gr.Dropdown(names, value=second)

    with gr.Tab("Compare") as tab:
        strip_mark, strip_title = gr.HTML(**MARK), gr.HTML(title(*STRIP))
        images = gr.HTML()
        wipe_mark, _ = gr.HTML(**MARK), gr.HTML(title("Decoded or enlarged?", "drag the line, or use the arrow keys"))
        pair = gr.HTML(html_template=WIPE, js_on_load=WIPE_JS)
        sizes_title = gr.HTML(title(*SIZES_TITLE))
        with gr.Row():
            press_sizes = gr.Button("Diffuse at several sizes", scale=0, min_width=280)
            halt_sizes = gr.Button(STOP_SIZES, scale=0, min_width=120, interactive=False)
        at_sizes = gr.HTML()
        models_title = gr.HTML(title(*MODELS_TITLE))
        with gr.Row():
            models = [gr.Dropdown(label=label, min_width=140) for label in ("First model", "Second model")]
            press_models = gr.Button("Diffuse with both", scale=0, min_width=280)
            halt_models = gr.Button(STOP_MODELS, scale=0, min_width=120, interactive=False)
        by_models = gr.HTML()

    gr.on([page.version.change, tab.select], None, None, strip_mark, js=NEW)
    gr.on([page.version.change, tab.select, *[c.change for c in page.view[1:]]], None, None, wipe_mark, js=NEW)
    strip_mark.seen(strip, page.session, [images, strip_title], trigger_mode="always_last", **SLOW)
    wipe_mark.seen(wipe, [page.session, *page.view], pair, trigger_mode="always_last", **SLOW)
    gr.on([page.version.change, tab.select], choices, models, models, **AT_ONCE)
    for press, halt, fn, inputs, outputs, heading in [
        (press_sizes, halt_sizes, of_sizes, [page.session], [at_sizes, sizes_title], SIZES_TITLE),
        (press_models, halt_models, of_models, [page.session, *models], [by_models, models_title], MODELS_TITLE),
    ]:
        press.click(None, None, outputs[1], js=f"() => `{title(heading[0], 'waiting for its turn')}`")
        run = stoppable(press, halt, page.session, fn, inputs, outputs, **HEAVY)
        run.failure(None, None, outputs[1], js=f"() => `{title(*heading)}`")
