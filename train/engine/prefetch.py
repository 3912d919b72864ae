"""Images of the next steps, loaded by worker processes while a step is computed: for sets that are not in memory."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from train.data.images import ImageSet
from train.engine.loop import Run

WORKERS = 8  # of a process, at most
PARTS = ("images", "targets", "labels")  # of a set, that a step asks for


def prefetched(run: Run, train: ImageSet) -> ImageSet:
    """The set with the images of the run's next steps loaded ahead, where it is not in memory and the machine has cores
    to spare; asked for in another order, they are loaded on the spot."""
    workers = min(WORKERS, (os.cpu_count() or 1) // run.accelerator.num_processes - 1)
    if isinstance(train.images, Tensor) or train.stream or workers < 2 or not hasattr(os, "fork"):
        return train
    ahead = Ahead(run, train, workers)
    given = {part: Part(ahead, part, getattr(train, part)) for part in PARTS if getattr(train, part) is not None}
    return replace(train, **given)


class Samples(Dataset):
    """What steps ask for of a set, a whole batch at once, as arrays: they travel through pipes, whatever the size of
    the machine's shared memory."""

    def __init__(self, train: ImageSet):
        self.train = train

    def __getitems__(self, places: list[int]) -> dict[str, Any]:
        asked, found = torch.tensor(places), {}
        for part in PARTS:
            if (whole := getattr(self.train, part)) is not None:
                values = whole[asked]
                found[part] = values.numpy() if isinstance(values, Tensor) else [value.numpy() for value in values]
        return found


class Ahead:
    """Batches in the order of the steps; the last one that was asked for stays."""

    def __init__(self, run: Run, train: ImageSet, workers: int):
        self.run, self.samples, self.workers = run, Samples(train), workers
        self.expected: Iterator[list[int]] | None = None
        self.loaded: Iterator[dict[str, Any]] = iter(())
        self.places: list[int] = []
        self.found: dict[str, Any] = {}

    def __iter__(self) -> Iterator[list[int]]:
        """Places of every part of this process, from the run's next step to its last."""
        accumulate = self.run.optimisation.accumulate
        first = self.run.accelerator.process_index * accumulate
        for step in range(self.run.step, self.run.optimisation.steps):
            for part in range(first, first + accumulate):
                yield self.run.batch(step)[part :: self.run.parts].tolist()

    def __call__(self, places: list[int]) -> dict[str, Any]:
        """What a batch has whose first places are these."""
        if self.places[: len(places)] != places:
            self.places, self.found = self.next(places)
        return self.found

    def next(self, places: list[int]) -> tuple[list[int], dict[str, Any]]:
        if self.expected is None:
            options = {"num_workers": self.workers, "multiprocessing_context": "fork", "worker_init_fn": begin}
            self.expected = iter(self)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which `begin` sees to
                self.loaded = iter(DataLoader(self.samples, batch_sampler=self, collate_fn=dict, **options))
        expected = next(self.expected, [])
        if expected[: len(places)] != places:  # another order, so nothing is loaded ahead from here on
            self.expected, self.loaded = iter(()), iter(())
            return places, self.samples.__getitems__(places)
        return expected, next(self.loaded)


def begin(worker: int) -> None:
    """In a worker: it has none of the threads that its parent decodes with, and the parent tells it when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    images = get_worker_info().dataset.train.images
    if batch := getattr(images, "batch", None):
        batch.pool = ThreadPoolExecutor(1)


@dataclass(frozen=True)
class Part:
    """One part of the set, indexed like the tensor that it would be."""

    ahead: Ahead
    name: str
    whole: Any

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self.whole.shape

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, key: Tensor | slice) -> Tensor | list[Tensor]:
        if isinstance(key, slice):
            return self.whole[key]
        found = self.ahead(key.tolist())[self.name][: len(key)]
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else [torch.from_numpy(one) for one in found]
