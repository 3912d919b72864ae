"""What every denoiser returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Denoised:
    """`prediction` (K, B, C, H, W); `carry` goes into the next step's call; `pyramid` holds predictions
    (K, B, C, H / k, W / k) of coarser scales, coarsest first, for a loss at every scale."""

    prediction: Tensor
    carry: Any = None
    pyramid: tuple[Tensor, ...] = ()
