"""Conditions: labels and mixtures of labels → tokens, and the learned null condition."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from r2id.limits import short_repr


class LabelCondition(nn.Module):
    """Learned tokens per label, and one more set for the null condition; trained with the denoiser that holds it."""

    def __init__(self, num_classes: int, *, tokens: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_classes + 1, tokens, width))  # the last row is the null condition

    @property
    def num_classes(self) -> int:
        return len(self.table) - 1

    def forward(self, weights_BL: Tensor) -> Tensor:
        """Label weights (B, L), each row a one-hot or a mixture that sums to 1 (all zero: null) → tokens (B, N, D)."""
        null_B1 = 1 - weights_BL.sum(dim=1, keepdim=True)
        return torch.einsum("bl,lnd->bnd", torch.cat((weights_BL, null_B1), dim=1), self.table)

    def null(self, batch: int) -> Tensor:
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
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= sys.float_info.max:  # an int may be larger
            raise ValueError(
                f"weight {short_repr(weight)} of label {short_repr(key)}: must be a finite number, 0 or more"
            )
        weights[index_of(key, names)] += float(weight)
    total = sum(weights)
    if not 0 < total < float("inf"):
        raise ValueError(f"mixture {short_repr(label)}: its weights sum to {total}, must be above 0 and finite")
    return [weight / total for weight in weights]


def index_of(label, names: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    known = f"an index 0…{len(names) - 1} or one of {', '.join(names)}" if names else "None, this model has no labels"
    raise ValueError(f"label {short_repr(label)}: must be {known}")
