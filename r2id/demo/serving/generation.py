"""What the page asks for: generating latents and decoding views of them, each of which can be stopped or superseded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from r2id.demo.illustrations import equal_numbers_pixels
from r2id.demo.models import Models
from r2id.demo.request import GenerateRequest, ViewRequest, to_dict
from r2id.demo.serving.fair_queue import FairQueue
from r2id.demo.serving.worker import worker
from r2id.demo.session import Job, Session, describe, png, render, thumbs
from r2id.demo.web_decoder import can_decode, decoder_file
from r2id.interpolation import share_done
from r2id.latent import Latent
from r2id.pipeline import DiffusionStep, Pipeline
from r2id.resampler import R2IR

PREVIEW_SIDE, GRID_PREVIEW_SIDE = 64, 24  # long sides in pixels during generation; previews take most of its time
FIRST_SEED = 11  # of the image that a new page shows: with the shipped weights a clean letter and a face that smiles
FIRST_PREVIEW_SIDE = 160  # long side in pixels of the preview of a large image
PROGRESS_SECONDS = 0.2  # between two frames of a large image


def on_gpu(function):
    """On ZeroGPU, wraps the function to run in the process that holds the GPU, for up to a minute; else returns it."""
    if "SPACES_ZERO_GPU" not in os.environ:
        return function
    import spaces

    return spaces.GPU(duration=60)(function)


class GenerationService:
    """Generates and decodes for all users. Errors are ValueErrors of one line."""

    def __init__(self, models: Models):
        self.models, self.queue = models, FairQueue()
        self.model_steps = on_gpu(self._model_steps)
        self._first_steps: dict[str, tuple[Pipeline, list[Latent]]] = {}
        self._first_frames: dict[str, tuple[Latent, ViewRequest, dict[str, Any]]] = {}
        self._decoders: WeakKeyDictionary[R2IR, Path] = WeakKeyDictionary()  # the file of each model's decoder

    def _model_steps(self, model: str, labels: list, options: dict[str, Any]) -> Iterator[DiffusionStep]:
        """`Pipeline.diffuse_steps(labels, **options)` of the named model. Call it as `model_steps`."""
        yield from self.models.get(model).diffuse_steps(labels, **options)

    def diffuse_steps(self, request: GenerateRequest) -> Iterator[DiffusionStep]:
        """The steps of this request; latents are on the CPU."""
        options = request.diffuse_options(self.models.get(request.model).config.size_multiple)
        return self.model_steps(request.model, request.labels, options)

    def default_request(self, model: str) -> GenerateRequest:
        """A request with the model's own defaults, and the seed that a new page begins with."""
        pipe = self.models.get(model)
        how, label = pipe.config.defaults, (*pipe.labels[3:4], *pipe.labels, "")[0]
        shape = f"{how.latent_size[1]}:{how.latent_size[0]}" if len(set(how.latent_size)) > 1 else "1:1"
        fixed = dict(steps=how.steps, guidance=how.guidance, sampler=how.sampler)
        return GenerateRequest(model, label, cells=max(how.latent_size), shape=shape, seed=FIRST_SEED, **fixed)

    def first_steps(self, request: GenerateRequest) -> tuple[Pipeline, list[Latent]]:
        """The model and every step of the latent that a new page shows, generated once for all users."""
        pipe, latents = self._first_steps.get(request.model, (None, []))
        if pipe is not (installed := self.models.get(request.model)):
            latents = [step.latent for step in self.diffuse_steps(request)]
            pipe, latents = self._first_steps[request.model] = installed, latents
        return pipe, latents

    def first_latent(self, request: GenerateRequest) -> tuple[Pipeline, Latent]:
        """The model and the latent that a new page shows: the last of `first_steps`."""
        pipe, latents = self.first_steps(request)
        return pipe, latents[-1]

    def first_frame(self, request: GenerateRequest, view: ViewRequest) -> dict[str, Any]:
        """The frame of `first_latent` in this view, decoded once for all users."""
        (pipe, latent), known = self.first_latent(request), self._first_frames.get(request.model)
        if known is None or known[0] is not latent or known[1] != view:
            session = Session()
            session.load(pipe, request, latent)
            frame, _ = self.show(session, view)
            known = self._first_frames[request.model] = latent, view, frame
        return known[2]

    def generate(self, session: Session) -> Iterator[dict[str, Any]]:
        """A frame per step of the submitted request; ends early when it is stopped or superseded."""
        with self.queue.turn(session):
            yield from self._generate(session)

    def _generate(self, session: Session) -> Iterator[dict[str, Any]]:
        if not (started := session.begin()):
            return
        ticket, request = started
        try:
            pipe, start = self.models.get(request.model), time.perf_counter()
            low_priority, local = pipe.low_priority, bool(session.local) and can_decode(pipe)
            for step in self.diffuse_steps(request):
                row = session.selected if step.index > 1 else 0
                view = replace(session.view, side=min(session.view.side, PREVIEW_SIDE))
                image = None if local else png(render(low_priority, step.latent[row], view))
                decoder = self.decoder_files(pipe, step.latent[row]) if local else None
                small = thumbs(low_priority, step.latent, GRID_PREVIEW_SIDE) if request.count > 1 else []
                left = (time.perf_counter() - start) / step.index * (step.steps - step.index)
                state = f"Step {step.index} of {step.steps}"
                busy = {"text": f"{state}, {seconds(left)} left", "share": step.index / step.steps}
                known = dict(state=state.lower(), latent_id=f"{ticket} {step.index}")
                words = describe(pipe, step.latent, request.row(row), view, "preview", **known)
                shown = dict(image=image, decoder=decoder, thumbs=small, busy=busy, **words)
                if not (frame := session.advance(ticket, pipe, request, step, row, **shown)):
                    return
                yield frame
        finally:
            session.end(ticket, request)

    def show(
        self, session: Session, view: ViewRequest, *, image: bool = False
    ) -> tuple[dict[str, Any], int | None] | None:
        """Decodes the selected row for this view: a frame and None, or for a large image the frame of a preview and
        the number of a job for `complete`. None if the view is already shown or a running generation will show it.

        Where the browser decodes, the frame has no image but what the browser needs; image: it has one all the same."""
        local = bool(session.local) and not image and session.pipe is not None and can_decode(session.pipe)
        if not (job := session.request_view(view, local=local)):
            return None
        start = time.perf_counter()
        if local:
            frame = session.finish(job, image=None, **self._describe(session, job, "decoded"))
            return frame and (frame, None)
        latent, known, first = self._first_frames.get(job.request.model, (None, None, None))
        if known == view and session.latent is latent:
            words = self._describe(session, job, first["decoded"])
            frame = session.finish(job, image=first["image"], **words)
            return frame and (frame, None)
        if job.large:
            preview = png(render(job.pipe, job.row, replace(view, side=FIRST_PREVIEW_SIDE)))
            busy = {"text": "Waiting for its turn", "share": None}
            frame = session.progress(job, image=preview, busy=busy, **self._describe(session, job, "preview"))
            return frame and (frame, job.number)
        frame = self._finish(session, job, render(job.pipe, job.row, view), start)
        return frame and (frame, None)

    def small(self, session: Session) -> dict[str, Any] | None:
        """A frame with `small`: the selected row as an image of as many numbers as it has. None without a latent."""
        row, pipe, shown = session.row, session.pipe, session.latent_id
        if row is None:
            return None
        image_CHW = pipe.resample(row, size=equal_numbers_pixels(row, pipe.config.channels), fit="stretch")[0]
        return session.add(small=dict(latent=shown, image=png(image_CHW)))

    def decoder_files(self, pipe: Pipeline, row: Latent) -> dict[str, str] | None:
        """Paths of the files with which a browser decodes this latent, see web_decoder.py; None where it cannot."""
        if not can_decode(pipe):
            return None
        path = self._decoders.get(pipe.resampler)
        if path is None or not path.exists():
            path = self._decoders[pipe.resampler] = worker().call(partial(decoder_file, pipe))
        os.utime(path)  # Gradio deletes old files
        return dict(model=str(path), tokens=str(worker().call(partial(decoder_file, pipe, row), urgent=True)))

    def complete(self, session: Session) -> Iterator[dict[str, Any]]:
        """Frames with the progress of a large image, then the image. A newer view, Stop or Generate ends it early."""
        if not (job := session.claim_large()):
            return
        view, (height, width), start, shown = job.view, job.view.size, time.perf_counter(), None
        image_CHW = torch.empty(job.pipe.config.channels, height, width)
        tiles = job.pipe.resample_tiles(job.row, **view.resample_options)
        for box, tile_BCHW in tiles:
            left, top, right, bottom = box
            image_CHW[:, top:bottom, left:right] = tile_BCHW[0]
            if not session.is_current(job):
                return
            elapsed = time.perf_counter() - start
            if shown is None or elapsed - shown > PROGRESS_SECONDS:
                share, shown = share_done(box, view.size), elapsed
                text = f"{share:.0%} decoded, {seconds(elapsed / share - elapsed)} left"
                if frame := session.progress(job, busy={"text": text, "share": share}):
                    yield frame
        if frame := self._finish(session, job, image_CHW, start):
            yield frame

    def _finish(self, session: Session, job: Job, image_CHW: Tensor, start: float) -> dict[str, Any] | None:
        text = f"decoded in {1000 * (time.perf_counter() - start):.0f} ms"
        file = png(image_CHW, {"origin": job.origin} if job.origin else to_dict(job.request, job.view))
        return session.finish(job, image=file, **self._describe(session, job, text))

    def _describe(self, session: Session, job: Job, text: str) -> dict[str, Any]:
        known = dict(state="" if job.origin else diffusion_text(job.request, session.done), origin=job.origin)
        decoder = None if session.trouble else self.decoder_files(job.pipe, job.row)
        words = describe(job.pipe, job.row, job.request, job.view, text, latent_id=str(job.version), **known)
        return words | dict(decoder=decoder, decoded=text)


def diffusion_text(request: GenerateRequest, done: int) -> str:
    """How a latent was generated, in words. done: steps taken."""
    whole, part = f"generated in {request.steps} steps", f"stopped after step {done} of {request.steps}"
    return f"{whole if done == request.steps else part}, guidance {request.guidance:g} ×"


def seconds(time_s: float) -> str:
    return f"{time_s:.0f} s" if time_s < 100 else f"{time_s / 60:.0f} min"
