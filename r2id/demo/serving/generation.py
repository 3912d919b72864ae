"""The work that the page asks for, diffusing and resampling, each to be overtaken or stopped. Without Gradio."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from r2id.demo.models import Models
from r2id.demo.request import GenerateRequest, ViewRequest, to_dict
from r2id.demo.serving.fair_queue import FairQueue
from r2id.demo.session import Job, Session, about, png, render, thumbs
from r2id.interpolation import share_done
from r2id.latent import Latent
from r2id.pipeline import DiffusionStep, Pipeline

PREVIEW, GRID_PREVIEW = 64, 24  # long sides in pixels, while diffusing: most of the time goes into them
FIRST_LOOK = 160  # long side in pixels of the preview of a large image
PROGRESS = 0.2  # seconds between two frames of a large image


def on_gpu(function):
    """On ZeroGPU, which lends its GPU for a minute and to another process, so to be called; elsewhere the function."""
    if "SPACES_ZERO_GPU" not in os.environ:
        return function
    import spaces

    return spaces.GPU(duration=60)(function)


class GenerationService:
    """The work itself, for all users. What goes wrong is a ValueError of one line."""

    def __init__(self, models: Models):
        self.models, self.queue = models, FairQueue()
        self.steps = on_gpu(self._steps)
        self._openings: dict[str, tuple[Pipeline, Latent]] = {}

    def _steps(self, model: str, labels: list, how: dict[str, Any]) -> Iterator[DiffusionStep]:
        """`Pipeline.diffuse_steps(labels, **how)` of that model. Called as `steps`."""
        yield from self.models.get(model).diffuse_steps(labels, **how)

    def denoise(self, request: GenerateRequest) -> Iterator[DiffusionStep]:
        """The steps of one diffusion; latents are on the CPU."""
        size = request.latent_size(self.models.get(request.model).config.stride)
        how = dict(latent_size=size, aspect=request.aspect, steps=request.steps, guidance=request.guidance)
        how |= dict(sampler=request.sampler, eta=request.eta, seed=request.seed)
        return self.steps(request.model, request.labels, how)

    def usual(self, model: str) -> GenerateRequest:
        """The request that a model's own defaults describe."""
        pipe = self.models.get(model)
        how, label = pipe.config.defaults, (*pipe.labels[3:4], *pipe.labels, "")[0]
        shape = f"{how.latent_size[1]}:{how.latent_size[0]}" if len(set(how.latent_size)) > 1 else "1:1"
        fixed = dict(steps=how.steps, guidance=how.guidance, sampler=how.sampler)
        return GenerateRequest(model, label, cells=max(how.latent_size), shape=shape, **fixed)

    def opening(self, request: GenerateRequest) -> tuple[Pipeline, Latent]:
        """A model and a latent to begin with, diffused once for all users."""
        pipe, latent = self._openings.get(request.model, (None, None))
        if pipe is not (installed := self.models.get(request.model)):
            *_, last = self.denoise(request)
            pipe, latent = self._openings[request.model] = installed, last.latent
        return pipe, latent

    def generate(self, session: Session) -> Iterator[dict[str, Any]]:
        """Frames of what the user wants, step by step; fewer where it is stopped or overtaken."""
        with self.queue.turn(session):
            yield from self._generate(session)

    def _generate(self, session: Session) -> Iterator[dict[str, Any]]:
        if not (begun := session.begin()):
            return
        wish, request = begun
        try:
            pipe, start = self.models.get(request.model), time.perf_counter()
            low_priority = pipe.low_priority
            for step in self.denoise(request):
                row = session.selected if step.index > 1 else 0
                view = replace(session.view, side=min(session.view.side, PREVIEW))
                image = render(low_priority, step.latent[row], view)
                small = thumbs(low_priority, step.latent, GRID_PREVIEW) if request.count > 1 else []
                left = (time.perf_counter() - start) / step.index * (step.steps - step.index)
                state = f"Step {step.index} of {step.steps}"
                busy = {"text": f"{state}, {seconds(left)} left", "share": step.index / step.steps}
                words = about(pipe, step.latent, request.row(row), view, "preview", state=state.lower())
                shown = dict(image=png(image), thumbs=small, busy=busy, **words)
                if not (frame := session.advance(wish, pipe, request, step, row, **shown)):
                    return
                yield frame
        finally:
            session.end(wish, request)

    def show(self, session: Session, view: ViewRequest) -> tuple[dict[str, Any], int | None] | None:
        """The selected row at this view as a frame; of a large image a first look, and the number of the job that
        `complete` is to be called for. None where it is there already, or a diffusion will show it."""
        if not (job := session.ask(view)):
            return None
        start = time.perf_counter()
        if job.large:
            look = png(render(job.pipe, job.row, replace(view, side=FIRST_LOOK)))
            busy = {"text": "Waiting for its turn", "share": None}
            frame = session.progress(job, image=look, busy=busy, **self._about(session, job, "first look"))
            return frame and (frame, job.number)
        frame = self._answer(session, job, render(job.pipe, job.row, view), start)
        return frame and (frame, None)

    def complete(self, session: Session) -> Iterator[dict[str, Any]]:
        """Frames of a large image under way and at its end; a newer view, a stop or a diffusion ends it."""
        if not (job := session.claim()):
            return
        view, (height, width), start, told = job.view, job.view.size, time.perf_counter(), None
        image_CHW = torch.empty(job.pipe.config.channels, height, width)
        tiles = job.pipe.resample_tiles(job.row, size=view.size, fit=view.fit, region=view.region)
        for box, tile_BCHW in tiles:
            left, top, right, bottom = box
            image_CHW[:, top:bottom, left:right] = tile_BCHW[0]
            if not session.asked(job):
                return
            passed = time.perf_counter() - start
            if told is None or passed - told > PROGRESS:
                share, told = share_done(box, view.size), passed
                text = f"{share:.0%} resampled, {seconds(passed / share - passed)} left"
                if frame := session.progress(job, busy={"text": text, "share": share}):
                    yield frame
        if frame := self._answer(session, job, image_CHW, start):
            yield frame

    def _answer(self, session: Session, job: Job, image_CHW: Tensor, start: float) -> dict[str, Any] | None:
        text = f"resampled in {1000 * (time.perf_counter() - start):.0f} ms"
        file = png(image_CHW, {"origin": job.origin} if job.origin else to_dict(job.request, job.view))
        return session.answer(job, image=file, **self._about(session, job, text))

    def _about(self, session: Session, job: Job, text: str) -> dict[str, Any]:
        state = "" if job.origin else taken(job.request, session.done)
        return about(job.pipe, job.row, job.request, job.view, text, state=state, origin=job.origin)


def taken(request: GenerateRequest, done: int) -> str:
    """The diffusion in words."""
    steps = f"{request.steps} steps" if done == request.steps else f"stopped after step {done} of {request.steps}"
    return f"diffused once, {steps}, guidance {request.guidance:g} ×"


def seconds(time_s: float) -> str:
    return f"{time_s:.0f} s" if time_s < 100 else f"{time_s / 60:.0f} min"
