"""Batches denoiser calls of concurrent users: for small latents an extra row costs far less than an extra call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from r2id.denoisers.output import DenoiserOutput
from r2id.position import Positions


@dataclass(frozen=True)
class Step:
    """The arguments of one denoiser call, see `r2id.denoisers`. noisy: (B, C, h, w); other tensors have B rows too."""

    denoiser: nn.Module
    noisy: Tensor
    alpha_bar: Tensor
    positions: Positions
    conditions: Sequence[Tensor | None]
    recurrent_state: Any

    @property
    def cells(self) -> int:
        """Latent cells of all rows together."""
        return len(self.noisy) * math.prod(self.noisy.shape[2:])

    @property
    def key(self) -> Hashable:
        """Steps with equal keys can share a call: same denoiser, latent size, aspect ratio and kinds of input."""
        given = (*(tokens is None for tokens in self.conditions), self.recurrent_state is None)
        return self.denoiser, self.noisy.shape[1:], *self.positions.relative[0].tolist(), given

    def part(self, rows: slice) -> Step:
        """The same call for some of its rows."""
        conditions = [tokens if tokens is None else tokens[rows] for tokens in self.conditions]
        noisy, alpha_bar = self.noisy[rows], self.alpha_bar[rows]
        return Step(self.denoiser, noisy, alpha_bar, self.positions, conditions, part(self.recurrent_state, rows))


def run(steps: list[Step]) -> list[DenoiserOutput]:
    """Runs steps with equal keys as one call. One output per step, in the same order."""
    counts = [len(step.noisy) for step in steps]
    noisy, alpha_bar = (torch.cat([getattr(step, name) for step in steps]) for name in ("noisy", "alpha_bar"))
    columns = zip(*(step.conditions for step in steps), strict=True)
    conditions = [None if tokens[0] is None else torch.cat(tokens) for tokens in columns]
    recurrent_state = concatenate([step.recurrent_state for step in steps])
    found = steps[0].denoiser(noisy, alpha_bar, steps[0].positions, conditions, recurrent_state)
    ends = itertools.accumulate(counts)
    return [part(found, slice(end - count, end)) for count, end in zip(counts, ends, strict=True)]


def run_or_raise_each(steps: list[Step]) -> list[DenoiserOutput | BaseException]:
    """Like `run`, but a step that fails yields its exception in place of an output and leaves the others alone."""
    try:
        return run(steps)
    except BaseException as error:  # raised again in the thread that asked
        if len(steps) == 1:
            return [error]
    return [output for step in steps for output in run_or_raise_each([step])]


def part(value: Any, rows: slice) -> Any:
    """Selects rows along dimension 1 of every tensor (K, B, …) in a tensor, tuple or dataclass. None stays None."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else value[:, rows]
    if isinstance(value, tuple):
        return tuple(part(v, rows) for v in value)
    return type(value)(*(part(getattr(value, field.name), rows) for field in fields(value)))


def concatenate(values: Sequence[Any]) -> Any:
    """The inverse of `part`: concatenates the rows in the given order."""
    first = values[0]
    if first is None or len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(values, dim=1)
    if isinstance(first, tuple):
        return tuple(map(concatenate, zip(*values, strict=True)))
    return type(first)(*(concatenate([getattr(value, field.name) for value in values]) for field in fields(first)))
