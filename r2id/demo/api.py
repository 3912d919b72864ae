"""The endpoints for programs. They keep no state: a latent travels as a safetensors file."""

# Annotations are not postponed here: gr.api reads them as they are.
import math
import secrets
from contextlib import nullcontext
from dataclasses import asdict, replace
from threading import Semaphore
from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta
from torch import Tensor

from r2id.condition import index_of
from r2id.demo.animate import KINDS
from r2id.demo.animate import encode as encode_animation
from r2id.demo.serving.generation import GenerationService
from r2id.demo.serving.worker import SMALL_PIXELS, worker
from r2id.demo.session import frame_size, png
from r2id.demo.svg import svg as svg_of
from r2id.demo.walk import Walk, images, loop
from r2id.demo.web_decoder import decoder_endpoint
from r2id.demo.wiring import FAIR, gradio_errors, served_file, served_path
from r2id.demo.word import resample_row, seeds_of, spell
from r2id.image_file import open_image
from r2id.latent import Latent
from r2id.limits import SEEDS, check_choice, check_float, check_int, check_size
from r2id.pipeline import Pipeline
from r2id.position import FULL

SIDE = 256  # long side in pixels of the image that diffuse returns
SHORT_SIDE = 1024  # pixels to which larger images are reduced before they are encoded


def endpoints(service: GenerationService) -> None:
    """Adds the endpoints to the page that is being built."""
    each = Endpoints(service)
    served = [each.diffuse, each.resample, each.encode, each.word, each.svg, each.walk, each.models]
    for function in (*served, decoder_endpoint(each.chosen, uploaded, worker().call)):
        gr.api(function, **FAIR)


