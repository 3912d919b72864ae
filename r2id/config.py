"""`config.json` as dataclasses: what the weights beside it are. Every number is checked, whoever wrote the file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r2id import __version__
from r2id.checkpoint import CheckpointError
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.limits import (
    MAX_ASPECT,
    MAX_CELLS,
    MAX_GUIDANCE,
    MAX_IMAGE_CELLS,
    MAX_SIDE,
    MAX_STEPS,
    check_cells,
    check_choice,
    check_float,
    check_int,
    check_interval,
    short_repr,
)
from r2id.position import FITS
from r2id.resamplers import RESAMPLERS, architecture_of
from r2id.sampler import SAMPLERS
from r2id.schedule import Schedule

FORMAT = 2


@dataclass(frozen=True)
class Defaults:
    """What `diffuse` takes where nothing is said."""

    steps: int = 20
    guidance: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # in t at latent_size; at other sizes, where ᾱ is the same
    sampler: str = "dpm++"
    latent_size: tuple[int, int] = (8, 8)

    def __post_init__(self):
        check_int(self.steps, "steps", 1, MAX_STEPS)
        check_float(self.guidance, "guidance", -MAX_GUIDANCE, MAX_GUIDANCE)
        check_interval(self.guidance_interval)
        check_cells(self.latent_size, 1, MAX_IMAGE_CELLS)


@dataclass(frozen=True)
class Training:
    """What the weights cost, all stages together: images shown, steps, floating-point operations (forward and backward,
    counted on a sample of the steps) and seconds on the machine that trained them."""

    images: int
    steps: int
    operations: float
    seconds: float

    def __post_init__(self):
        for name, value in vars(self).items():
            check_float(value, name, 0, 1e28)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """`config.json`: what the weights beside it are. Sizes are (height, width), colours in [0, 1]. Without a resampler
    the model works in pixel space: its latent is the image at `latent_size`. Raises ValueError for values that are out
    of range or disagree."""

    format: int = FORMAT
    version: str = __version__  # of the package that wrote the file
    architecture: str  # of the denoiser, a name in `DENOISERS`
    labels: tuple[str, ...]
    channels: int
    background: tuple[float, ...]
    encoder_size: int  # pixels on the short side of the frame that images to encode are brought to
    decoder_size: int  # the finest density of the decoder's targets, in the same unit
    trained_cells: tuple[int, int]  # fewest and most on a side
    trained_aspects: tuple[float, float]  # narrowest and widest frame, width / height
    size_multiple: int  # latent heights and widths are multiples of it
    fit: str  # default of `resample`
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    schedule: Schedule
    defaults: Defaults
    resampler: Any = None  # the configuration of one of `RESAMPLERS`; None in pixel space
    denoiser: Any  # the configuration of `DENOISERS[architecture]`
    training: Training | None = None

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}: this version reads {FORMAT}; upgrade r2id or export again")
        check_choice(self.architecture, "architecture", DENOISERS)
        if not isinstance(self.denoiser, DENOISERS[self.architecture][0]):
            raise ValueError(f"denoiser: must be the configuration of {self.architecture}")
        if self.resampler is not None and type(self.resampler) not in (kind for kind, _ in RESAMPLERS.values()):
            raise ValueError(f"resampler: must be the configuration of one of {', '.join(RESAMPLERS)}")
        check_choice(self.fit, "fit", FITS)
        check_choice(self.defaults.sampler, "defaults.sampler", SAMPLERS)
        ranges = dict.fromkeys(("encoder_size", "decoder_size", "size_multiple"), (1, MAX_SIDE))
        ranges |= {"trained_cells": (1, MAX_CELLS), "trained_aspects": (1 / MAX_ASPECT, MAX_ASPECT)}
        ranges |= {"background": (0, 1), "latent_mean": (-1, 1), "latent_std": (1e-6, 1)}  # latents lie within ±1
        for name, (low, high) in ranges.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                check_float(value, name, low, high)
        for name in ("trained_cells", "trained_aspects"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name} {getattr(self, name)}: must be (low, high)")
        check_cells(self.defaults.latent_size, self.size_multiple, MAX_CELLS if self.resampler else MAX_IMAGE_CELLS)
        channels = self.latent_channels
        if not len(self.latent_mean) == len(self.latent_std) == channels:
            raise ValueError(f"latent_mean and latent_std: each must hold {channels} values, the latent's channels")
        if not len(self.background) == self.channels == (self.resampler or self).channels:
            raise ValueError(f"channels {self.channels}: must agree with background and resampler.channels")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent: in pixel space those of the image."""
        return self.resampler.latent_channels if self.resampler else self.channels

    @classmethod
    def from_json(cls, values: dict[str, Any], path: str | Path) -> PipelineConfig:
        """What `config.json` holds → the configuration. `path` heads the errors. Raises CheckpointError, one line, for
        another format and for keys or values that are unknown, missing or out of range."""
        if values.get("format") == 1:
            remedy = f"convert the folder with `python -m train.export --upgrade {Path(path).parent}`"
            raise CheckpointError(f"{path}: format 1, this version reads {FORMAT}; {remedy}")
        writer = values.get("version")
        note = f" (written by r2id {writer[:20]}, this is {__version__})" if isinstance(writer, str) else ""
        nested = {"denoiser": _config_of(DENOISERS, values.get("architecture"), values.get("denoiser"), path, note)}
        if isinstance(resampler := values.get("resampler"), dict):
            rest = {key: value for key, value in resampler.items() if key != "architecture"}
            where = f"{path}: resampler"
            nested["resampler"] = _config_of(RESAMPLERS, resampler.get("architecture"), rest, where, note)
        elif resampler is not None:
            raise CheckpointError(f"{path}: resampler: must be an object or null")
        return from_dict(cls, values | nested, path, note=note)

    def to_json(self) -> dict[str, Any]:
        """What `config.json` holds: JSON values, written as of this version of the package."""
        values = asdict(self) | {"version": __version__}
        if self.resampler:
            values["resampler"] = {"architecture": architecture_of(self.resampler), **values["resampler"]}
        return values


def _config_of(registry: dict[str, tuple], name: Any, values: Any, where: str | Path, note: str) -> Any:
    if not isinstance(name, str) or name not in registry:
        raise CheckpointError(f"{where}: architecture {short_repr(name)}: must be one of {', '.join(registry)}{note}")
    where = f"{where}: denoiser" if registry is DENOISERS else where
    return from_dict(registry[name][0], values, where, note=note)
