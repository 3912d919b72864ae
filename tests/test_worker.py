"""The one thread for all arithmetic: the same results, in the order that lets pictures go first."""

import threading
import time

import pytest
import torch

from r2id.demo.worker import SMALL, Hosted, Limited, worker
from r2id.pipeline import Pipeline


@pytest.fixture(scope="module")
def pair(tiny_weights) -> tuple[Hosted, Pipeline]:
    return tuple(kind.from_pretrained(tiny_weights, device="cpu") for kind in (Hosted, Pipeline))


def test_a_hosted_pipeline_gives_the_same_results(pair):
    latents = [pipe.diffuse(["3", None], latent_size=(4, 5), seed=1) for pipe in pair]
    assert torch.equal(*[latent.tensor for latent in latents])
    side = round(SMALL**0.5) + 8  # in one piece, and in several
    for size in ((20, 30), (side, side)):
        assert torch.equal(*[pipe.resample(latents[0][0], size=size) for pipe in pair])
    image_CHW = torch.rand(1, 8, 8)
    assert torch.equal(*[pipe.encode(image_CHW, latent_size=(3, 3)).tensor for pipe in pair])


def test_everything_is_computed_by_one_thread(pair):
    seen, (hosted, _) = [], pair
    for module in (hosted.denoiser, hosted.resampler.latent_norm, hosted.resampler.image_norm):
        module.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    hosted.encode(torch.rand(1, 8, 8), latent_size=(3, 3))
    hosted.resample(hosted.diffuse("3", latent_size=(4, 4)), size=(8, 8))
    assert len(seen) > 2 and set(seen) == {"worker"}


def test_pictures_go_before_what_has_waited_longer():
    begun, gate, order = threading.Event(), threading.Event(), []
    jobs = [("first", False), ("step", False), ("other step", False), ("picture", True), ("next picture", True)]

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
    assert order == ["first", "picture", "next picture", "step", "other step"]


def test_what_goes_wrong_reaches_the_caller_and_the_worker_goes_on():
    def fails():
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        worker().call(fails)
    assert worker().call(lambda: worker().call(lambda: 3)) == 3  # also from within


def test_wrong_arguments_are_told_at_once(pair):
    with pytest.raises(ValueError, match="steps"):
        pair[0].diffuse_steps("3", steps=0)
    with pytest.raises(ValueError, match="size"):
        pair[0].resample_tiles(pair[1].diffuse("3"), size=(0, 4))


@pytest.mark.parametrize("kind", [Limited, Hosted])
def test_what_would_hold_others_up_is_refused_at_once(tiny_weights, kind):
    pipe = kind.from_pretrained(tiny_weights, device="cpu")
    with pytest.raises(ValueError, match="at most 32 are served"):
        pipe.diffuse_steps("3", latent_size=(64, 64), steps=1000)
    with pytest.raises(ValueError, match="at most 16,777,216 are served"):
        pipe.resample_tiles(Pipeline.diffuse(pipe, "3"), size=(8192, 8192))
