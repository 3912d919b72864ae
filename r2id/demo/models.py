"""The installed models: folders of weights, and repositories of the Hub that were asked for."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from r2id.checkpoint import HUB_ID, fetch
from r2id.demo.serving.worker import QueuedPipeline, QuotaPipeline
from r2id.limits import short_repr
from r2id.pipeline import Pipeline

FIRST = "mnist"  # the model that the page begins with, where it is there; the others follow by name
MAX_HUB = 4  # models of the Hub that are kept
MAX_FAULT = 300  # characters
MAX_CARD = 2**15  # characters
MAX_READ = 2**20  # bytes of a README.md or report.json


@dataclass(frozen=True)
class Installed:
    """One model: where it is, the state of its files when they were read, and the pipeline or what is wrong."""

    folder: Path | None  # None where the Hub gave none
    state: tuple = ()
    pipe: Pipeline | None = None
    fault: str = ""


class Models:
    """What `weights` holds and what the Hub gave, for many threads. Nothing in a folder makes this fail, and a pipeline
    that was handed out stays as it is whatever becomes of its files.

    hub: a Hub id, used where `weights` holds nothing usable. device, resampler_device: as `Pipeline` takes them.
    """

    def __init__(self, weights: Path, *, device="auto", resampler_device=None, hub: str | None = None):
        self._weights, self._substitute = Path(weights).resolve(), (hub or "").strip()
        self._devices = dict(device=device, resampler_device=resampler_device)
        self._local: dict[str, Installed] = {}  # these two are replaced, never changed: reading them takes no lock
        self._hub: dict[str, Installed] = {}
        self._scanning, self._adding = Lock(), Lock()
        self.scan()

    def scan(self) -> None:
        """Looks at the folder again: loads what is new or changed, forgets what is gone."""
        with self._scanning:
            before = self._local
            self._local = {name: self._current(folder, before.get(name)) for name, folder in self._folders().items()}
            if self._substitute and not self.names and self._substitute not in self._hub:  # asked for once
                try:
                    self.add(self._substitute)
                except ValueError as error:
                    with self._adding:
                        self._hub = self._hub | {self._substitute: Installed(None, fault=str(error))}

    @property
    def names(self) -> list[str]:
        """The usable ones: folders by name, then the Hub's in the order they came."""
        return [name for name, model in self._all().items() if model.pipe]

    @property
    def faults(self) -> dict[str, str]:
        """Why the others cannot be used, a line each."""
        return {name: model.fault for name, model in self._all().items() if model.fault}

    def get(self, name: str) -> Pipeline:
        """The pipeline as it is now. Raises ValueError, one line, that says which there are."""
        model = self._all().get(name) if isinstance(name, str) else None
        if model and model.pipe:
            return model.pipe
        reason = f"cannot be used ({model.fault}), " if model else ""
        known = ", ".join(self.names)
        remedy = f"must be one of {known}" if known else "there is none to use, put a folder of weights into weights/"
        raise ValueError(f"model {short_repr(name)}: {reason}{remedy}")

    def add(self, hub_id: str) -> str:
        """Downloads a model of the Hub, or the changes since, and lists it; MAX_HUB are kept, the last ones added.
        Returns its name. Raises ValueError, one line, for anything that stands in the way."""
        name = hub_id.strip() if isinstance(hub_id, str) else ""
        if not HUB_ID.fullmatch(name) or os.path.isdir(name):  # folders of this machine are not for users to open
            raise ValueError(
                f"Hub id {short_repr(hub_id)}: must be owner/name, as in the address of a model on the Hub"
            )
        with self._adding:
            try:
                folder = fetch(name)
            except Exception as error:
                raise ValueError(line_of(error)) from None
            model = self._current(folder, self._hub.get(name))
            if model.fault:
                raise ValueError(f"{name} cannot be used: {model.fault}")
            hub = {other: known for other, known in self._hub.items() if other != name} | {name: model}
            for oldest in [other for other in hub if other != self._substitute][:-MAX_HUB]:
                del hub[oldest]
            self._hub = hub
        return name

    def card(self, name: str) -> str:
        """README.md as Markdown that is safe to show: see `plain_markdown`. Empty where there is none."""
        return plain_markdown(self._text(name, "README.md"))

    def report(self, name: str) -> dict[str, Any] | None:
        """report.json, or None where there is no readable one."""
        try:
            report = json.loads(self._text(name, "report.json"), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        return report if isinstance(report, dict) else None

    def _all(self) -> dict[str, Installed]:
        return self._local | self._hub

    def _folders(self) -> dict[str, Path]:
        """Every folder that may be meant as a model: `weights` itself with a config.json, else any with a file."""
        try:
            found = {path.parent for path in [*self._weights.glob("config.json"), *self._weights.glob("[!.]*/*")]}
        except OSError:
            return {}
        found = sorted(found, key=lambda folder: (folder.name != FIRST, folder))
        # A name that no page can show is listed by its escapes.
        return {folder.name if folder.name.isprintable() else ascii(folder.name): folder for folder in found}

    def _current(self, folder: Path, known: Installed | None) -> Installed:
        """The model of a folder: `known` if its files are as they were, else loaded anew."""
        state = None
        try:
            files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
            state = (folder, *((file.name, *_stamp(file)) for file in files))
            if known and known.state == state:
                return known
            # ZeroGPU lends its GPU to another process, which has no worker.
            kind = QuotaPipeline if "SPACES_ZERO_GPU" in os.environ else QueuedPipeline
            return Installed(folder, state, kind.from_pretrained(folder, **self._devices))
        except Exception as error:  # whatever is wrong with this folder, the others still work
            return Installed(folder, state, fault=line_of(error, folder))

    def _text(self, name: str, file: str) -> str:
        """The beginning of a text file beside the weights, empty if there is none."""
        model = self._all().get(name) if isinstance(name, str) else None
        try:
            if model and model.folder and (model.folder / file).is_file():
                with open(model.folder / file, "rb") as opened:
                    return opened.read(MAX_READ).decode("utf-8-sig", errors="replace")
        except OSError:
            pass
        return ""


def plain_markdown(text: str) -> str:
    """Markdown of any origin → Markdown without front matter, HTML and images, whose links lead to web addresses or
    places in the text. At most MAX_CARD characters.

    Does not parse Markdown, which could be misled: what could open a tag, an image or another link is broken up
    wherever it stands, in code too.
    """
    text = re.sub(r"\A---[ \t]*\n(?:.*\n)*?---[ \t]*(?:\n|\Z)", "", text.replace("\r\n", "\n").replace("\r", "\n"))
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


def line_of(error: Exception, folder: Path | None = None) -> str:
    """The error in one line, where files go by their names: where they are is nobody's business."""
    text = " ".join(str(error).split()) or type(error).__name__
    if folder:
        text = text.replace(f"{folder}{os.sep}", "")
    text = re.sub(r"(?<![\w:/.~-])/(?:[^\s/'\":]+/)+", "", text)
    return text if len(text) <= MAX_FAULT else text[: MAX_FAULT - 1] + "…"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
