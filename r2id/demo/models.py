"""The installed models: folders of weights, and repositories that were added from the Hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from r2id.demo.serving.worker import QueuedPipeline, QuotaPipeline
from r2id.hub import HUB_ID, fetch
from r2id.limits import short_repr
from r2id.pipeline import Pipeline

FIRST = "letters"  # listed first if it is installed; the others follow by name
MAX_HUB = 4  # models of the Hub that are kept
MAX_FAULT = 300  # characters
MAX_CARD = 2**15  # characters
MAX_READ = 2**20  # bytes of a README.md or report.json


@dataclass(frozen=True)
class Installed:
    """A model. state: of its files when they were read. pipe: None if it cannot be used, then fault says why."""

    folder: Path | None  # None if the download failed
    state: tuple = ()
    pipe: Pipeline | None = None
    fault: str = ""


class Models:
    """The models in the folder `weights` and those added from the Hub. Thread-safe.

    A broken model is listed with its fault. A pipeline that was returned keeps working whatever happens to its files.
    hub: a Hub id, used if `weights` holds no usable model. device, resampler_device, decoder_dtype: as `Pipeline` takes
    them.
    """

    def __init__(
        self, weights: Path, *, device="auto", resampler_device=None, decoder_dtype="auto", hub: str | None = None
    ):
        self._weights, self._substitute = Path(weights).resolve(), (hub or "").strip()
        self._devices = dict(device=device, resampler_device=resampler_device, decoder_dtype=decoder_dtype)
        self._local: dict[str, Installed] = {}  # both are replaced, never mutated: reading takes no lock
        self._hub: dict[str, Installed] = {}
        self._scanning, self._adding = Lock(), Lock()
        self.scan()

    def scan(self) -> None:
        """Reads the folder again: loads new and changed models, drops deleted ones."""
        with self._scanning:
            before = self._local
            self._local = {name: self._current(folder, before.get(name)) for name, folder in self._folders().items()}
            if self._substitute and not self.names and self._substitute not in self._hub:  # tried only once
                try:
                    self.add(self._substitute)
                except ValueError as error:
                    with self._adding:
                        self._hub = self._hub | {self._substitute: Installed(None, fault=str(error))}

    @property
    def names(self) -> list[str]:
        """The usable models: folders by name, then those from the Hub in the order they were added."""
        return [name for name, model in self._all().items() if model.pipe]

    @property
    def faults(self) -> dict[str, str]:
        """Name → why the model cannot be used, one line."""
        return {name: model.fault for name, model in self._all().items() if model.fault}

    def get(self, name: str) -> Pipeline:
        """The current pipeline of a model. Raises ValueError, one line, that lists the usable models."""
        model = self._all().get(name) if isinstance(name, str) else None
        if model and model.pipe:
            return model.pipe
        reason = f"cannot be used ({model.fault}), " if model else ""
        known = ", ".join(self.names)
        remedy = f"must be one of {known}" if known else "there is none to use, put a folder of weights into weights/"
        raise ValueError(f"model {short_repr(name)}: {reason}{remedy}")

    def add(self, hub_id: str) -> str:
        """Downloads or updates a model from the Hub and returns its name; only the last MAX_HUB are kept.

        Raises ValueError, one line, for whatever prevents it.
        """
        name = hub_id.strip() if isinstance(hub_id, str) else ""
        if not HUB_ID.fullmatch(name) or os.path.isdir(name):  # users must not open this machine's folders
            raise ValueError(
                f"Hub id {short_repr(hub_id)}: must be owner/name, as in the address of a model on the Hub"
            )
        with self._adding:
            try:
                folder = fetch(name)
            except Exception as error:
                raise ValueError(one_line(error)) from None
            model = self._current(folder, self._hub.get(name))
            if model.fault:
                raise ValueError(f"{name} cannot be used: {model.fault}")
            hub = {other: known for other, known in self._hub.items() if other != name} | {name: model}
            for oldest in [other for other in hub if other != self._substitute][:-MAX_HUB]:
                del hub[oldest]
            self._hub = hub
        return name

    def card(self, name: str) -> str:
        """README.md as Markdown that is safe to show, see `plain_markdown`; empty if there is none."""
        return plain_markdown(self._text(name, "README.md"))

    def report(self, name: str) -> dict[str, Any] | None:
        """report.json, or None if it cannot be read."""
        try:
            report = json.loads(self._text(name, "report.json"), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        return report if isinstance(report, dict) else None

    def _all(self) -> dict[str, Installed]:
        return self._local | self._hub

    def _folders(self) -> dict[str, Path]:
        """Folders that are meant as models: `weights` itself if it has a config.json, else all that contain a file."""
        try:
            found = {path.parent for path in [*self._weights.glob("config.json"), *self._weights.glob("[!.]*/*")]}
        except OSError:
            return {}
        found = sorted(found, key=lambda folder: (folder.name != FIRST, folder))
        # Unprintable names are listed with escapes.
        return {folder.name if folder.name.isprintable() else ascii(folder.name): folder for folder in found}

    def _current(self, folder: Path, known: Installed | None) -> Installed:
        """The model in a folder: `known` if its files have not changed, else loaded again."""
        state = None
        try:
            files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
            state = (folder, *((file.name, *_stamp(file)) for file in files))
            if known and known.state == state:
                return known
            # ZeroGPU lends its GPU to another process, which has no worker.
            kind = QuotaPipeline if "SPACES_ZERO_GPU" in os.environ else QueuedPipeline
            return Installed(folder, state, kind.from_pretrained(folder, **self._devices))
        except Exception as error:  # a broken folder must not stop the others
            return Installed(folder, state, fault=one_line(error, folder))

    def _text(self, name: str, file: str) -> str:
        """The first MAX_READ bytes of a text file beside the weights; empty if there is none."""
        model = self._all().get(name) if isinstance(name, str) else None
        try:
            if model and model.folder and (model.folder / file).is_file():
                with open(model.folder / file, "rb") as opened:
                    return opened.read(MAX_READ).decode("utf-8-sig", errors="replace")
        except OSError:
            pass
        return ""


def plain_markdown(text: str) -> str:
    """Untrusted Markdown → Markdown without front matter, HTML and images.
    At most MAX_CARD characters.

    Does not parse Markdown, which could be misled: breaks up whatever could open a tag, an image or another link, in
    code too. Gradio sanitises the result once more in the browser.
    """
    text = re.sub(r"\A---[ \t]*\n(?:.*\n)*?---[ \t]*(?:\n|\Z)", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r"\[([^\[\]]*)\]\((?!https?:|#)[^()\s]*\)", r"\1", text)  # links to files lead nowhere on the page
    text = re.sub(r"<(https?://[^<>\s]+)>", r"\1", text.replace("\0", ""))
    text = re.sub(r"</?[A-Za-z!?][^<>]*>", "", text)
    text = re.sub(r"!\[[^\[\]]*\](?:\([^()]*\)|\[[^\[\]]*\])", "", text)
    text = re.sub(r"(?<!!)!+(?=\[)", "", text)
    text = re.sub(r"\](?=[(:](?!\s*(?:https?://|#)))", "] ", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).strip()
    return text if len(text) <= MAX_CARD else text[: MAX_CARD - 1] + "…"


def _stamp(file: Path) -> tuple[int, int] | tuple[()]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size


def one_line(error: Exception, folder: Path | None = None) -> str:
    """The error message in one line, without the folders of paths, which are private."""
    text = " ".join(str(error).split()) or type(error).__name__
    if folder:
        text = text.replace(f"{folder}{os.sep}", "")
    text = re.sub(r"(?<![\w:/.~-])/(?:[^\s/'\":]+/)+", "", text)
    return text if len(text) <= MAX_FAULT else text[: MAX_FAULT - 1] + "…"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
