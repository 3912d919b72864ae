"""The resamplers, all under the interface of `Resampler`; another one is a file and a line of `RESAMPLERS`, by the name
that `resampler.architecture` has in `config.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.position import Window
from r2id.resampler import R2IR, R2IRConfig


class Resampler(Protocol):
    """A module that encodes images to latents, and decodes latents at any point of the plane."""

    config: Any  # a frozen dataclass with `channels` and `latent_channels`

    def encode_image(self, image_BCHW: Tensor, size: tuple[int, int], aspect: float | None = None) -> Tensor:
        """Images in [-1, 1] that fill frames of this aspect → latents (B, c, h, w) in [-1, 1], size = (h, w)."""

    def decode_image(
        self, latent_BChw: Tensor, *, size: tuple[int, int], aspect: float = 1.0, fit: str = "stretch"
    ) -> Tensor:
        """Latents → images (B, C, H, W), about [-1, 1], a point a pixel, with gradients; size = (H, W)."""

    def prepare(self, latent_BChw: Tensor, aspect: float) -> Any:
        """What decoding needs of some latents, computed once for every tile and output size."""

    def grid_decoder(
        self, context: Any, window: Window, size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> Callable[[range, range], Tensor]:
        """The decoder of a window of size = (H, W) points: a function of ranges of rows and of columns → colours
        (B, C, rows, columns). dtype: of the products of each point; None: that of the weights."""

    def reach(self, cells: tuple[int, int]) -> tuple[float, float]:
        """How far from the frame's centre (x, y) the decoder speaks of the plane, in absolute units."""


RESAMPLERS: dict[str, tuple[type, type]] = {
    "r2ir": (R2IRConfig, R2IR),
    "r2ir-cross-attention": (CrossAttentionR2IRConfig, CrossAttentionR2IR),
}


def architecture_of(config) -> str:
    """The name of a resampler's configuration."""
    return next(name for name, (config_type, _) in RESAMPLERS.items() if type(config) is config_type)
