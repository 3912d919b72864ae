"""A single thread does all tensor work of the server, in short pieces: small images go before denoising steps and large
images. Also limits what a single call may cost.

Why one thread: every thread that computes gets its own OpenMP team. With more teams than cores, GNU OpenMP puts each
team to sleep between operations, and small operations take twice as long. With one team on all cores, no job waits
longer than one piece of another job takes.
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

from r2id.demo.serving.batching import Step, concatenate, run_or_raise_each
from r2id.denoisers.output import DenoiserOutput
from r2id.latent import Latent
from r2id.pipeline import FULL, DiffusionStep, Pipeline

MAX_THREADS = 8  # the images are small, so more threads would only wait for each other
URGENT_LEAD_SECONDS = 30.0  # urgent jobs count as older by this much: they go first, yet nothing waits forever
SMALL_PIXELS = 2**18  # up to this size an image is decoded in one piece, ahead of other work
SMALL_PIXELS_LOW_PRIORITY = 2**16  # the same for images that nobody is waiting for
MAX_DECODED_POINTS = 2**24  # per call, for latents of up to CHEAP_CELLS_DECODED cells; fewer beyond
MAX_DENOISED_CELLS = 2**19  # rows × cells × steps per call, for latents of up to CHEAP_CELLS_DENOISED; fewer beyond
CHEAP_CELLS_DECODED, CHEAP_CELLS_DENOISED = 2**8, 2**10  # measured: above, the cost of attention shows
END = object()


class Worker:
    """The thread that computes, for the life of the process. All other threads are left with one OpenMP thread each."""

    def __init__(self):
        self._jobs: queue.PriorityQueue = queue.PriorityQueue()
        self._batchable: defaultdict[Hashable, deque[tuple[Step, Future]]] = defaultdict(deque)
        self._lock = threading.Lock()  # guards _batchable
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        threads = min(torch.get_num_threads(), MAX_THREADS)
        self._thread.start()
        self.call(partial(self._set_threads, threads))
        torch.set_num_threads(1)

    def call(self, function: Callable[[], Any], *, urgent: bool = False) -> Any:
        """Runs function() in the worker and returns or raises what it does. Calls run in order of arrival; urgent ones
        go before others that have waited less than URGENT_LEAD_SECONDS."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future = Future()
        self._put(function, future, urgent)
        return future.result()

    def _put(self, function: Callable[[], Any], future: Future, urgent: bool) -> None:
        age = time.monotonic() - URGENT_LEAD_SECONDS * urgent
        self._jobs.put((age, next(self._count), partial(contextvars.copy_context().run, function), future))

    def steps(self, iterator: Iterator) -> Iterator:
        """Yields the same values; each one is computed in a call of its own."""
        while (value := self.call(partial(next, iterator, END))) is not END:
            yield value

    def denoise(self, step: Step) -> DenoiserOutput:
        """Runs the step, batched with waiting steps of other callers that have the same key."""
        future: Future = Future()
        with self._lock:
            self._batchable[step.key].append((step, future))
        self._put(partial(self._run_batch, step.key), Future(), False)
        return future.result()

    def _run_batch(self, key: Hashable) -> None:
        """Runs the oldest waiting steps of this key, as many as fit in one piece; none if an earlier batch took
        them."""
        batch, cells = [], 0
        with self._lock:
            waiting = self._batchable[key]
            while waiting and (not batch or cells + waiting[0][0].cells <= CHEAP_CELLS_DENOISED):
                batch.append(waiting.popleft())
                cells += batch[-1][0].cells
            if not waiting:
                del self._batchable[key]
        outputs = run_or_raise_each([step for step, _ in batch]) if batch else []
        for (_, future), value in zip(batch, outputs, strict=True):
            (future.set_exception if isinstance(value, BaseException) else future.set_result)(value)

    @staticmethod
    def _set_threads(threads: int) -> None:
        torch.set_num_threads(threads)
        torch.zeros(2**17).add_(1)  # a thread adopts the number at its first operation and keeps it

    def _work(self) -> None:
        while True:
            *_, function, future = self._jobs.get()
            try:
                future.set_result(function())
            except BaseException as error:  # raised again in the thread that asked
                future.set_exception(error)
            del function, future  # holds no tensors while it waits


worker = cache(Worker)  # one per process


class QuotaPipeline(Pipeline):
    """A pipeline that limits each call to about two minutes on two cores. A larger call raises a ValueError that names
    the limit."""

    urgent = True  # small images go before denoising steps

    @property
    def low_priority(self) -> QuotaPipeline:
        """The same pipeline for images that nobody is waiting for: they queue like denoising steps."""
        pipe = copy(self)
        pipe.urgent = False
        return pipe

    def diffuse_steps(self, labels, **options) -> Iterator[DiffusionStep]:
        path = super().diffuse_steps(labels, **options)  # checks the arguments immediately
        h, w = options.get("latent_size") or self.config.defaults.latent_size
        rows = len(labels) if isinstance(labels, (list, tuple)) else 1
        steps, cells = options.get("steps") or self.config.defaults.steps, h * w
        max_steps = MAX_DENOISED_CELLS // round(rows * cells * max(1, cells / CHEAP_CELLS_DENOISED))
        if steps > max_steps:
            call = f"{steps} steps for {rows} x {h} x {w} cells"
            raise ValueError(f"{call}: at most {max_steps} are served; ask for fewer steps, cells or images")
        return path

    def resample_tiles(self, latent: Latent, *, size: tuple[int, int], fit=None, region=FULL) -> Iterator:
        tiles = super().resample_tiles(latent, size=size, fit=fit, region=region)
        points, cost = self._cost(latent, size, fit, region)
        if cost > MAX_DECODED_POINTS:
            call = f"size {size[0]} x {size[1]} of {len(latent)} x {latent.size[0]} x {latent.size[1]} cells"
            served = f"{points:,} points to decode, at most {int(MAX_DECODED_POINTS * points / cost):,} are served"
            raise ValueError(f"{call}: {served}; ask for a smaller image or fewer cells")
        return tiles

    def _cost(self, latent: Latent, size: tuple[int, int], fit, region) -> tuple[int, float]:
        """Points to decode, and the number of points of a small latent that would cost as much."""
        points = self.decoded_points(latent, size=size, fit=fit, region=region)
        cells = math.prod(latent.size) if self.resampler else 0
        return points, points * max(1, cells / CHEAP_CELLS_DECODED)


class QueuedPipeline(QuotaPipeline):
    """A pipeline for many threads: the worker does the tensor work, in pieces of about a second."""

    def denoise(self, *inputs) -> DenoiserOutput:
        step = Step(self.denoiser, *inputs)
        rows = max(1, CHEAP_CELLS_DENOISED // math.prod(step.noisy.shape[2:]))
        pieces = [slice(first, first + rows) for first in range(0, len(step.noisy), rows)]
        return concatenate([worker().denoise(step.part(rows)) for rows in pieces])

    def resample_tiles(self, latent: Latent, *, size: tuple[int, int], fit=None, region=FULL) -> Iterator:
        tiles = super().resample_tiles(latent, size=size, fit=fit, region=region)
        if self._cost(latent, size, fit, region)[1] > (SMALL_PIXELS if self.urgent else SMALL_PIXELS_LOW_PRIORITY):
            return worker().steps(tiles)
        return iter(worker().call(partial(list, tiles), urgent=self.urgent))

    def encode(self, image: Tensor, **options) -> Latent:
        return worker().call(partial(super().encode, image, **options), urgent=True)
