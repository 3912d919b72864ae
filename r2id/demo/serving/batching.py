"""Calls of a denoiser for several users as one: of a small latent, a row costs a fraction of what a call does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from r2id.denoisers.output import Denoised
from r2id.position import Positions


@dataclass(frozen=True)
class Step:
    """What a denoiser is called with, see `r2id.denoisers`."""

    denoiser: nn.Module
    noisy: Tensor
    alpha_bar: Tensor
    positions: Positions
    conditions: Sequence[Tensor | None]
    carry: Any

    @property
    def cells(self) -> int:
        """Of all rows."""
        return len(self.noisy) * math.prod(self.noisy.shape[2:])

    @property
    def key(self) -> Hashable:
        """Equal for steps that can be computed together: of one model, size and aspect."""
        given = (*(tokens is None for tokens in self.conditions), self.carry is None)
        return self.denoiser, self.noisy.shape[1:], *self.positions.relative[0].tolist(), given

    def part(self, rows: slice) -> Step:
        conditions = [tokens if tokens is None else tokens[rows] for tokens in self.conditions]
        noisy, alpha_bar = self.noisy[rows], self.alpha_bar[rows]
        return Step(self.denoiser, noisy, alpha_bar, self.positions, conditions, part(self.carry, rows))


def run(steps: list[Step]) -> list[Denoised]:
    """Steps of one key, together."""
    counts = [len(step.noisy) for step in steps]
    noisy, alpha_bar = (torch.cat([getattr(step, name) for step in steps]) for name in ("noisy", "alpha_bar"))
    columns = zip(*(step.conditions for step in steps), strict=True)
    conditions = [None if tokens[0] is None else torch.cat(tokens) for tokens in columns]
    carry = joined([step.carry for step in steps])
    found = steps[0].denoiser(noisy, alpha_bar, steps[0].positions, conditions, carry)
    ends = itertools.accumulate(counts)
    return [part(found, slice(end - count, end)) for count, end in zip(counts, ends, strict=True)]


def outcomes(steps: list[Step]) -> list[Denoised | BaseException]:
    """What each of them gives or raises; one that fails does not end the others."""
    try:
        return run(steps)
    except BaseException as error:  # the caller's to handle
        if len(steps) == 1:
            return [error]
    return [outcome for step in steps for outcome in outcomes([step])]


def part(value: Any, rows: slice) -> Any:
    """Those rows of tensors (K, B, …): of one, of those in a tuple or a dataclass; None as it is."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else value[:, rows]
    if isinstance(value, tuple):
        return tuple(part(v, rows) for v in value)
    return type(value)(*(part(getattr(value, field.name), rows) for field in fields(value)))


def joined(values: Sequence[Any]) -> Any:
    """The inverse of `part`: all rows, in this order."""
    first = values[0]
    if first is None or len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(values, dim=1)
    if isinstance(first, tuple):
        return tuple(map(joined, zip(*values, strict=True)))
    return type(first)(*(joined([getattr(value, field.name) for value in values]) for field in fields(first)))
