"""What a pipeline keeps of the last few latents: made once, of what they are now, and no longer than they live."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from r2id import R2IR, Latent, pipeline

SIZES = ((8, 8), (16, 10), (3, 21))
LATENT = {"latent_size": (3, 4), "steps": 3}


@pytest.fixture(scope="module")
def latent(tiny) -> Latent:
    return tiny.diffuse([3, None], seed=1, **LATENT)


@pytest.fixture
def contexts(monkeypatch):
    """Weak references to every context that is made."""
    made, prepare = [], R2IR.prepare

    def counted(*args):
        result = prepare(*args)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(R2IR, "prepare", counted)
    return made


def test_context_is_made_once_for_a_latent(tiny, contexts):
    latent = tiny.encode(torch.rand(1, 1, 8, 8), latent_size=(2, 2))
    for size in SIZES:
        tiny.resample(latent, size=size)
    assert len(contexts) == 1
    tiny.resample(replace(latent, aspect=2.0), size=(8, 8))  # the same cells, another frame
    assert len(contexts) == 2


def test_context_dies_with_its_latent(tiny, latent, contexts):
    mortal = tiny.encode(torch.rand(1, 1, 8, 8), latent_size=(2, 2))
    tiny.resample(mortal, size=(8, 8))
    tensor = weakref.ref(mortal.tensor)
    del mortal
    gc.collect()
    assert tensor() is None  # the pipeline does not keep it
    tiny.resample(latent, size=(8, 8))
    assert contexts[0]() is None


def test_only_the_last_few_contexts_are_kept(tiny, contexts):
    latents = [tiny.encode(torch.rand(1, 1, 8, 8), latent_size=(2, 2)) for _ in range(pipeline.CACHED + 2)]
    for latent in latents:
        tiny.resample(latent, size=(8, 8))
    gc.collect()
    assert sum(context() is not None for context in contexts) == pipeline.CACHED


@pytest.mark.parametrize("inference", [False, True])
def test_a_changed_latent_is_not_stale(tiny, inference):
    with torch.inference_mode(inference):
        latent = tiny.encode(torch.rand(2, 1, 8, 8), latent_size=(2, 2))
        before = tiny.resample(latent, size=(8, 8))
        latent.tensor[0] *= -0.5
        after, fresh = tiny.resample(latent, size=(8, 8)), Latent(latent.tensor.clone(), latent.aspect)
        assert torch.equal(after, tiny.resample(fresh, size=(8, 8))) and not torch.allclose(after, before)
    assert torch.equal(tiny.resample(latent, size=(8, 8)), after)
