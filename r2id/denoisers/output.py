"""The result of every denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class DenoiserOutput:
    """`prediction` (K, B, C, H, W); `recurrent_state` goes into the next step's call; `pyramid` holds predictions
    (K, B, C, H / k, W / k) of coarser scales, coarsest first, for a loss at every scale."""

    prediction: Tensor
    recurrent_state: Any = None
    pyramid: tuple[Tensor, ...] = ()
