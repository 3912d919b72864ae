"""Images that are loaded ahead are those of the steps, whoever loads them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from small_run import COUNT, EXACT, SMALL, small

from train.data.images import ImageSet
from train.engine import prefetch
from train.engine.prefetch import prefetched


class Slow:
    """Images that come from elsewhere, and where they were made."""

    shape = COUNT, 1, 2, 2

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, key):
        places = torch.arange(COUNT)[key]
        return (
            places.float().view(-1, 1, 1, 1).expand(-1, 2, 2, 2).clone().index_fill_(1, torch.tensor([1]), os.getpid())
        )


@pytest.fixture
def train(monkeypatch) -> ImageSet:
    monkeypatch.setattr(prefetch.os, "cpu_count", lambda: 3)
    return ImageSet(Slow(), torch.arange(COUNT) * 10, (), None)


def test_steps_get_their_images_from_workers(train):
    run = small(None, replace(SMALL, accumulate=2), **EXACT)
    ahead, makers = prefetched(run, train), set()

    def compute(loss, indices, phase, step, part):
        images, labels = ahead.images[indices[:1]], ahead.labels[indices]  # a step may need fewer than its part
        assert torch.equal(images[:, 0, 0, 0].long(), indices[:1]) and torch.equal(labels, indices * 10)
        makers.add(int(images[0, 1, 0, 0]))
        return loss.model(torch.ones(1, 4)).mean(), {}

    for _ in range(SMALL.steps):
        run.update(compute)
    assert len(makers) == 2 and os.getpid() not in makers


def test_another_order_is_loaded_on_the_spot(train):
    ahead = prefetched(small(None), train)
    for places in ([3, 1], [0], [7, 7]):
        images = ahead.images[torch.tensor(places)]
        assert images[:, 0, 0, 0].tolist() == places and int(images[0, 1, 0, 0]) == os.getpid()
    assert ahead.images[2:4].shape[0] == 2 and ahead.images.shape == train.images.shape and len(ahead) == COUNT


def test_what_is_in_memory_or_streamed_stays_as_it_is(train, monkeypatch):
    run = small(None)
    memory = replace(train, images=torch.zeros(COUNT, 1, 2, 2))
    assert prefetched(run, memory) is memory
    streamed = replace(train, stream=object())
    assert prefetched(run, streamed) is streamed
    monkeypatch.setattr(prefetch.os, "cpu_count", lambda: 2)
    assert prefetched(run, train) is train  # no cores to spare


def test_a_fault_in_a_worker_is_one_line(train):
    from train.engine.cli import explained

    class Broken(Slow):
        def __getitem__(self, key):
            raise ValueError("data: more than half cannot be read; fix them")

    run = small(None)
    ahead = prefetched(run, replace(train, images=Broken()))
    with pytest.raises(ValueError) as caught:
        ahead.images[run.batch(0)]
    assert explained(caught.value) == "data: more than half cannot be read; fix them"