class Endpoints:
    """A method each; its docstring is what programs read of it."""

    def __init__(self, service: GenerationService):
        self.service = service
        # They bound the memory for large images; small ones do not wait.
        self.decoding, self.reading = Semaphore(4), Semaphore(2)

    def chosen(self, model: str | None) -> tuple[str, Pipeline]:
        """The name and the pipeline of a model, by default the first one."""
        name = next(iter(self.service.models.names), "") if model in (None, "") else model
        return name, self.service.models.get(name)

    def diffuse(
        self,
        http: gr.Request,
        label: str,
        latent_height: int = 8,
        latent_width: int = 8,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        model: str | None = None,
        aspect: float | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        other_label: str | None = None,
        blend: float = 0.0,
    ) -> tuple[gr.FileData, gr.FileData]:
        """Generate a latent. Returns its image (PNG, 256 pixels on the long side) and the latent itself (safetensors),
        which resample decodes to images of any size and shape. Calls of one client are served one after the other.

        Args:
            label: one of the model's labels as models lists them, "" for any
            latent_height: cells from top to bottom; more cells hold more detail; steps x height x width at most
                524,288, and less above 1024 cells: 32 steps at 64 x 64
            latent_width: cells from left to right
            steps: denoiser runs, 1 to 1000
            guidance: how strongly the label counts; 1 is none
            seed: 0 to 4294967295, random by default; the same seed gives the same latent
            model: one that models lists, by default the first
            aspect: width / height of the image that the latent describes, by default that of its cells
            sampler: "dpm++" or "ddim"
            eta: fresh noise at every step, 0 to 10, with "ddim" only
            other_label: a second label to blend with
            blend: the second label's weight, 0 to 1
        """
        with gradio_errors(), self.service.queue.turn(http.session_hash):
            name, pipe = self.chosen(model)
            blend, mixed = check_float(blend, "blend", 0.0, 1.0), None if label == "" else label
            if other_label not in (None, "", label):
                for part in (label, other_label):
                    index_of(part, pipe.config.labels)  # in a mixture there is no other mixture
                mixed = {label: 1 - blend, other_label: blend}
            how = dict(latent_size=(latent_height, latent_width), aspect=aspect, steps=steps, guidance=guidance)
            *_, last = self.service.model_steps(name, [mixed], how | dict(sampler=sampler, eta=eta, seed=seed))
            latent = last.latent
            latent.save(file := served_path("latent.safetensors"))
            image_CHW = pipe.low_priority.resample(latent, size=frame_size(latent, SIDE))[0]
            parameters = dict(model=name, label=latent.labels[0], seed=latent.seeds[0], **how)
            return saved(image_CHW, parameters), gr.FileData(path=str(file))

    def resample(
        self,
        http: gr.Request,
        latent: gr.FileData,
        height: int,
        width: int,
        fit: str | None = None,
        model: str | None = None,
        region: list[float] | None = None,
    ) -> gr.FileData:
        """Decode a latent to an image (PNG) of any size and shape.

        Args:
            latent: a file that diffuse or encode returned, with one row
            height: pixels, 1 to 8192
            width: pixels; height x width at most 16,777,216, and less from a latent of more than 256 cells
            fit: "contain" goes on beyond the latent's edge, "cover" crops, "stretch" distorts; by default the model's
                own
            model: the one that made the latent, by default the first
            region: left, top, right, bottom in fractions of the whole image; that part is decoded at full detail
        """
        with gradio_errors(), self.service.queue.turn((http.session_hash, "images")):
            (name, pipe), loaded = self.chosen(model), Latent.load(uploaded(latent, "latent"))
            if len(loaded) > 1:
                raise ValueError(f"latent of {len(loaded)} rows: one is decoded; send each row, latent[i].save(file)")
            how = dict(size=(height, width), fit=fit, region=FULL if region is None else region)
            large = math.prod(check_size((height, width))) > SMALL_PIXELS
            with self.decoding if large else nullcontext():
                image_CHW = pipe.resample(loaded, **how)[0]
                return saved(image_CHW, dict(model=name, labels=loaded.labels, seeds=loaded.seeds, **how))

    def encode(
        self,
        http: gr.Request,
        image: gr.FileData,
        latent_height: int = 8,
        latent_width: int = 8,
        model: str | None = None,
    ) -> gr.FileData:
        """Encode an image to a latent (safetensors), for resample.

        Args:
            image: an image file
            latent_height: cells from top to bottom
            latent_width: cells from left to right
            model: the one to encode with, by default the first
        """
        with gradio_errors(), self.service.queue.turn((http.session_hash, "images")):
            _, pipe = self.chosen(model)
            with self.reading:
                pil = open_image(uploaded(image, "image"), shortest=SHORT_SIDE)
                pil.info.clear()  # notes are for people
                latent = pipe.encode(pil, latent_size=(latent_height, latent_width))
            latent.save(file := served_path("latent.safetensors"))
            return gr.FileData(path=str(file))

    def word(
        self,
        http: gr.Request,
        text: str,
        height: int = 256,
        latent_height: int = 8,
        latent_width: int = 6,
        seed: int | None = None,
        one_seed: bool = True,
        steps: int | None = None,
        guidance: float | None = None,
        model: str | None = None,
        aspect: float | None = None,
    ) -> tuple[gr.FileData, gr.FileData]:
        """Write a word with a model of letters or digits. Returns its image (PNG) and its latent (safetensors), one row
        a letter, which svg takes.

        Args:
            text: 1 to 12 letters that are labels of the model
            height: pixels of the image
            latent_height: cells from top to bottom, of each letter
            latent_width: cells from left to right, of each letter
            seed: 0 to 4294967295, random by default
            one_seed: whether all letters have this seed, which makes them alike, or each the next one
            steps: denoiser runs, 1 to 1000
            guidance: how strongly the letter counts; 1 is none
            model: one that models lists, by default the first
            aspect: width / height of a letter's frame, by default that of its cells
        """
        with gradio_errors(), self.service.queue.turn(http.session_hash):
            name, pipe = self.chosen(model)
            letters = spell(text, pipe.labels)
            seed = secrets.randbelow(SEEDS) if seed is None else seed
            how = dict(latent_size=(latent_height, latent_width), aspect=aspect, steps=steps, guidance=guidance)
            how["seed"] = seeds_of(seed, len(letters), one_seed=one_seed)
            *_, last = self.service.model_steps(name, letters, how)
            last.latent.save(file := served_path("latent.safetensors"))
            with self.decoding:
                image_CHW = resample_row(pipe.low_priority, last.latent, height=height)
                parameters = dict(model=name, word="".join(letters), **how)
                return saved(image_CHW, parameters), gr.FileData(path=str(file))

    def svg(self, http: gr.Request, latent: gr.FileData, model: str | None = None) -> gr.FileData:
        """Draw the outline of a latent as an SVG file: where its image crosses one half, exact to 1/4,096 of the frame.

        Args:
            latent: a file that diffuse, encode or word returned; its rows stand side by side
            model: the one that made the latent, by default the first
        """
        with gradio_errors(), self.service.queue.turn((http.session_hash, "images")), self.decoding:
            text = svg_of(self.chosen(model)[1].low_priority, Latent.load(uploaded(latent, "latent")))
            return gr.FileData(path=str(served_file("outline.svg", text.encode())))

    def walk(
        self,
        http: gr.Request,
        label: str,
        other_label: str,
        seed: int = 0,
        other_seed: int = 0,
        positions: int = 24,
        side: int = 256,
        seconds: float = 5.0,
        kind: str = "gif",
        cells: int = 8,
        ratio: str = "1:1",
        steps: int | None = None,
        guidance: float | None = None,
        model: str | None = None,
    ) -> gr.FileData:
        """Animate the way from one image to another and back; every position is an image generated on its own.

        Args:
            label: of the first image, "" for any
            other_label: of the last image, "" for any where the first has none
            seed: of the first image
            other_seed: of the last image
            positions: images on the way, 2 to 48
            side: pixels on the long side, 1 to 1024
            seconds: there and back
            kind: "gif", "webp", or "mp4" where the server has ffmpeg
            cells: of each latent, on the long side
            ratio: width : height of the images
            steps: denoiser runs, 1 to 1000
            guidance: how strongly the label counts; 1 is none
            model: one that models lists, by default the first
        """
        with gradio_errors(), self.service.queue.turn(http.session_hash):
            name, pipe = self.chosen(model)
            for each in {label, other_label} - {""}:
                index_of(each, pipe.config.labels)
            check_int(side, "side", 1, 1024)
            check_choice(kind, "kind", KINDS)
            how = dict(cells=cells, shape=ratio, steps=steps, guidance=guidance)
            how = {key: value for key, value in how.items() if value is not None}
            start = replace(self.service.default_request(name), label=label, seed=seed, **how)
            way = Walk(start, other_label, other_seed, positions)
            *_, last = self.service.model_steps(name, way.labels(), way.options(pipe))
            with self.decoding:
                frames = loop(list(images(pipe.low_priority, last.latent, side)))
                return gr.FileData(path=str(served_file(f"walk.{kind}", encode_animation(frames, seconds, kind))))

    def models(self) -> list[dict[str, Any]]:
        """List the installed models: name, labels, trained latent sizes (cells) and aspects (w / h), defaults."""
        known = (
            "labels",
            "channels",
            "encoder_size",
            "decoder_size",
            "trained_cells",
            "trained_aspects",
            "size_multiple",
            "fit",
        )
        configs = {name: self.service.models.get(name).config for name in self.service.models.names}
        return [
            {"name": name, **{key: getattr(config, key) for key in known}, "defaults": asdict(config.defaults)}
            for name, config in configs.items()
        ]


def uploaded(file: Any, name: str) -> str:
    """The path of an uploaded file, which Gradio has checked."""
    if not is_file_obj_with_meta(file):
        raise ValueError(f"{name}: must be a file, as gradio_client.handle_file sends it")
    return file["path"]


def saved(image_CHW: Tensor, parameters: dict[str, Any]) -> gr.FileData:
    return gr.FileData(path=str(served_file("image.png", png(image_CHW, parameters))))
