"""The one thread for all arithmetic: the same results, in the order that lets images go first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from r2id.demo.serving.worker import SMALL_PIXELS, QueuedPipeline, worker
from r2id.pipeline import Pipeline


@pytest.fixture(scope="module")
def pair(tiny_weights) -> tuple[QueuedPipeline, Pipeline]:
    return tuple(kind.from_pretrained(tiny_weights, device="cpu") for kind in (QueuedPipeline, Pipeline))


def test_a_queued_pipeline_gives_the_same_results(pair):
    latents = [pipe.diffuse(["3", None], latent_size=(4, 5), seed=1) for pipe in pair]
    assert torch.equal(*[latent.tensor for latent in latents])
    side = round(SMALL_PIXELS**0.5) + 8  # in one piece, and in several
    for size in ((20, 30), (side, side)):
        assert torch.equal(*[pipe.resample(latents[0][0], size=size) for pipe in pair])
    image_CHW = torch.rand(1, 8, 8)
    assert torch.equal(*[pipe.encode(image_CHW, latent_size=(3, 3)).tensor for pipe in pair])


def test_everything_is_computed_by_one_thread(pair):
    seen, (queued, _) = [], pair
    for module in (queued.denoiser, *queued.resampler.modules()):
        module.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    queued.encode(torch.rand(1, 8, 8), latent_size=(3, 3))
    queued.resample(queued.diffuse("3", latent_size=(4, 4)), size=(8, 8))
    assert len(seen) > 2 and set(seen) == {"worker"}


def test_images_go_before_what_has_waited_longer():
    begun, gate, order = threading.Event(), threading.Event(), []
    jobs = [("first", False), ("step", False), ("other step", False), ("image", True), ("next image", True)]

    def job(name):
        order.append(name)
        begun.set()
        gate.wait(10)

    threads = [
        threading.Thread(target=worker().call, args=(lambda n=n: job(n),), kwargs={"urgent": u}) for n, u in jobs
    ]
    for count, thread in enumerate(threads):
        thread.start()
        assert begun.wait(10)
        while worker()._jobs.qsize() < count:  # all others wait behind the first
            time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "image", "next image", "step", "other step"]


@pytest.fixture
def held():
    """The worker waits until the event is set."""
    gate = threading.Event()
    begun = threading.Event()
    threading.Thread(target=worker().call, args=(lambda: begun.set() or gate.wait(10),), daemon=True).start()
    assert begun.wait(10)
    yield gate
    gate.set()


def at_once(gate, pipe, asked: list[dict]) -> list:
    """Latents, or the errors instead of them, of calls that begin while the worker is held."""
    with ThreadPoolExecutor(len(asked)) as pool:
        calls = [pool.submit(pipe.diffuse, how.pop("label"), **how) for how in asked]
        while worker()._jobs.qsize() < len(asked):
            time.sleep(0.001)
        gate.set()
    return [call.exception() or call.result() for call in calls]


ASKED = [  # alike but for what differs from row to row
    dict(label="3", latent_size=(4, 5), steps=3, seed=1),
    dict(label=["7", None], latent_size=(4, 5), steps=5, seed=2, sampler="ddim"),
    dict(label={"3": 1, "7": 1}, latent_size=(4, 5), steps=4, seed=3, guidance=3.0),
    dict(label="3", latent_size=(5, 4), steps=3, seed=1),
    dict(label="3", latent_size=(4, 5), aspect=1.0, steps=3, seed=1),
    dict(label="3", latent_size=(4, 5), steps=3, seed=1, guidance=1.0),
]


def test_steps_of_several_users_are_one_call_and_each_gets_its_own(pair, held):
    sizes, (queued, plain) = [], pair
    hook = queued.denoiser.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    alone = [plain.diffuse(how["label"], **{k: v for k, v in how.items() if k != "label"}) for how in ASKED]
    together = at_once(held, queued, [dict(how) for how in ASKED])
    hook.remove()
    assert max(sizes) == 4  # rows of the first three
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.tensor, other.tensor)
        assert (one.seeds, one.labels, one.aspect) == (other.seeds, other.labels, other.aspect)


def test_an_error_in_one_users_steps_does_not_end_another_users(pair, held, monkeypatch):
    """Of two that are batched: the call fails while it has a row of the label 7."""
    queued, plain = pair
    forward, options = queued.denoiser.forward, dict(latent_size=(4, 4), steps=2, seed=5)
    seven_1MD = queued.denoiser.condition(torch.eye(len(queued.labels))[7:8])

    def failing(noisy, alpha_bar, positions, conditions, state):
        if any((tokens == seven_1MD).flatten(1).all(1).any() for tokens in conditions if tokens is not None):
            raise MemoryError("none left")
        return forward(noisy, alpha_bar, positions, conditions, state)

    monkeypatch.setattr(queued.denoiser, "forward", failing)
    good, wrong = at_once(held, queued, [dict(label=label, **options) for label in "37"])
    assert isinstance(wrong, MemoryError)
    torch.testing.assert_close(good.tensor, plain.diffuse("3", **options).tensor)


def test_what_goes_wrong_reaches_the_caller_and_the_worker_goes_on():
    def fails():
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        worker().call(fails)
    assert worker().call(lambda: worker().call(lambda: 3)) == 3  # also from within
