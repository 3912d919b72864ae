"""The state of one user's page, and which of the pending jobs are still current.

Nothing here knows Gradio. What the page shows is a *frame*, a dict that `Session` makes. Later frames have a larger
`order`, so the browser can drop one that arrives late.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from r2id.demo.request import GenerateRequest, ViewRequest, to_python, to_query
from r2id.demo.serving.worker import SMALL_PIXELS
from r2id.demo.web_decoder import latent_value
from r2id.image import save_png
from r2id.latent import Latent
from r2id.pipeline import DiffusionStep, Pipeline

THUMB_SIDE = 48  # long side in pixels of a thumbnail
MAX_HISTORY = 24  # entries
MAX_KEPT = 2**21  # latent values in the steps, and in the history, of one session
STILL_SECONDS = 0.7  # a view that has not changed for so long is at rest
MAX_STILL_WAIT = 5.0  # seconds
ORDER = itertools.count(int(time.time() * 1000))  # increases across restarts of the server too
TROUBLES = {  # why the server decodes, not the browser
    "missing": "it has no WebGL2 with float textures",
    "slow": "its GPU is slower than the server",
    "lost": "it lost its graphics context",
}
NO_LATENT = "there is no latent (one is dropped after an hour without use): press Generate"


@dataclass(frozen=True)
class Entry:
    """A latent in the history. done: steps taken. thumbs: PNG bytes, one per row. origin: where a latent that was not
    generated here comes from, else "". The same goes for `Session`."""

    request: GenerateRequest
    latent: Latent
    done: int
    thumbs: tuple[bytes, ...]
    origin: str

    def same(self, other: Entry) -> bool:
        """Whether both describe the same latent."""
        described = (self.request, self.done, self.origin) == (other.request, other.done, other.origin)
        return described and torch.equal(self.latent.tensor, other.latent.tensor)


@dataclass(frozen=True, eq=False)
class Job:
    """A view to be decoded. number: unique. version: that of the session when it was asked for."""

    number: int
    pipe: Pipeline
    row: Latent
    request: GenerateRequest
    origin: str
    version: int
    view: ViewRequest
    local: bool = False  # whether the browser decodes it

    @property
    def large(self) -> bool:
        height, width = self.view.size
        return height * width > SMALL_PIXELS  # slow enough to show progress and to be superseded


class Session:
    """The state of one user's page. Thread-safe.

    request, pipe, latent: what was asked for, the model, and the result so far, one row per image; None at first.
    selected: index of the row that is shown large. done: steps taken. origin: see `Entry`. frames: x0 estimates of
    the steps, thinned if they are many. history: newest first. view: the last one asked for. version: changes with
    the latent and with the selection. tab: title of the open tab, "" at first. stopped: names of the tabs' Stop
    buttons that were pressed. kept: the last entry that the browser has been given. local: whether the browser decodes,
    None until it has said so; trouble: why it does not, a key of `TROUBLES`.
    """

    def __init__(self):
        self.request: GenerateRequest | None = None
        self.pipe: Pipeline | None = None
        self.latent: Latent | None = None
        self.view, self._viewed = ViewRequest(), 0.0
        self.selected = self.done = self.version = 0
        self.origin = self.tab = ""
        self.stopped: set[str] = set()
        self.frames: list[Latent] = []
        self.history: list[Entry] = []
        self.kept: Entry | None = None
        self.local: bool | None = None
        self.trouble = ""
        self._lock = threading.RLock()
        self._rows: list[Latent] = []  # kept: a pipeline caches its work by the identity of a tensor
        self._submitted: GenerateRequest | None = None
        self._ticket = self._finished = 0  # number of the last submission, and of the last one that has ended
        self._running = False  # whether a generation runs
        self._job: Job | None = None  # decoding, or waiting for its turn
        self._claimed: Job | None = None
        self._decoded: tuple[int, ViewRequest, bool] | None = None  # version, view and `local` of what is on the page
        self._shown: dict[str, Any] = {}

    def __deepcopy__(self, memo) -> Session:
        return Session()  # Gradio copies the initial state for every user

    @property
    def empty(self) -> bool:
        """Whether nothing was shown or asked for yet: a new page, or one whose session the server no longer has."""
        return not self._ticket

    @property
    def row(self) -> Latent | None:
        """The selected latent."""
        with self._lock:
            return None if self.latent is None else self._rows[self.selected]

    @property
    def latent_id(self) -> str:
        """Differs for every latent that is shown, except while it is generated."""
        return str(self.version)

    @property
    def row_request(self) -> GenerateRequest | None:
        """The request that gives the selected row alone."""
        with self._lock:
            return None if self.request is None else self.request.row(self.selected)

    @property
    def latest_request(self) -> GenerateRequest | None:
        """The submitted request while it is pending, else the one that is shown."""
        with self._lock:
            return self._submitted if self._finished < self._ticket else self.request

    def submit(self, request: GenerateRequest) -> dict[str, Any]:
        """Generate was pressed: supersedes earlier requests. Returns the frame to show until its turn comes."""
        with self._lock:
            self._ticket, self._submitted = self._ticket + 1, request
            return self._frame(busy={"text": "Waiting for its turn", "share": None})

    def stop(self) -> dict[str, Any]:
        """Ends whatever runs within one step or tile. The latent so far stays."""
        with self._lock:
            self._finished, self._job = self._ticket, None
            return self._frame(busy=None)

    def load(
        self,
        pipe: Pipeline,
        request: GenerateRequest,
        latent: Latent,
        *,
        origin: str = "",
        done: int | None = None,
        small: list[bytes] | None = None,
    ):
        """Replaces the latent by one from the history, a file or the encoder. small: its thumbs, where they are there.

        Raises ValueError for a latent that does not fit the model.
        """
        small = small or thumbs(pipe, latent)
        with self._lock:
            self._ticket += 1
            self._finished = self._ticket
            self._put(pipe, request, latent, request.steps if done is None else done, origin)
            self.selected, self.frames, self.version = 0, [], next(ORDER)
            self._frame(busy=None, thumbs=small)
            if all(entry.latent is not latent for entry in self.history):
                self._remember()

    def merge(self, entries: list[tuple[Pipeline, Entry]]) -> Entry | None:
        """Adds older entries to the history. In an empty session the first one is shown, and returned."""
        with self._lock:
            self.history += [entry for _, entry in entries if not any(map(entry.same, self.history))]
            self._trim_history()
            if not entries or not self.empty:
                return None
            pipe, entry = entries[0]
            self._ticket += 1
            self._finished, self.kept = self._ticket, entry
            self._put(pipe, entry.request, entry.latent, entry.done, entry.origin)
            self.selected, self.version = 0, next(ORDER)
            self._frame(busy=None, thumbs=entry.thumbs)
            return entry

    def select(self, index: int) -> None:
        """Shows another row large. Ignores an index that does not exist."""
        with self._lock:
            if 0 <= index < len(self._rows) and index != self.selected:
                self.selected, self._job, self.version = index, None, next(ORDER)

    def idle(self, fault: str = "") -> dict[str, Any]:
        """The frame after a failure; fault: its message, one line."""
        with self._lock:
            self._job = None
            return {**self._frame(busy=None), "fault": fault}

    # generating

    def begin(self) -> tuple[int, GenerateRequest] | None:
        """The ticket and the request whose turn has come; None if it was stopped or has been served."""
        with self._lock:
            if self._finished >= self._ticket:
                return None
            self._running, self._job = True, None
            return self._ticket, self._submitted

    def advance(self, ticket: int, pipe: Pipeline, request: GenerateRequest, step: DiffusionStep, row: int, **frame):
        """Takes over one more step and returns its frame; None if the generation has to end."""
        with self._lock:
            if self._ticket != ticket or self._finished >= ticket:
                return None
            self._put(pipe, request, step.latent, step.index, "")
            self.selected, self.frames = row, thinned([*self.frames, step.latent] if step.index > 1 else [step.latent])
            return self._frame(**frame)

    def end(self, ticket: int, request: GenerateRequest) -> None:
        """No more steps of this ticket will come."""
        with self._lock:
            shown = (self.pipe, self.latent) if self.request is request else None
        small = shown and thumbs(*shown)
        with self._lock:
            self._running = False
            if self._ticket == ticket:
                self._finished, self.version = ticket, next(ORDER)
                if small:
                    self._frame(thumbs=small)
                    self._remember()

    # decoding a view

    def request_view(self, view: ViewRequest, *, local: bool = False) -> Job | None:
        """A job to decode this view of the selected row; None if it is shown already or a generation will show it.
        local: whether the browser decodes it."""
        with self._lock:
            self.view, self._viewed = view, time.monotonic()
            if self.empty:
                raise ValueError(NO_LATENT)
            under_way, asked = self._job and _described(self._job), (self.version, view, local)
            if self.latent is None or self._running or asked in (under_way, self._decoded):
                return None
            self._job = Job(next(ORDER), self.pipe, self.row, self.row_request, self.origin, self.version, view, local)
            return self._job

    def wait_until_still(self) -> None:
        """Waits until the view has not changed for STILL_SECONDS, MAX_STILL_WAIT at most: for background work."""
        until = time.monotonic() + MAX_STILL_WAIT
        while time.monotonic() < min(until, self._viewed + STILL_SECONDS):
            time.sleep(STILL_SECONDS / 10)

    def claim_large(self) -> Job | None:
        """The job of a large image, if nobody works on it yet."""
        with self._lock:
            if not self._job or not self._job.large or self._job is self._claimed:
                return None
            self._claimed = self._job
            return self._job

    def is_current(self, job: Job) -> bool:
        return self._job is job

    def progress(self, job: Job, **frame) -> dict[str, Any] | None:
        """A frame while the job runs; None if the job has been superseded."""
        with self._lock:
            if self._job is not job:
                return None
            self._decoded = None
            return self._frame(**frame)

    def finish(self, job: Job, **frame) -> dict[str, Any] | None:
        """The frame with the job's result; None if the job has been superseded."""
        with self._lock:
            if self._job is not job:
                return None
            self._job, self._decoded = None, _described(job)
            return self._frame(busy=None, **frame)

    def add(self, **frame) -> dict[str, Any]:
        """A frame with more of what is shown already."""
        with self._lock:
            return self._frame(**frame)

    # called with the lock held

    def _frame(self, **changes) -> dict[str, Any]:
        """Applies changes to what the page shows, and returns all of it."""
        self._shown = {**self._shown, **changes, "selected": self.selected, "order": next(ORDER)}
        return self._shown

    def _put(self, pipe: Pipeline, request: GenerateRequest, latent: Latent, done: int, origin: str) -> None:
        self.pipe, self.request, self.latent, self.done, self.origin = pipe, request, latent, done, origin
        self._rows = [latent[i] for i in range(len(latent))]
        self._job = None

    def _remember(self) -> None:
        entry = Entry(self.request, self.latent, self.done, tuple(self._shown["thumbs"]), self.origin)
        self.history.insert(0, entry)
        self._trim_history()

    def _trim_history(self) -> None:
        del self.history[MAX_HISTORY:]
        while len(self.history) > 1 and sum(entry.latent.tensor.numel() for entry in self.history) > MAX_KEPT:
            self.history.pop()


