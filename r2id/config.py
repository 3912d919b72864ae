"""`config.json` as dataclasses: what the weights beside it are. Every number is checked, whoever wrote the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r2id.cross_attention_resampler import CrossAttentionR2IRConfig
from r2id.denoisers import DENOISERS
from r2id.limits import (
    MAX_ASPECT,
    MAX_CELLS,
    MAX_GUIDANCE,
    MAX_PICTURE_CELLS,
    MAX_SIDE,
    MAX_STEPS,
    check_cells,
    check_float,
    check_int,
    check_interval,
)
from r2id.position import FITS
from r2id.sampler import SAMPLERS
from r2id.schedule import Schedule

FORMAT = 1


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
        check_cells(self.latent_size, 1, MAX_PICTURE_CELLS)


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
    the system works in pixel space: its latent is the picture at `latent_size`."""

    format: int
    architecture: str
    labels: tuple[str, ...]
    channels: int
    background: tuple[float, ...]
    training_size: int  # pixels on the short side of a training frame
    trained_cells: tuple[int, int]  # fewest and most on a side
    trained_aspects: tuple[float, float]  # narrowest and widest frame
    size_multiple: int  # latent sizes are multiples of it
    fit: str  # default of `resample`
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    schedule: Schedule
    defaults: Defaults
    resampler: CrossAttentionR2IRConfig | None = None
    denoiser: Any  # the system's own configuration, as `DENOISERS` names it
    training: Training | None = None

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}: this version reads {FORMAT}; upgrade r2id or export again")
        if self.architecture not in DENOISERS:
            raise ValueError(f"architecture {self.architecture!r}: must be one of {', '.join(DENOISERS)}")
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r}: must be one of {', '.join(FITS)}")
        if self.defaults.sampler not in SAMPLERS:
            raise ValueError(f"defaults.sampler {self.defaults.sampler!r}: must be one of {', '.join(SAMPLERS)}")
        ranges = {"training_size": (1, MAX_SIDE), "size_multiple": (1, MAX_SIDE), "trained_cells": (1, MAX_CELLS)}
        ranges |= {"trained_aspects": (1 / MAX_ASPECT, MAX_ASPECT), "background": (0, 1)}
        ranges |= {"latent_mean": (-1, 1), "latent_std": (1e-6, 1)}  # latents lie within ±1
        for name, (low, high) in ranges.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                check_float(value, name, low, high)
        for name in ("trained_cells", "trained_aspects"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name} {getattr(self, name)}: must be (low, high)")
        check_cells(self.defaults.latent_size, self.size_multiple, MAX_CELLS if self.resampler else MAX_PICTURE_CELLS)
        channels = self.latent_channels
        if not len(self.latent_mean) == len(self.latent_std) == channels:
            raise ValueError(f"latent_mean and latent_std: each must hold {channels} values, the latent's channels")
        if not len(self.background) == self.channels == (self.resampler or self).channels:
            raise ValueError(f"channels {self.channels}: must agree with background and resampler.channels")

    @property
    def latent_channels(self) -> int:
        return self.resampler.latent_channels if self.resampler else self.channels
