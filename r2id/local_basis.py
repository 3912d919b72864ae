"""The lapped local Fourier basis of one axis: what a point takes from the two cells beside it.

A point at offset o (in cells) from a cell's centre takes {1, sin, cos of 2π·f·k·o, k = 1 … harmonics} times the cell's
bilinear weight. The window is zero where the next cell begins, so there are no seams (lapped transforms).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_WEIGHT = 1e-3  # of the pixels of a cell, by which sums are divided: (almost) none give values near zero, not noise


class LocalBasis:
    """`size` functions of an offset in cells. base_frequency: of the first harmonic, in cycles per cell."""

    def __init__(self, harmonics: int, base_frequency: float):
        self.size = 2 * harmonics + 1
        self.frequencies = 2 * math.pi * base_frequency * torch.arange(1, harmonics + 1, dtype=torch.float64)
        self._cast: dict[tuple, Tensor] = {}  # the same by dtype and device

    def evaluate(self, values: Tensor, cells: int, rings: int = 0) -> tuple[Tensor, Tensor]:
        """Absolute coordinates (…) in a frame of `cells` cells and `rings` border cells on each side → the first of the
        two lattice cells beside each, int64 (…), and their basis (…, 2, F) in float32.

        Computed in the dtype of the values: give float64, since zooms are finer than float32. Beyond the lattice the
        nearest point of it is read, without rings that of the frame: unclamped, the sinusoids would repeat there. Of a
        lattice of one cell there is no second one, and its basis is zero.
        """
        lattice = cells + 2 * rings
        # in cells, from the centre of the lattice's first one
        place = (values if rings else values.clamp(-0.5, 0.5)) * cells + (cells - 1) / 2 + rings
        inner = place.clamp(0, lattice - 1)
        place = inner if rings else place
        first = inner.floor().clamp(max=max(0, lattice - 2))
        share = inner - first  # of the second cell
        offset = place - first
        basis = torch.stack((self._waves(offset), self._waves(offset - 1)), dim=-2)
        weight = torch.stack((1 - share, share), dim=-1)
        return first.long(), (weight[..., None] * basis).float()

    def dense(self, values: Tensor, cells: int, rings: int = 0) -> Tensor:
        """`evaluate` as (…, cells, F), border cells included, zero for all but the two."""
        return dense(*self.evaluate(values, cells, rings), cells + 2 * rings)

    def _waves(self, offset: Tensor) -> Tensor:
        key = offset.dtype, offset.device
        if key not in self._cast:  # the dtype changes before the device: not all hold float64
            self._cast[key] = self.frequencies.to(offset.dtype).to(offset.device)
        angles = offset[..., None] * self._cast[key]
        return torch.cat((torch.ones_like(angles[..., :1]), angles.sin(), angles.cos()), dim=-1)


def dense(first: Tensor, basis: Tensor, lattice: int) -> Tensor:
    """What `LocalBasis.evaluate` gives, as (…, lattice, F): zero for all but the two cells."""
    index = torch.stack((first, first + 1), dim=-1)[..., None].expand_as(basis)
    zeros = basis.new_zeros(*first.shape, max(2, lattice), basis.shape[-1])
    return zeros.scatter(-2, index, basis)[..., :lattice, :]
