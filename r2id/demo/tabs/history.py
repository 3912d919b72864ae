"""Earlier latents of the session, the parameters of a PNG file, and downloads: a zip and animations."""

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from r2id.demo.animate import encode, sweep
from r2id.demo.assets import function, template, text
from r2id.demo.controls import view_request_of
from r2id.demo.illustrations import zip_of
from r2id.demo.page import Page
from r2id.demo.request import from_dict, to_dict
from r2id.demo.serving.generation import seconds
from r2id.demo.session import MAX_HISTORY, NO_LATENT, Entry, Session, label_text, png, render
from r2id.demo.svg import svg
from r2id.demo.wiring import BACKGROUND, DECODE, IMMEDIATE, data_uri, file_value, gradio_errors, served_file, stoppable
from r2id.image import read_parameters
from r2id.limits import short_repr

FRAMES = 48  # of an animation
MAX_ZIP = 2**24  # pixels of all images in a zip
STOP_ZIP, STOP_ANIMATION = "Stop the zip", "Stop the animation"
MAX_THUMBS = 4  # per entry
SWEEPS = [("resolution, 8 to 512 pixels", "size"), ("ratio, 9:16 to 16:9", "ratio"), ("zoom", "zoom")]
FILES = [("GIF", "gif"), ("WebP", "webp"), ("MP4", "mp4")]  # titles of animate.KINDS


def build(page: Page) -> None:
    with gr.Tab("History") as tab, gr.Row():
        with gr.Column(scale=3, min_width=320):
            build_entries(page, tab)
            build_drop(page)
        with gr.Column(scale=2, min_width=320):
            build_images(page)
            build_animations(page)


def build_entries(page: Page, tab: gr.Tab) -> None:
    """What the session has made; choosing an entry brings it back."""

    def look(session: Session) -> str:
        return "".join(entry_html(entry, entry.latent is session.latent) for entry in session.history)

    def pick(session: Session, event: gr.EventData) -> list:
        with gradio_errors():
            entry = next((entry for entry in session.history if key(entry) == event.key), None)
            if entry is None:
                raise ValueError(f"this entry is gone, only the last {MAX_HISTORY} are kept: choose another")
            return page.restore(
                session, entry.request, session.view, entry.latent, origin=entry.origin, done=entry.done
            )

    gr.HTML(f"<h3>Made in this session</h3>The last {MAX_HISTORY}, newest first. Choose one to bring it back.")
    entries = gr.HTML(elem_id="history", apply_default_css=False, js_on_load=text("history.js"))
    page.watch(tab, look, [], [entries])
    picked = entries.select(pick, page.session, page.restored, **DECODE)
    picked.then(**page.refresh)
    picked.success(None, None, None, js=function("showStage"))


def build_drop(page: Page) -> None:
    """Sets the controls to the parameters of a PNG file; the latent stays."""

    def read(session: Session, file: str) -> list:
        with gradio_errors():
            values = read_parameters(file)
            if "origin" in values:
                origin = short_repr(values["origin"])
                raise ValueError(f"the latent of this image was not generated, {origin}: load the file of the latent")
            request, view = from_dict(values)
            restored = page.restore(session, request, view)
            gr.Info(html.escape(f"{label_text(request)}, seed {request.seed}: press Generate to make it again"))
            return restored

    gr.HTML("<h3>From a file</h3>A PNG downloaded here knows how it was made: drop it to set the controls to that.")
    drop = gr.File(show_label=False, label="A PNG made here", file_types=[".png"], height=150, elem_id="history-drop")
    dropped = drop.upload(read, [page.session, drop], page.restored, **DECODE)
    dropped.success(**page.refresh)
    for over in (dropped.success, dropped.failure):
        over(lambda: None, None, drop, **IMMEDIATE)


def build_images(page: Page) -> None:
    """All images in a zip, and the outline of the selected one."""

    def outlined(session: Session) -> list[str]:
        """The selected image's outline as a file: name, type, content."""
        with gradio_errors():
            pipe, latent, shown, origin = shown_latent(session)
            named = origin or label_text(shown)
            content = svg(pipe.low_priority, latent[session.selected], title=named)
            return ["-".join(re.findall(r"\w+", f"r2id {named}")) + ".svg", "image/svg+xml", content]

    def zipped(session: Session, *values) -> Iterator[list]:
        """Progress, download."""
        with gradio_errors():
            pipe, latent, shown, origin, view = *shown_latent(session), view_request_of(*values)
            count, (height, width) = len(latent), view.size
            if count * height * width > MAX_ZIP:
                size = f"{count} × {width} × {height} pixels"
                raise ValueError(f"{size}: a zip holds {MAX_ZIP:,} at most; choose a smaller resolution")
            files = []
            for i in range(count):
                if STOP_ZIP in session.stopped:
                    return
                yield [bar_html(i / count, f"Image {i + 1} of {count}"), gr.skip()]
                request = shown.row(i)
                parameters = {"origin": origin} if origin else to_dict(request, view)
                name = f"{i + 1:02}.png" if origin else f"{i + 1:02}-seed{request.seed}.png"
                files.append((name, png(render(pipe, latent[i], view), parameters)))
            words = f"Download {count} {'image' if count == 1 else 'images'}"
            yield [gr.skip(), download(served_file("r2id.zip", zip_of(files)), words)]

    gr.HTML("<h3>Save images</h3>All images of the last request in one zip, at the resolution and zoom shown. "
            "One PNG, a link and lines of Python are below the large image.")  # fmt: skip
    with gr.Row():
        pack = gr.Button("Zip all images at this view", size="sm", min_width=140)
        halt = gr.Button(STOP_ZIP, size="sm", scale=0, min_width=140, interactive=False)
    bar = gr.HTML(elem_classes="making")
    packed = gr.DownloadButton("Download zip", size="sm", interactive=False)
    draw, drawn = gr.Button("Save its outline as SVG", size="sm"), gr.JSON(visible="hidden")

    outlines = draw.click(outlined, page.session, drawn, **BACKGROUND)
    outlines.success(None, drawn, None, js=function("saveText", "tabs.js"))
    zips = stoppable(pack, halt, page.session, zipped, [page.session, *page.view_controls], [bar, packed], **BACKGROUND)
    for over in (zips.success, zips.failure):
        over(lambda: "", None, bar, **IMMEDIATE)


