"""One thread for all the arithmetic of a server, in pieces that take turns: images before steps and large images.
And what one call may cost where many wait for that thread.

Every thread that computes gets an OpenMP team of its own. With more of them than cores, GNU's OpenMP has each team
sleep between two operations, and small ones take twice as long. So one team has all the cores, and no work waits for
longer than a piece of another one takes.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from copy import copy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from r2id.demo.serving.batching import Step, joined, outcomes
from r2id.denoisers.output import Denoised
from r2id.latent import Latent
from r2id.pipeline import FULL, DiffusionStep, Pipeline

MAX_THREADS = 8  # images are small: more threads wait for each other
LEAD = 30.0  # seconds by which urgent work counts as older than it is: it goes first, and nothing waits for ever
SMALL = 2**18  # pixels up to which an image is made in one piece, before anything else
LOW_PRIORITY_PIXELS = 2**16  # … and one that waits like steps
MOST_DECODED = 2**24  # points of one call; in a latent of more than FEW_DECODED cells each costs more
MOST_DIFFUSED = 2**19  # cells of all rows and steps of one call; above FEW_DIFFUSED in a row each costs more
FEW_DECODED, FEW_DIFFUSED = 2**8, 2**10  # up to so many cells, attention is little beside the rest; measured
END = object()


class Worker:
    """The thread, for the life of the process. All others compute with one OpenMP thread from then on."""

    def __init__(self):
        self._jobs: queue.PriorityQueue = queue.PriorityQueue()
        self._alike: defaultdict[Hashable, deque[tuple[Step, Future]]] = defaultdict(deque)
        self._lock = threading.Lock()  # of what is alike
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        threads = min(torch.get_num_threads(), MAX_THREADS)
        self._thread.start()
        self.call(partial(self._settle, threads))
        torch.set_num_threads(1)

    def call(self, function: Callable[[], Any], *, urgent: bool = False) -> Any:
        """What function() returns or raises, run by the worker in the order of asking; urgent ones before others that
        have not waited for LEAD."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future = Future()
        self._put(function, future, urgent)
        return future.result()

    def _put(self, function: Callable[[], Any], future: Future, urgent: bool) -> None:
        age = time.monotonic() - LEAD * urgent
        self._jobs.put((age, next(self._count), partial(contextvars.copy_context().run, function), future))

    def steps(self, iterator: Iterator) -> Iterator:
        """The same values, each one a call."""
        while (value := self.call(partial(next, iterator, END))) is not END:
            yield value

    def denoise(self, step: Step) -> Denoised:
        """A call of its denoiser, together with those of other callers that it fits to: it costs little more."""
        future: Future = Future()
        with self._lock:
            self._alike[step.key].append((step, future))
        self._put(partial(self._together, step.key), Future(), False)
        return future.result()

    def _together(self, key: Hashable) -> None:
        """The oldest steps of this kind that wait, as many as one piece holds; none where an earlier piece had them."""
        taken, cells = [], 0
        with self._lock:
            waiting = self._alike[key]
            while waiting and (not taken or cells + waiting[0][0].cells <= FEW_DIFFUSED):
                taken.append(waiting.popleft())
                cells += taken[-1][0].cells
            if not waiting:
                del self._alike[key]
        found = outcomes([step for step, _ in taken]) if taken else []
        for (_, future), value in zip(taken, found, strict=True):
            (future.set_exception if isinstance(value, BaseException) else future.set_result)(value)

    @staticmethod
    def _settle(threads: int) -> None:
        torch.set_num_threads(threads)
        torch.zeros(2**17).add_(1)  # a thread takes the number over at its first operation, and keeps it

    def _work(self) -> None:
        while True:
            *_, function, future = self._jobs.get()
            try:
                future.set_result(function())
            except BaseException as error:  # the caller's to handle
                future.set_exception(error)
            del function, future  # nothing is held while waiting


worker = cache(Worker)  # one a process


class QuotaPipeline(Pipeline):
    """A pipeline that no call holds for more than about two minutes of two cores: what would cost more is a ValueError
    that says how much is served."""

    urgent = True  # its images go before steps

    @property
    def low_priority(self) -> QuotaPipeline:
        """The same whose images wait like steps, for those that nobody asked for by themselves."""
        pipe = copy(self)
        pipe.urgent = False
        return pipe

    def diffuse_steps(self, labels, **options) -> Iterator[DiffusionStep]:
        path = super().diffuse_steps(labels, **options)  # refuses at once what no pipeline does
        (h, w), rows = self.asked(labels, options)
        steps, cells = options.get("steps") or self.config.defaults.steps, h * w
        most = MOST_DIFFUSED // round(len(rows) * cells * max(1, cells / FEW_DIFFUSED))
        if steps > most:
            asked = f"{steps} steps for {len(rows)} x {h} x {w} cells"
            raise ValueError(f"{asked}: at most {most} are served; ask for fewer steps, cells or images")
        return path

    def asked(self, labels, options: dict) -> tuple[tuple[int, int], list]:
        """Cells of a latent, and a label for each."""
        rows = labels if isinstance(labels, (list, tuple)) else [labels]
        return options.get("latent_size") or self.config.defaults.latent_size, rows

    def resample_tiles(self, latent: Latent, *, size: tuple[int, int], fit=None, region=FULL) -> Iterator:
        tiles = super().resample_tiles(latent, size=size, fit=fit, region=region)
        points, cost = self.points(latent, size, fit, region)
        if cost > MOST_DECODED:
            asked = f"size {size[0]} x {size[1]} of {len(latent)} x {latent.size[0]} x {latent.size[1]} cells"
            served = f"{points:,} points to decode, at most {int(MOST_DECODED * points / cost):,} are served"
            raise ValueError(f"{asked}: {served}; ask for a smaller image or fewer cells")
        return tiles

    def points(self, latent: Latent, size: tuple[int, int], fit, region) -> tuple[int, float]:
        """How many are decoded, and how many of a small latent would cost as much."""
        points = math.prod((len(latent), *size, *self._window(latent, size, fit, region)[1]))
        cells = math.prod(latent.size) if self.resampler else 0
        return points, points * max(1, cells / FEW_DECODED)


class QueuedPipeline(QuotaPipeline):
    """A pipeline for many threads, whose arithmetic the worker does, in pieces of a second or so."""

    def _denoise(self, *inputs) -> Denoised:
        step = Step(self.denoiser, *inputs)
        rows = max(1, FEW_DIFFUSED // math.prod(step.noisy.shape[2:]))
        pieces = [slice(first, first + rows) for first in range(0, len(step.noisy), rows)]
        return joined([worker().denoise(step.part(rows)) for rows in pieces])

    def resample_tiles(self, latent: Latent, *, size: tuple[int, int], fit=None, region=FULL) -> Iterator:
        tiles = super().resample_tiles(latent, size=size, fit=fit, region=region)
        if self.points(latent, size, fit, region)[1] > (SMALL if self.urgent else LOW_PRIORITY_PIXELS):
            return worker().steps(tiles)
        return iter(worker().call(partial(list, tiles), urgent=self.urgent))

    def encode(self, image: Tensor, **options) -> Latent:
        return worker().call(partial(super().encode, image, **options), urgent=True)