def _described(job: Job) -> tuple[int, ViewRequest, bool]:
    return job.version, job.view, job.local


def render(pipe: Pipeline, row: Latent, view: ViewRequest) -> Tensor:
    """Decodes a view of one latent: (C, H, W) in [0, 1]."""
    return pipe.resample(row, **view.resample_options)[0]


def thumbs(pipe: Pipeline, latent: Latent, side: int = THUMB_SIDE) -> list[bytes]:
    """Every row as a PNG of the whole frame with this long side."""
    return [png(image_CHW) for image_CHW in pipe.resample(latent, size=frame_size(latent, side), fit="contain")]


def frame_size(latent: Latent, side: int) -> tuple[int, int]:
    """(height, width) in pixels of the latent's frame with this long side."""
    return max(1, round(side / max(1, latent.aspect))), max(1, round(side * min(1, latent.aspect)))


def png(image_CHW: Tensor, parameters: dict[str, Any] | None = None) -> bytes:
    """Encodes an image (C, H, W) in [0, 1] as a PNG file that carries its parameters."""
    file = io.BytesIO()
    save_png(image_CHW, file, parameters or {})
    return file.getvalue()


def describe(
    pipe: Pipeline,
    row: Latent,
    request: GenerateRequest,
    view: ViewRequest,
    text: str,
    *,
    state: str,
    latent_id: str,
    origin: str = "",
):
    """The caption, alternative text, file name, links and latent of a frame. text: how the image was decoded; state:
    how far the generation has come; latent_id: differs for every latent that a page shows; origin: see `Entry`."""
    (height, width), (h, w), name = view.size, row.size, label_text(request)
    zoomed = f" at {view.zoom:,.4g} ×" if view.zoom > 1 else ""
    weights = request.model if "/" in request.model else f"weights/{request.model}"
    return dict(
        caption=[
            f"{width} × {height} pixels{zoomed}",
            f"{text} from {w} × {h} cells",
            origin or f"{name}, seed {request.seed}",
            state,
            f"{request.model} on {pipe.device}",
        ],
        ratio=width / height,
        alt=f"{origin or name}, {width} by {height} pixels",
        name="-".join(re.findall(r"[\w.]+", f"r2id {origin or name} seed{request.seed} {width}x{height}")) + ".png",
        view=asdict(view),
        latent=latent_value(pipe, row, latent_id),
        query="" if origin else to_query(request, view),
        python="" if origin else to_python(request, view, weights, size_multiple=pipe.config.size_multiple),
    )


def label_text(request: GenerateRequest) -> str:
    """ "label 3", "60 % label 3 and 40 % label 8", "any label"."""
    label = request.labels[0]
    if isinstance(label, dict):
        return " and ".join(f"{100 * weight:.0f} % label {name}" for name, weight in label.items())
    return f"label {label}" if label else "any label"


def thinned(frames: list[Latent]) -> list[Latent]:
    """Drops every other frame until MAX_KEPT is met; the last one stays."""
    while len(frames) > 2 and sum(frame.tensor.numel() for frame in frames) > MAX_KEPT:
        frames = frames[-1::-2][::-1]
    return frames