def build_animations(page: Page) -> None:
    """Animations of the selected image."""

    def swept(session: Session, kind: str, file: str, length: float, *values) -> Iterator[list]:
        """Progress, download, the animation itself."""
        with gradio_errors():
            pipe, latent, shown, origin, view = *shown_latent(session), view_request_of(*values)
            named, row, most = origin or label_text(shown), latent[session.selected], FRAMES // 2 + 1
            frames, start = [], time.perf_counter()
            for frame in sweep(pipe, row, kind, view, frames=FRAMES):
                if STOP_ANIMATION in session.stopped:
                    return
                frames.append(frame)
                if (done := len(frames)) < most:
                    left = (time.perf_counter() - start) / done * (most - done)
                    yield [bar_html(done / most, f"Frame {done} of {most}, {seconds(left)} left"), gr.skip(), gr.skip()]
            path, words = served_file(f"r2id.{file}", encode(frames, length, file)), f"its {kind} goes up and down"
            shown = dict(file=file_value(path), video=file == "mp4", words=f"animation: {named}, {words}")
            yield [gr.skip(), download(path, f"Download {named}"), shown]

    gr.HTML("<h3>Save as an animation</h3>It goes there and back, and loops.")
    kind = gr.Radio(SWEEPS, value="size", label="Animate")
    file = gr.Radio(FILES, value="gif", label="File")
    length = gr.Slider(2, 10, value=4, step=0.5, label="Length (seconds)")
    with gr.Row():
        animate = gr.Button("Make the animation", size="sm", min_width=140)
        halt = gr.Button(STOP_ANIMATION, size="sm", scale=0, min_width=140, interactive=False)
    bar = gr.HTML(elem_classes="making")
    animated = gr.DownloadButton("Download", size="sm", interactive=False)
    movie = gr.HTML(None, **template("movie"))

    asked, made = [page.session, kind, file, length, *page.view_controls], [bar, animated, movie]
    sweeps = stoppable(animate, halt, page.session, swept, asked, made, **BACKGROUND)
    for over in (sweeps.success, sweeps.failure):
        over(lambda: "", None, bar, **IMMEDIATE)


def key(entry: Entry) -> str:
    """Identifies an entry in the page: its index changes as others come and go."""
    return str(hash(entry))


def entry_html(entry: Entry, current: bool) -> str:
    """A button with some thumbnails and a description."""
    request, (h, w), count = entry.request, entry.latent.size, len(entry.thumbs)
    words = [entry.origin or f"{label_text(request)}, seed {request.seed}", f"{w} × {h} cells", request.model]
    if count > 1:
        words.append(f"{count} images")
    if entry.done < request.steps:
        words.append(f"stopped after step {entry.done} of {request.steps}")
    small = "".join(
        f'<img src="{data_uri(thumb)}" alt="image {i} of {count}">'
        for i, thumb in enumerate(entry.thumbs[:MAX_THUMBS], start=1)
    )
    lines = "".join(f"<span>{html.escape(line)}</span>" for line in words)
    return f'<button data-key="{key(entry)}" aria-pressed="{str(current).lower()}"><div>{small}</div>{lines}</button>'


def shown_latent(session: Session) -> tuple:
    """Model, latent, request and origin of what is on the page."""
    if session.latent is None:
        raise ValueError(NO_LATENT)
    return session.pipe, session.latent, session.request, session.origin


def bar_html(share: float, words: str) -> str:
    return f'<progress max="1" value="{share:.3f}" aria-label="Progress"></progress><span>{words}</span>'


def download(path: Path, words: str) -> gr.DownloadButton:
    """A button that downloads this file."""
    kind, size = path.suffix[1:].upper(), f"{max(path.stat().st_size / 1e6, 0.1):.1f} MB"
    return gr.DownloadButton(f"{words} ({kind}, {size})", value=str(path), interactive=True)
