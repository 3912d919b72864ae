"""What the page, its tabs and the endpoints share of Gradio: queues of events, errors, files and images as HTML."""

import base64
import contextlib
import html
import io
import os
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from r2id.demo.assets import function
from r2id.demo.models import one_line

INLINE_BYTES = 2**18  # larger images travel as files instead of data URIs

# Options of events, by what their function does.
QUIET = dict(show_progress="hidden", api_visibility="private")
FAIR = dict(concurrency_limit=None)  # waits in the FairQueue
IMMEDIATE = dict(queue=False, **QUIET)  # takes milliseconds or answers a slider: Gradio's queue costs 60 ms
DECODE = dict(concurrency_id="decode", concurrency_limit=4, **QUIET)  # decodes an image
DECODE_LARGE = dict(concurrency_id="large", concurrency_limit=2, **QUIET)  # decodes a large image
BACKGROUND = dict(concurrency_id="background", concurrency_limit=2, **QUIET)  # encodes, strips, animations
GENERATE = dict(**FAIR, **QUIET)  # generates


def error_line(error: Exception) -> str:
    """One line for users. Of errors other than ValueError it says only the kind; the log has the rest."""
    if not isinstance(error, ValueError):
        with contextlib.suppress(OSError):  # the log may be on a full disk
            traceback.print_exception(error)
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        kind = "out of memory" if memory else getattr(error, "strerror", None) or type(error).__name__
        error = ValueError(f"the server could not do this ({kind}): ask for less, or try again later")
    return one_line(error)


@contextlib.contextmanager
def gradio_errors() -> Iterator[None]:
    """Turns every exception into a `gr.Error` of one line."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(html.escape(error_line(error), quote=False), print_exception=False) from None


def stoppable(press: gr.Button, stop: gr.Button, session: gr.State, fn: Callable, *args, **options):
    """`press.click(fn, *args, **options)`; `stop` can be pressed meanwhile, and then its name is in `Session.stopped`,
    which fn has to check."""
    press.click(lambda session: session.stopped.discard(stop.value), session, None, **IMMEDIATE)
    press.click(None, None, stop, js=function("enable"))  # before fn: events of one click wait for each other
    run = press.click(fn, *args, **options)
    for ended in (run.success, run.failure):
        ended(None, None, stop, js=function("disable"))
    stop.click(lambda session: session.stopped.add(stop.value), session, None, **IMMEDIATE)
    stop.click(None, None, stop, js=function("disable"))
    return run


def served_path(name: str) -> Path:
    """A path with this file name, in a new folder that Gradio serves and deletes after a while."""
    folder = Path(get_upload_folder()) / os.urandom(8).hex()
    folder.mkdir(parents=True)
    return folder / name


def served_file(name: str, content: bytes) -> Path:
    (path := served_path(name)).write_bytes(content)
    return path


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def image_html(image: Image.Image, alt: str) -> str:
    image.save(file := io.BytesIO(), format="PNG")
    return f'<img src="{data_uri(file.getvalue())}" alt="{html.escape(alt)}">'


@lru_cache(16)  # consecutive frames often have the same image
def image_source(png: bytes, name: str) -> str | dict[str, Any]:
    """The source of a PNG for the browser: a data URI, or a file if it is large."""
    if len(png) <= INLINE_BYTES:
        return data_uri(png)
    return file_value(served_file(name, png))


def file_value(path: Path | str) -> dict[str, Any]:
    """A served file within a component's value; the browser finds its address beside the path, as "url"."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def pane_value(service, session, pipe, latent) -> dict[str, Any]:
    """With what the browser decodes the rows of a latent, in the value of a pane; None where the server does."""
    return dict(decoder=decoder_value(None if session.trouble else service.decoder_files(pipe, latent)))


def decoder_value(files: dict[str, Path] | None) -> dict[str, Any] | None:
    """The files that the browser decodes with, by name, as its scripts take them."""
    return files and {name: file_value(path) for name, path in files.items()}


def stage_value(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame of a session as web/stage.js takes it."""
    if "latent" not in frame:
        return frame
    image, decoder, small = (frame.get(name) for name in ("image", "decoder", "small"))
    return {
        **frame,
        "image": image and image_source(image, frame["name"]),
        "decoder": decoder_value(decoder),
        "small": small and {**small, "image": data_uri(small["image"])},
        "thumbs": [data_uri(thumb) for thumb in frame["thumbs"]],
    }
