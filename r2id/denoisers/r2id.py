"""R2ID, the resolution-invariant image diffuser: a transformer over latent cells of any count and shape.

Each cell's token carries its position in both coordinate systems, so no size is built in. It can hold a guide: a small
R2ID, whose mistakes guidance leads away from (autoguidance, Karras et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from r2id.denoisers.backbone import Backbone
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import ATTENTIONS, Attention
from r2id.limits import BLOCKS, HEADS, OCTAVES, RATIOS, WIDTHS, check_choice, check_heads, check_model, ranged
from r2id.position import Positions
from r2id.schedule import check_prediction_type


@dataclass(frozen=True)
class GuideConfig:
    """Sizes of a guide. What is not here it shares with the R2ID that holds it."""

    width: int = ranged(96, *WIDTHS)
    heads: int = ranged(3, *HEADS)
    encoder_blocks: int = ranged(2, *BLOCKS)
    decoder_blocks: int = ranged(2, *BLOCKS)

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)


@dataclass(frozen=True)
class R2IDConfig:
    """Sizes of an R2ID. The shipped values are in `train/configs/mnist_r2id.toml`."""

    latent_channels: int = ranged(16, 1, 4096)
    num_classes: int = ranged(10, 0, 2**17)
    label_tokens: int = ranged(4, 1, 4096)
    width: int = ranged(128, *WIDTHS)
    heads: int = ranged(4, *HEADS)
    encoder_blocks: int = ranged(3, *BLOCKS)
    decoder_blocks: int = ranged(4, *BLOCKS)
    mlp_ratio: int = ranged(4, *RATIOS)
    noise_width: int = ranged(128, *WIDTHS)  # of the vector that modulates every block
    gated: bool = True  # adaLN-Zero; False: shift and scale only
    attention: str = "softmax"
    octaves: tuple[int, int] = ranged((-2, 4), *OCTAVES)
    prediction_type: str = "v"  # what the network predicts: v, epsilon or x0
    dropout: float = ranged(0.0, 0.0, 0.99)
    guide: GuideConfig | None = None
    size_multiple: ClassVar[int] = 1  # latents of any size
    jitter: ClassVar[float] = 0.0  # of cells in training

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        check_choice(self.attention, "attention", ATTENTIONS)
        check_prediction_type(self.prediction_type)


class SelfAttention(Attention):
    """Attention of every cell to all cells."""

    def forward(self, cell_BND: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(cell_BND, self.keys_values(cell_BND))


class R2ID(Backbone):
    """See `Denoiser`: a `Backbone` in which every cell attends to all cells.

    guide: a smaller R2ID that knows no labels, or None. Where the condition and the null condition are asked for in one
    call, as guidance does, it answers the second. It errs where the model errs, and more.
    """

    def __init__(self, config: R2IDConfig):
        options = {"heads": config.heads, "attention": config.attention, "dropout": config.dropout}
        super().__init__(
            config,
            self_attention=lambda: SelfAttention(config.width, **options),
            cross_attention=lambda: Attention(config.width, **options),
            dropout=config.dropout,
        )
        own = config.guide
        self.guide = own and R2ID(replace(config, guide=None, num_classes=0, label_tokens=1, **vars(own)))

    def forward(
        self,
        noisy_BCHW: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: None = None,
    ) -> DenoiserOutput:
        """See `Backbone`."""
        inputs = noisy_BCHW, alpha_bar_B, positions
        given = [condition for condition in conditions if condition is not None]
        if self.guide is None or not 0 < len(given) < len(conditions):
            return super().forward(*inputs, conditions)
        guided, null = iter(super().forward(*inputs, given).prediction), self.guide(*inputs, (None,)).prediction[0]
        return DenoiserOutput(torch.stack([null if condition is None else next(guided) for condition in conditions]))
