"""A walk from one image to another: every position is a generation of its own.

Between two seeds the noise turns on a sphere (Shoemake 1985): on a straight line it would grow shorter than noise is.
Between two labels their weights change, and so the tokens of the label, which are linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from r2id.demo.illustrations import decode_view
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.latent import Latent
from r2id.limits import check_int
from r2id.pipeline import Pipeline

MIN_POSITIONS, MAX_POSITIONS = 2, 48


@dataclass(frozen=True)
class Walk:
    """From the request's image to the one with this label ("" for any) and seed, in so many positions, both ends among
    them. Raises ValueError, one line, for a number out of range."""

    start: GenerateRequest
    label: str
    seed: int
    positions: int = 24

    def __post_init__(self):
        check_int(self.positions, "positions", MIN_POSITIONS, MAX_POSITIONS)

    @property
    def shares(self) -> list[float]:
        """How far along the way every position is, 0…1."""
        return [i / (self.positions - 1) for i in range(self.positions)]

    def labels(self) -> list[dict[str, float] | None]:
        """The label of every position."""
        return [blend(self.start.labels[0], self.label or None, share) for share in self.shares]

    def options(self, pipe: Pipeline) -> dict[str, Any]:
        """The keyword arguments of `Pipeline.diffuse`."""
        options = self.start.diffuse_options(pipe.config.size_multiple)
        ends = [pipe.seed_noise(seed, options["latent_size"]) for seed in (self.start.seed, self.seed)]
        noise_BChw = torch.stack([slerp(*ends, share) for share in self.shares])
        return options | dict(noise=noise_BChw, seed=[self.start.seed] * self.positions)  # seeds: of what η adds


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Noise between two of one shape, turned from one to the other by a share of the angle between them."""
    cosine = (start.flatten().double() @ end.flatten().double()) / (start.double().norm() * end.double().norm())
    angle = math.acos(min(1.0, max(-1.0, cosine.item())))
    if math.sin(angle) < 1e-4:  # one direction: there is nothing to turn
        return torch.lerp(start, end, share)
    weights = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
    return weights[0] * start + weights[1] * end


def blend(start, end, share: float):
    """The label between two, as `Pipeline.diffuse` takes it. Raises ValueError where only one of them is a label."""
    if (start is None) != (end is None):
        raise ValueError("a walk between a label and no label: choose a label for both ends, or for neither")
    if start is None:
        return None
    weights = {}
    for label, weight in ((start, 1 - share), (end, share)):
        for name, part in (label if isinstance(label, dict) else {label: 1.0}).items():
            weights[name] = weights.get(name, 0.0) + weight * part
    return {name: weight for name, weight in weights.items() if weight > 0}


def images(pipe: Pipeline, latent: Latent, side: int) -> Iterator[Image.Image]:
    """Every row in its whole frame, with a long side of so many pixels."""
    view = ViewRequest(side, f"{latent.aspect:.6g}", fit="stretch")
    return (decode_view(pipe, latent[i], view) for i in range(len(latent)))


def loop(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames there and back, of which the ends are shown once a round."""
    return [*frames, *frames[-2:0:-1]]
