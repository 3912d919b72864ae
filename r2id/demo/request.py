"""How an image is generated and viewed, as plain data: in a PNG file, in a link and as lines of Python."""

# Annotations are not postponed here: the checks below read the types of the fields.
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from r2id.limits import MAX_CELLS, MAX_GUIDANCE, MAX_SIDE, MAX_STEPS, SEEDS, check_float, check_int, short_repr
from r2id.position import FITS, FULL
from r2id.sampler import SAMPLERS

MAX_RATIO = 4  # of width to height, and its inverse
MAX_ZOOM = 4096.0
MAX_TEXT = 255  # characters of a name
LIMITS = {  # lowest and highest value of every numeric field
    "blend": (0.0, 1.0),
    "count": (1, 16),
    "cells": (1, round(MAX_CELLS**0.5)),
    "steps": (1, MAX_STEPS),
    "guidance": (-MAX_GUIDANCE, MAX_GUIDANCE),
    "eta": (0.0, 10.0),
    "seed": (0, SEEDS - 1),
    "side": (1, MAX_SIDE),
    "x": (0.0, 1.0),
    "y": (0.0, 1.0),
    "zoom": (1.0, MAX_ZOOM),
}


@dataclass(frozen=True)
class GenerateRequest:
    """Determines `count` latents. Links leave defaults out, so never change a default.

    label: "" is unconditional. other, blend: a second label ("" for none) and its weight, 0…1. count: images, with
    seeds seed … seed + count - 1. cells: long side of the latent. shape: aspect ratio w:h of the frame, "16:9" or
    "1.78". eta: see `Pipeline.diffuse_steps`. Raises ValueError, one line, for a wrong type or a value out of range;
    whether the model exists and has the labels is checked elsewhere.
    """

    model: str
    label: str = ""
    other: str = ""
    blend: float = 0.0
    count: int = 1
    cells: int = 8
    shape: str = "1:1"
    steps: int = 20
    guidance: float = 1.5
    sampler: str = "dpm++"
    eta: float = 0.0
    seed: int = 0

    def __post_init__(self):
        _check(self)
        _one_of(self.sampler, "sampler", SAMPLERS)
        sides(1, self.shape)
        if not self.model:
            raise ValueError("model: must be named")
        if self.other and not self.label and 0 < self.blend < 1:
            raise ValueError(f"blend {self.blend:g} of {short_repr(self.other)}: needs a first label to blend it with")

    @property
    def labels(self) -> list[str | None | dict[str, float]]:
        """Labels for `Pipeline.diffuse`: a name, None or {name: weight}, `count` times."""
        label = self.other if self.other and self.blend == 1 else self.label
        if self.other not in ("", self.label) and 0 < self.blend < 1:
            label = {self.label: 1 - self.blend, self.other: self.blend}
        return [label or None] * self.count

    def latent_size(self, size_multiple: int = 1) -> tuple[int, int]:
        """(h, w), multiples of size_multiple: the long side rounded down from `cells`, the short one to the nearest."""
        (h, w), _ = sides(self.cells // size_multiple, self.shape)
        return h * size_multiple, w * size_multiple

    @property
    def aspect(self) -> float:
        """Width / height of the frame; the ratio of whole cells may differ a little."""
        return sides(1, self.shape)[1]

    def diffuse_options(self, size_multiple: int = 1) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.diffuse`. size_multiple: `config.size_multiple` of the model."""
        options = dict(latent_size=self.latent_size(size_multiple), aspect=self.aspect, steps=self.steps)
        return options | dict(guidance=self.guidance, sampler=self.sampler, eta=self.eta, seed=self.seed)

    def row(self, i: int) -> "GenerateRequest":
        """The request that gives the i-th image alone."""
        seed = self.seed + check_int(i, "image", 0, self.count - 1)
        return replace(self, count=1, seed=seed % SEEDS)


@dataclass(frozen=True)
class ViewRequest:
    """Determines an image of a latent.

    side: long side in pixels. ratio: w:h of the image, "640:360" with side 640 for an exact size. fit: see
    `Pipeline.resample`. x, y: the centre of the view, in fractions of the whole image. zoom: magnification, 1 shows
    the whole image. Raises ValueError, one line, for a wrong type or a value out of range.
    """

    side: int = 256
    ratio: str = "1:1"
    fit: str = "contain"
    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    def __post_init__(self):
        _check(self)
        _one_of(self.fit, "fit", FITS)
        sides(1, self.ratio)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return sides(self.side, self.ratio)[0]

    @property
    def region(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in fractions of the whole image, moved inside it where it would cross an edge."""
        extent = 1 / self.zoom
        left, top = (min(max(centre - extent / 2, 0.0), 1 - extent) for centre in (self.x, self.y))
        return left, top, left + extent, top + extent

    @property
    def resample_options(self) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.resample`."""
        return dict(size=self.size, fit=self.fit, region=self.region)


def sides(long: int, ratio: str) -> tuple[tuple[int, int], float]:
    """The long side in pixels and a ratio w:h, "16:9" or "1.78" → (height, width) and the exact width / height.

    Raises ValueError for a ratio beyond 1:4 … 4:1.
    """
    width, _, height = str(ratio).partition(":")
    aspect = 0.0
    with suppress(ValueError, ZeroDivisionError):
        aspect = float(width) / float(height or 1)
    if not 1 / MAX_RATIO <= aspect <= MAX_RATIO:  # NaN is not
        text = " ".join(str(ratio)[:40].split())
        raise ValueError(f"aspect ratio {text}: must be 1:{MAX_RATIO} … {MAX_RATIO}:1, like 16:9 or 1.78")
    return (max(1, round(long * min(1, 1 / aspect))), max(1, round(long * min(1, aspect)))), aspect


def to_dict(request: GenerateRequest, view: ViewRequest) -> dict[str, Any]:
    """All fields by name, ready for JSON."""
    return asdict(request) | asdict(view)


def from_dict(values: dict[str, Any]) -> tuple[GenerateRequest, ViewRequest]:
    """The inverse of `to_dict`. Raises ValueError, one line, for anything else."""
    if not isinstance(values, dict):
        raise ValueError(f"parameters: must be an object of names and values, not {type(values).__name__}")
    known = _names(GenerateRequest) | _names(ViewRequest)
    for fault, names in (("unknown", values.keys() - known), ("missing", known - values.keys())):
        if names:
            raise ValueError(f"parameters: {fault} {_listed(names)}; they must be those of an image made here")
    return _build(values)


def to_query(request: GenerateRequest, view: ViewRequest) -> str:
    """The query of a link, without "?": the model, the seed, and all fields that differ from their defaults."""
    defaults = to_dict(GenerateRequest(request.model), ViewRequest()) | {"model": None, "seed": None}
    return urlencode({name: value for name, value in to_dict(request, view).items() if value != defaults[name]})


def from_query(params: Mapping[str, str]) -> tuple[GenerateRequest, ViewRequest]:
    """The inverse of `to_query`, from decoded parameters. Ignores unknown names, which links collect on their way.

    Raises ValueError, one line, for a value out of range or if no model is named.
    """
    known = _names(GenerateRequest) | _names(ViewRequest)
    values = {"model": ""} | {name: params[name] for name in known if name in params}
    for field in (*fields(GenerateRequest), *fields(ViewRequest)):
        if field.name in values:
            with suppress(ValueError, TypeError):  # text that is no number is rejected below
                values[field.name] = field.type(values[field.name])
    return _build(values)


def to_python(request: GenerateRequest, view: ViewRequest, weights: str, *, size_multiple: int = 1) -> str:
    """Python code that makes the same images. weights: the argument of `Pipeline.from_pretrained`.

    size_multiple: `config.size_multiple` of the model. The code is safe to run whatever the labels and names contain.
    """
    labels = f"[{request.labels[0]!r}]"
    diffuse, resample = request.diffuse_options(size_multiple), view.resample_options
    h, w = diffuse["latent_size"]
    for options, name, default in ((diffuse, "aspect", w / h), (diffuse, "eta", 0.0), (resample, "region", FULL)):
        if options[name] == default:
            del options[name]
    diffuse, resample = (
        ", ".join(f"{name}={value!r}" for name, value in options.items()) for options in (diffuse, resample)
    )
    if request.count == 1:
        save = 'to_pil(images[0]).save("image.png")'
    else:
        labels += f" * {request.count}"
        save = 'for i, image in enumerate(images):\n    to_pil(image).save(f"image{i}.png")'
    return f"""from r2id import Pipeline
from r2id.image import to_pil

pipe = Pipeline.from_pretrained({weights!r})
latent = pipe.diffuse({labels}, {diffuse})
images = pipe.resample(latent, {resample})
{save}
"""


def _check(record: GenerateRequest | ViewRequest) -> None:
    """Converts every field to its type and checks its range; raises a ValueError that names the field."""
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type is not str:
            value = (check_int if field.type is int else check_float)(value, field.name, *LIMITS[field.name])
        elif not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
            raise ValueError(f"{field.name} {short_repr(value)}: must be text, at most {MAX_TEXT} printable characters")
        object.__setattr__(record, field.name, value)


def _one_of(value: str, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {short_repr(value)}: must be one of {', '.join(known)}")


def _build(values: Mapping[str, Any]) -> tuple[GenerateRequest, ViewRequest]:
    request, view = (
        kind(**{name: values[name] for name in _names(kind) if name in values})
        for kind in (GenerateRequest, ViewRequest)
    )
    return request, view


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _listed(names: Iterable) -> str:
    return ", ".join(short_repr(name) for name in sorted(names, key=str)[:4])
