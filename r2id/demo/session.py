"""What one user has on the page, and which of the requests under way still counts.

Nothing here knows Gradio. What the page shows is a *frame*, a dict that `Session` makes; a later frame has a larger
`order`, so that a page which gets two of them in the wrong order can tell.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from r2id.demo.request import GenerateRequest, ViewRequest, to_python, to_query
from r2id.demo.serving.worker import SMALL
from r2id.image import save_png
from r2id.latent import Latent
from r2id.pipeline import DiffusionStep, Pipeline

THUMB = 48  # long side in pixels of an image in the grid
MAX_HISTORY = 24  # entries
MAX_KEPT = 2**21  # numbers in the trajectory, and in the history, of one session
STILL, PATIENCE = 0.7, 5.0  # seconds
ORDER = itertools.count(int(time.time() * 1000))  # never the same twice, and larger when the server is started again


@dataclass(frozen=True)
class Entry:
    """One diffusion, or one latent from elsewhere, of a session. done: steps taken; thumbs: PNG bytes, one a row."""

    request: GenerateRequest
    latent: Latent
    done: int
    thumbs: tuple[bytes, ...]
    origin: str


@dataclass(frozen=True, eq=False)
class Job:
    """One image to be resampled. number: its own."""

    number: int
    pipe: Pipeline
    row: Latent
    request: GenerateRequest
    origin: str
    version: int
    view: ViewRequest

    @property
    def large(self) -> bool:
        height, width = self.view.size
        return height * width > SMALL  # it takes long enough to show progress, and to give way to the next one


class Session:
    """What one user has on the page.

    made, pipe, latent: the request, its model and its rows so far; None before the first. selected: the row that the
    big image shows. done: steps taken. origin: where a latent that was not diffused comes from, else "". frames:
    x0 estimates of the trajectory, some left out where they are many. history: newest first. view: last asked for.
    version: changes with the latent and with the selection. tab: title of the open tab, "" before one was chosen.
    stopped: names of the tabs' Stop buttons that were pressed.
    """

    def __init__(self):
        self.made: GenerateRequest | None = None
        self.pipe: Pipeline | None = None
        self.latent: Latent | None = None
        self.view, self._viewed = ViewRequest(), 0.0
        self.selected = self.done = self.version = 0
        self.origin = self.tab = ""
        self.stopped: set[str] = set()
        self.frames: list[Latent] = []
        self.history: list[Entry] = []
        self._lock = threading.RLock()
        self._rows: list[Latent] = []  # kept, because a pipeline remembers what it knows of a latent by its tensor
        self._wanted: GenerateRequest | None = None
        self._wish = self._settled = 0  # Diffuse was pressed so often; presses up to this one are done with
        self._running = False  # a diffusion
        self._job: Job | None = None  # being resampled, or waiting for its turn
        self._claimed: Job | None = None
        self._answered: tuple[int, ViewRequest] | None = None  # version and view of the image on the page
        self._shown: dict[str, Any] = {}

    def __deepcopy__(self, memo) -> Session:
        return Session()  # every user gets an own one

    @property
    def row(self) -> Latent | None:
        """The selected latent."""
        with self._lock:
            return None if self.latent is None else self._rows[self.selected]

    @property
    def request(self) -> GenerateRequest | None:
        """What made the selected latent."""
        with self._lock:
            return None if self.made is None else self.made.row(self.selected)

    @property
    def coming(self) -> GenerateRequest | None:
        """What Diffuse was pressed for where that is still to come, else what is there."""
        with self._lock:
            return self._wanted if self._settled < self._wish else self.made

    def want(self, request: GenerateRequest) -> dict[str, Any]:
        """Diffuse was pressed: earlier presses give way. The frame until its turn comes."""
        with self._lock:
            self._wish, self._wanted = self._wish + 1, request
            return self._frame(busy={"text": "Waiting for its turn", "share": None})

    def stop(self) -> dict[str, Any]:
        """Whatever is under way ends within one step or tile; what is there stays."""
        with self._lock:
            self._settled, self._job = self._wish, None
            return self._frame(busy=None)

    def take(
        self, pipe: Pipeline, request: GenerateRequest, latent: Latent, *, origin: str = "", done: int | None = None
    ):
        """A latent from elsewhere (history, file, encoder) in place of the present one. Raises ValueError where it is
        none of this model's."""
        small = thumbs(pipe, latent)
        with self._lock:
            self._wish += 1
            self._settled = self._wish
            self._put(pipe, request, latent, request.steps if done is None else done, origin)
            self.selected, self.frames, self.version = 0, [], next(ORDER)
            self._frame(busy=None, thumbs=small)
            if all(entry.latent is not latent for entry in self.history):
                self._remember()

    def select(self, index: int) -> None:
        """Another row becomes the big image."""
        with self._lock:
            if 0 <= index < len(self._rows) and index != self.selected:
                self.selected, self._job, self.version = index, None, next(ORDER)

    def idle(self, fault: str = "") -> dict[str, Any]:
        """The frame where what was under way has failed, and why."""
        with self._lock:
            self._job = None
            return {**self._frame(busy=None), "fault": fault}

    # a diffusion

    def begin(self) -> tuple[int, GenerateRequest] | None:
        """The wish whose turn has come, and its request; None where it was stopped or served."""
        with self._lock:
            if self._settled >= self._wish:
                return None
            self._running, self._job = True, None
            return self._wish, self._wanted

    def advance(self, wish: int, pipe: Pipeline, request: GenerateRequest, step: DiffusionStep, row: int, **frame):
        """One more step is on the page: its frame, None where the diffusion is to end."""
        with self._lock:
            if self._wish != wish or self._settled >= wish:
                return None
            self._put(pipe, request, step.latent, step.index, "")
            self.selected, self.frames = row, thinned([*self.frames, step.latent] if step.index > 1 else [step.latent])
            return self._frame(**frame)

    def end(self, wish: int, request: GenerateRequest) -> None:
        """No more steps of this wish come."""
        with self._lock:
            drawn = (self.pipe, self.latent) if self.made is request else None
        small = drawn and thumbs(*drawn)
        with self._lock:
            self._running = False
            if self._wish == wish:
                self._settled, self.version = wish, next(ORDER)
                if small:
                    self._frame(thumbs=small)
                    self._remember()

    # a resampling

    def ask(self, view: ViewRequest) -> Job | None:
        """What there is to do for this view of the selected row; None where it is done, or a diffusion will do it."""
        with self._lock:
            self.view, self._viewed = view, time.monotonic()
            if not self._wish:
                raise ValueError("there is no latent (one is dropped after an hour without use): press Generate")
            under_way = self._job and (self._job.version, self._job.view)
            if self.latent is None or self._running or (self.version, view) in (under_way, self._answered):
                return None
            self._job = Job(next(ORDER), self.pipe, self.row, self.request, self.origin, self.version, view)
            return self._job

    def settle(self) -> None:
        """Waits until the view has been the same for STILL, at most PATIENCE: for what nobody asked for by itself."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < min(until, self._viewed + STILL):
            time.sleep(STILL / 10)

    def claim(self) -> Job | None:
        """The large image that nobody works on yet."""
        with self._lock:
            if not self._job or not self._job.large or self._job is self._claimed:
                return None
            self._claimed = self._job
            return self._job

    def asked(self, job: Job) -> bool:
        return self._job is job

    def progress(self, job: Job, **frame) -> dict[str, Any] | None:
        """A frame under way; None where the job no longer counts."""
        with self._lock:
            if self._job is not job:
                return None
            self._answered = None
            return self._frame(**frame)

    def answer(self, job: Job, **frame) -> dict[str, Any] | None:
        """The job's result as a frame; None where it no longer counts."""
        with self._lock:
            if self._job is not job:
                return None
            self._job, self._answered = None, (job.version, job.view)
            return self._frame(busy=None, **frame)

    # under the lock

    def _frame(self, **changes) -> dict[str, Any]:
        """Everything the page shows from now on, after these changes."""
        self._shown = {**self._shown, **changes, "selected": self.selected, "order": next(ORDER)}
        return self._shown

    def _put(self, pipe: Pipeline, request: GenerateRequest, latent: Latent, done: int, origin: str) -> None:
        self.pipe, self.made, self.latent, self.done, self.origin = pipe, request, latent, done, origin
        self._rows = [latent[i] for i in range(len(latent))]
        self._job = None

    def _remember(self) -> None:
        entry = Entry(self.made, self.latent, self.done, tuple(self._shown["thumbs"]), self.origin)
        self.history = [entry, *self.history[: MAX_HISTORY - 1]]
        while len(self.history) > 1 and sum(entry.latent.tensor.numel() for entry in self.history) > MAX_KEPT:
            self.history.pop()


