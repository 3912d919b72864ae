"""The decoder on a grid: the same values as `R2IR.decode`, at a small part of the cost.

Why it gives the same. A feature is Σ over cells and basis of b_i(y)·b_j(x)·c, and b_i(y) depends on the row alone,
b_j(x) on the column alone. So the sum over i is taken once for each row and cell, then the sum over j for each pixel.
Between two neighbouring cell centres the same two cells count for every row (or column); such a *run* is one matrix
product with 2·F terms, whatever the number of cells. Nothing is approximated. R in tensor names: runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from r2id.local_basis import LocalBasis

if TYPE_CHECKING:
    from r2id.resampler import R2IR, DecoderContext


@dataclass(frozen=True)
class AxisFeatures:
    """The columns of a grid, or its rows: their basis (N, 2·F), and the runs (start, stop, first of the two cells)."""

    basis_NF: Tensor
    runs: tuple[tuple[int, int, int], ...]

    def __getitem__(self, part: slice) -> AxisFeatures:
        start, stop, _ = part.indices(len(self.basis_NF))
        runs = ((max(a, start) - start, min(b, stop) - start, cell) for a, b, cell in self.runs)
        return AxisFeatures(self.basis_NF[start:stop], tuple(run for run in runs if run[0] < run[1]))


def axis_features(basis: LocalBasis, values_N: Tensor, cells: int, rings: int, device: torch.device) -> AxisFeatures:
    """Rising absolute coordinates (N,), float64 on the CPU, along `cells` cells → their features on the device."""
    first_N, basis_N2F = basis.evaluate(values_N, cells, rings)
    cell_R, count_R = torch.unique_consecutive(first_N, return_counts=True)
    stops = count_R.cumsum(0).tolist()
    runs = zip([0, *stops], stops, cell_R.tolist(), strict=False)
    return AxisFeatures(basis_N2F.flatten(1).to(device), tuple(runs))


class GridDecoder:
    """Decodes where rows and columns cross, for one context; what depends on the latents alone is made here, once."""

    def __init__(self, model: R2IR, context: DecoderContext, dtype: torch.dtype | None = None):
        """dtype: of the per-pixel MLP; None: that of its weights. The basis and its sums stay as they are."""
        coefficient_BhwFFD = context.coefficient_BhwFFD
        if 1 in coefficient_BhwFFD.shape[1:3]:  # a run has two cells: the second one's weight is zero
            pad = [0, 0] * 3 + [0, int(coefficient_BhwFFD.shape[2] == 1), 0, int(coefficient_BhwFFD.shape[1] == 1)]
            coefficient_BhwFFD = F.pad(coefficient_BhwFFD, pad)
        self.coefficient_hFBwFD = coefficient_BhwFFD.permute(1, 3, 0, 2, 4, 5).contiguous()
        self.model, self.dtype = model, dtype

    def __call__(self, rows: AxisFeatures, columns: AxisFeatures) -> Tensor:
        """→ colours (B, C, H, W)."""
        low, high = columns.runs[0][2], columns.runs[-1][2] + 2  # a zoom or a tile reads few of many cells
        coefficient_hFBwFD = self.coefficient_hFBwFD[:, :, :, low:high]
        line_HBwFD = lapped(rows, coefficient_hFBwFD, 0)
        line_wFHBD = line_HBwFD.permute(2, 3, 0, 1, 4)
        feature_WHBD = lapped(columns, line_wFHBD, low)
        colour_WHBC = self.model.colour(feature_WHBD, self.dtype)
        return colour_WHBC.permute(2, 3, 1, 0)


def lapped(axis: AxisFeatures, coefficient_cF: Tensor, low: int) -> Tensor:
    """Sums over the two cells of each run and their basis: coefficients (cells, F, …) from cell `low` on → (N, …)."""
    pairs = torch.cat((coefficient_cF[:-1], coefficient_cF[1:]), dim=1).flatten(2).unbind()
    parts = [axis.basis_NF[start:stop] @ pairs[cell - low] for start, stop, cell in axis.runs]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(1, coefficient_cF.shape[2:])
