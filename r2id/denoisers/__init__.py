"""The denoisers. Each file holds one published system, all under the signature of `Denoiser`; another one is a file and
a line of `DENOISERS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from r2id.denoisers.dimr import DiMR, DiMRConfig
from r2id.denoisers.output import DenoiserOutput
from r2id.denoisers.r2id import R2ID, R2IDConfig
from r2id.denoisers.rin import RIN, RINConfig
from r2id.denoisers.s2id import S2ID, S2IDConfig
from r2id.position import Positions


class DenoiserConfig(Protocol):
    """A frozen dataclass; its other fields are the system's own."""

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latent (or image)."""

    @property
    def num_classes(self) -> int:
        """Number of labels; 0 without any."""

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "v", "epsilon" or "x0"."""

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of it."""

    @property
    def jitter(self) -> float:
        """Standard deviation by which training moves the positions, in cells of the finest training grid."""


class Denoiser(Protocol):
    """A module that predicts, from a noisy latent (or image), what its configuration names."""

    config: DenoiserConfig
    condition: Any  # a module: weights of labels (B, L), all zero for null → tokens (B, N, D)

    def __call__(
        self,
        noisy_BCHW: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: Any = None,
    ) -> DenoiserOutput:
        """noisy_BCHW: unit variance at ᾱ (B,) in [0, 1]. positions: of the cells, in reading order; (N, 2) for all rows
        or (B, N, 2). conditions: K of them, tokens (B, N, D) or None for the null condition; what no condition touches
        is computed once. recurrent_state: that of the step before, for the same conditions."""


DENOISERS: dict[str, tuple[type, type]] = {
    "r2id": (R2IDConfig, R2ID),
    "s2id": (S2IDConfig, S2ID),
    "rin": (RINConfig, RIN),
    "dimr": (DiMRConfig, DiMR),
}