def render(pipe: Pipeline, row: Latent, view: ViewRequest) -> Tensor:
    """One latent → (C, H, W) as `view` says."""
    return pipe.resample(row, size=view.size, fit=view.fit, region=view.region)[0]


def thumbs(pipe: Pipeline, latent: Latent, side: int = THUMB) -> list[bytes]:
    """Every row as a small PNG, whole."""
    return [png(image_CHW) for image_CHW in pipe.resample(latent, size=whole_size(latent, side), fit="contain")]


def whole_size(latent: Latent, side: int) -> tuple[int, int]:
    """(height, width) of the whole frame with this long side."""
    return max(1, round(side / max(1, latent.aspect))), max(1, round(side * min(1, latent.aspect)))


def png(image_CHW: Tensor, parameters: dict[str, Any] | None = None) -> bytes:
    """(C, H, W) in [0, 1] → a PNG file that carries its parameters."""
    file = io.BytesIO()
    save_png(image_CHW, file, parameters or {})
    return file.getvalue()


def about(
    pipe: Pipeline, row: Latent, request: GenerateRequest, view: ViewRequest, text: str, *, state: str, origin: str = ""
):
    """The words and links of a frame. text: how the image was made; state: how far the diffusion came."""
    (height, width), (h, w), named = view.size, row.size, named_label(request)
    zoomed = f" at {view.zoom:.3g} ×" if view.zoom > 1 else ""
    weights = request.model if "/" in request.model else f"weights/{request.model}"
    return dict(
        caption=[
            f"{width} × {height} pixels{zoomed}",
            f"{text} from {w} × {h} cells",
            origin or f"{named}, seed {request.seed}",
            state,
            f"{request.model} on {pipe.device}",
        ],
        ratio=width / height,
        alt=f"{origin or named}, {width} by {height} pixels",
        name="-".join(re.findall(r"[\w.]+", f"r2id {origin or named} seed{request.seed} {width}x{height}")) + ".png",
        view=[view.x, view.y, view.zoom],
        query="" if origin else to_query(request, view),
        python="" if origin else to_python(request, view, weights, stride=pipe.config.stride),
    )


def named_label(request: GenerateRequest) -> str:
    """ "label 3", "60 % label 3 and 40 % label 8", "any label"."""
    label = request.labels[0]
    if isinstance(label, dict):
        return " and ".join(f"{100 * weight:.0f} % label {name}" for name, weight in label.items())
    return f"label {label}" if label else "any label"


def thinned(frames: list[Latent]) -> list[Latent]:
    """Every other frame of a trajectory that has grown too large; the last one stays."""
    while len(frames) > 2 and sum(frame.tensor.numel() for frame in frames) > MAX_KEPT:
        frames = frames[-1::-2][::-1]
    return frames
