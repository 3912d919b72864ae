"""Conditions: labels and mixtures of labels → tokens, and the learned null condition."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from r2id.limits import short_repr


class LabelCondition(nn.Module):
    """Learned tokens of every label, and one more set for the null condition; part of the denoiser that holds it."""

    def __init__(self, num_classes: int, *, tokens: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_classes + 1, tokens, width))  # the last row is the null condition

    @property
    def num_classes(self) -> int:
        """Number of labels, without null."""
        return len(self.table) - 1

    def forward(self, weights_BL: Tensor) -> Tensor:
        """Weights of L labels (B, L), each row a one-hot or a mixture that sums to 1 (all zero: null) → tokens
        (B, N, D)."""
        null_B1 = 1 - weights_BL.sum(dim=1, keepdim=True)
        return torch.einsum("bl,lnd->bnd", torch.cat((weights_BL, null_B1), dim=1), self.table)

    def null(self, batch: int) -> Tensor:
        """The null condition's tokens (B, N, D)."""
        return self.table[-1:].expand(batch, -1, -1)

    def rows(self, conditions: Sequence[Tensor | None], batch: int) -> Tensor:
        """K conditions of B rows, tokens (B, N, D) or None for null → (K·B, N, D)."""
        return torch.cat([self.null(batch) if tokens is None else tokens for tokens in conditions])


def one_hot(labels_B: Tensor, count: int, *, dropped_B: Tensor | None = None) -> Tensor:
    """Indices (B,) → weights (B, L); rows of `dropped_B`, and labels below 0, are null (all zero)."""
    weights_BL = (labels_B[:, None] == torch.arange(count, device=labels_B.device)).float()
    return weights_BL if dropped_B is None else weights_BL * ~dropped_B[:, None]


def mixture(label, names: tuple[str, ...]) -> list[float]:
    """A label as the interface takes it (index, name, None, {label: weight}) → weights that sum to 1, or all zero.

    Raises ValueError for an unknown label, a weight that is negative or not finite, or weights that sum to 0.
    """
    weights = [0.0] * len(names)
    if label is None:
        return weights
    if not isinstance(label, dict):
        weights[index_of(label, names)] = 1.0
        return weights
    for key, weight in label.items():
        real = isinstance(weight, Real) and not isinstance(weight, bool)
        if not real or not 0 <= weight < math.inf or (isinstance(weight, int) and weight > sys.float_info.max):
            fault = f"weight {short_repr(weight)} of label {short_repr(key)}"
            raise ValueError(f"{fault}: must be a finite number, 0 or more")
        weights[index_of(key, names)] += float(weight)
    total = sum(weights)
    if not 0 < total < math.inf:
        raise ValueError(f"mixture {short_repr(label)}: its weights sum to {total}, must be above 0 and finite")
    return [weight / total for weight in weights]


def index_of(label, names: tuple[str, ...]) -> int:
    """The index of a label: an index (of any integer type), or a name, whose case and outer spaces do not count where
    only one name is meant. Raises ValueError for any other."""
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        alike = [index for index, name in enumerate(names) if _plain(name) == _plain(label)]
        if len(alike) == 1:
            return alike[0]
        if alike:
            fits = ", ".join(repr(names[index]) for index in alike)
            raise ValueError(f"label {short_repr(label)}: may be {fits}; give one exactly")
    elif (index := _index(label)) is not None and 0 <= index < len(names):
        return index
    known = f"an index 0…{len(names) - 1} or one of {', '.join(names)}" if names else "None, this model has no labels"
    raise ValueError(f"label {short_repr(label)}: must be {known}")


def named(weights: list[float], names: tuple[str, ...]) -> str | None | dict[str, float]:
    """Normalised weights as a label: its name, None, or {name: weight}."""
    found = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
    return next(iter(found), None) if len(found) < 2 else found


def _plain(name: str) -> str:
    return name.strip().casefold()


def _index(label) -> int | None:
    """A whole number of Python, numpy or torch as an int, None for anything else."""
    if isinstance(label, bool) or (isinstance(label, Tensor) and (label.ndim or label.dtype == torch.bool)):
        return None
    try:
        return operator.index(label)
    except TypeError:
        return None
