"""One thread for all the arithmetic of a server, in pieces that take turns: pictures before steps and large pictures.

Every thread that computes gets an OpenMP team of its own. With more of them than cores, GNU's OpenMP has each team
sleep between two operations, and small ones take twice as long. So one team has all the cores, and no work waits for
longer than a piece of another one takes.
"""

from __future__ import annotations

import contextvars
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from r2id.latent import Latent
from r2id.pipeline import FULL, Pipeline

MAX_THREADS = 8  # pictures are small: more threads wait for each other
SMALL = 2**18  # pixels up to which a picture is made in one piece, before anything else
END = object()


class Worker:
    """The thread, for the life of the process. All others compute with one OpenMP thread from then on."""

    def __init__(self):
        self._jobs: queue.PriorityQueue = queue.PriorityQueue()
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        threads = min(torch.get_num_threads(), MAX_THREADS)
        self._thread.start()
        self.call(partial(self._settle, threads))
        torch.set_num_threads(1)

    def call(self, function: Callable[[], Any], *, urgent: bool = False) -> Any:
        """What function() returns or raises, run by the worker in the order of asking; urgent ones before others."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future = Future()
        self._jobs.put((not urgent, next(self._count), partial(contextvars.copy_context().run, function), future))
        return future.result()

    def steps(self, iterator: Iterator) -> Iterator:
        """The same values, each one a call."""
        while (value := self.call(partial(next, iterator, END))) is not END:
            yield value

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


class Hosted(Pipeline):
    """A pipeline for many threads, whose arithmetic the worker does."""

    def diffuse_steps(self, labels, **options) -> Iterator:
        return worker().steps(super().diffuse_steps(labels, **options))

    def resample_tiles(self, latent: Latent, *, size: tuple[int, int], fit=None, region=FULL) -> Iterator:
        tiles = super().resample_tiles(latent, size=size, fit=fit, region=region)
        if len(latent) * size[0] * size[1] > SMALL:
            return worker().steps(tiles)
        return iter(worker().call(partial(list, tiles), urgent=True))

    def encode(self, image: Tensor, **options) -> Latent:
        return worker().call(partial(super().encode, image, **options), urgent=True)
