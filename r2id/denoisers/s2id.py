"""S2ID: an image diffuser on the pixels themselves, of any height and width, without patches.

A pixel's token is its colour and its position in both coordinate systems. Axial attention (along its row, plus along
its column) keeps the cost at pixels · (height + width).

G in tensor names: attention heads. L lines of S pixels. A: the results of both directions side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.denoisers.backbone import Backbone
from r2id.layers import Attention
from r2id.limits import BLOCKS, HEADS, OCTAVES, RATIOS, WIDTHS, check_heads, check_model, ranged
from r2id.schedule import check_prediction_type


@dataclass(frozen=True)
class S2IDConfig:
    """Sizes of an S2ID. The small one is `train/configs/mnist_s2id.toml`."""

    latent_channels: int = ranged(1, 1, 4096)  # of the noisy image
    num_classes: int = ranged(10, 0, 2**17)
    label_tokens: int = ranged(4, 1, 4096)
    width: int = ranged(48, *WIDTHS)
    heads: int = ranged(2, *HEADS)  # along rows, and as many along columns
    encoder_blocks: int = ranged(2, *BLOCKS)
    decoder_blocks: int = ranged(2, *BLOCKS)
    mlp_ratio: int = ranged(2, *RATIOS)
    noise_width: int = ranged(48, *WIDTHS)  # of the vector that modulates every block
    gated: bool = True  # adaLN-Zero; False: shift and scale only, FiLM
    octaves: tuple[int, int] = ranged((0, 4), *OCTAVES)
    prediction_type: str = "v"  # what the network predicts: v, epsilon or x0
    jitter: float = ranged(0.0, 0.0, 16.0)  # standard deviation in pixels by which training moves the positions
    size_multiple: ClassVar[int] = 1  # images of any size

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        check_prediction_type(self.prediction_type)


class AxialAttention(nn.Module):
    """Softmax attention of each pixel to its row, plus to its column; the two share no weights."""

    def __init__(self, width: int, *, heads: int):
        super().__init__()
        self.heads = heads
        # One matrix product for all six: the rows' queries, keys and values, then the columns'; and one for the sum.
        self.project = nn.Linear(width, 6 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, pixel_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """Pixels in reading order, N = height · width of `size`."""
        six_BHWGE = self.project(pixel_BND).unflatten(-1, (6, self.heads, -1)).unflatten(1, size).unbind(3)
        rows_BHWGE = self.along_lines(*six_BHWGE[:3])
        columns_BWHGE = self.along_lines(*(each_BHWGE.transpose(1, 2) for each_BHWGE in six_BHWGE[3:]))
        both_BHWA = torch.cat((rows_BHWGE.flatten(3), columns_BWHGE.flatten(3).transpose(1, 2)), dim=-1)
        return self.out(both_BHWA.flatten(1, 2))

    @staticmethod
    def along_lines(*query_key_value_BLSGE: Tensor) -> Tensor:
        """Each of L lines of S pixels by itself; G heads of width E."""
        batch, lines = query_key_value_BLSGE[0].shape[:2]
        lines_by_head = (each_BLSGE.transpose(2, 3).flatten(0, 1) for each_BLSGE in query_key_value_BLSGE)
        return F.scaled_dot_product_attention(*lines_by_head).unflatten(0, (batch, lines)).transpose(2, 3)


class S2ID(Backbone):
    """See `Denoiser`: a `Backbone` in which every pixel attends to its row and its column."""

    def __init__(self, config: S2IDConfig):
        super().__init__(
            config,
            self_attention=lambda: AxialAttention(config.width, heads=config.heads),
            cross_attention=lambda: Attention(config.width, heads=config.heads),
        )
