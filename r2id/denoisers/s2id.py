"""S2ID: an image diffuser on the pixels themselves, of any height and width, with no patches.

A pixel is its colour and its place in both coordinate systems. Axial attention (along its row, plus along its column)
keeps the cost at pixels · (height + width). The encoder blocks see no condition and run once a step; the decoder blocks
(axial attention, cross-attention to the condition) run once a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import MLP, AdaLN, Attention, NoiseEmbedding
from r2id.limits import check_heads, check_model
from r2id.position import PositionEmbedding, Positions, flat
from r2id.schedule import check_prediction_type


@dataclass(frozen=True)
class S2IDConfig:
    """Sizes of an S2ID. The small one is `train/configs/mnist_s2id.toml`."""

    latent_channels: int = 1  # of the noisy picture
    num_classes: int = 10
    label_tokens: int = 4
    width: int = 48
    heads: int = 2  # along rows, and as many along columns
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    mlp_ratio: int = 2
    noise_width: int = 48  # of the vector that modulates every block
    gated: bool = True  # adaLN-Zero; False: shift and scale only, FiLM
    octaves: tuple[int, int] = (0, 4)
    prediction_type: str = "v"  # what the network predicts: v, epsilon or x0
    jitter: float = 0.0  # standard deviation, in pixels, by which training moves the positions
    size_multiple: ClassVar[int] = 1  # pictures of any size

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        check_prediction_type(self.prediction_type)


class AxialAttention(nn.Module):
    """Softmax attention of each pixel to its row, plus to its column; the two share no weights."""

    def __init__(self, width: int, *, heads: int):
        super().__init__()
        self.heads = heads
        # One matrix product for all six, the rows' queries, keys and values before the columns'; and one for the sum.
        self.project = nn.Linear(width, 6 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, pixel_BMD: Tensor, size: tuple[int, int]) -> Tensor:
        """Pixels in reading order, M = height · width of `size`."""
        six_BHWNE = self.project(pixel_BMD).unflatten(-1, (6, self.heads, -1)).unflatten(1, size).unbind(3)
        rows_BHWNE = self.along_lines(*six_BHWNE[:3])
        columns_BWHNE = self.along_lines(*(each_BHWNE.transpose(1, 2) for each_BHWNE in six_BHWNE[3:]))
        both_BHWA = torch.cat((rows_BHWNE.flatten(3), columns_BWHNE.flatten(3).transpose(1, 2)), dim=-1)
        return self.out(both_BHWA.flatten(1, 2))

    @staticmethod
    def along_lines(*query_key_value_BLSNE: Tensor) -> Tensor:
        """L lines of S pixels, N heads of width E: each line by itself."""
        batch, lines = query_key_value_BLSNE[0].shape[:2]
        merged = (each_BLSNE.transpose(2, 3).flatten(0, 1) for each_BLSNE in query_key_value_BLSNE)
        return F.scaled_dot_product_attention(*merged).unflatten(0, (batch, lines)).transpose(2, 3)


class S2IDBlock(nn.Module):
    """Axial attention, optional cross-attention to the condition, MLP; each modulated by AdaLN."""

    def __init__(self, config: S2IDConfig, *, cross_attention: bool):
        super().__init__()
        modulation = (config.width, config.noise_width)
        self.axial_norm = AdaLN(*modulation, gated=config.gated)
        self.axial = AxialAttention(config.width, heads=config.heads)
        self.cross_norm = AdaLN(*modulation, gated=config.gated) if cross_attention else None
        self.cross_attention = Attention(config.width, heads=config.heads) if cross_attention else None
        self.mlp_norm = AdaLN(*modulation, gated=config.gated)
        self.mlp = MLP(config.width, mlp_ratio=config.mlp_ratio)

    def forward(
        self, pixel_BMD: Tensor, size: tuple[int, int], vector_BF: Tensor, condition_BND: Tensor | None = None
    ) -> Tensor:
        normed_BMD, gate = self.axial_norm(pixel_BMD, vector_BF)
        pixel_BMD = pixel_BMD + gate * self.axial(normed_BMD, size)
        if self.cross_attention:
            normed_BMD, gate = self.cross_norm(pixel_BMD, vector_BF)
            pixel_BMD = pixel_BMD + gate * self.cross_attention(
                normed_BMD, self.cross_attention.keys_values(condition_BND)
            )
        normed_BMD, gate = self.mlp_norm(pixel_BMD, vector_BF)
        return pixel_BMD + gate * self.mlp(normed_BMD)


class S2ID(nn.Module):
    def __init__(self, config: S2IDConfig):
        super().__init__()
        self.config = config
        self.condition = LabelCondition(config.num_classes, tokens=config.label_tokens, width=config.width)
        self.condition_norm = nn.LayerNorm(config.width)
        self.noise_embedding = NoiseEmbedding(config.noise_width)
        # Their sum is the 1×1 projection of colour and Fourier features concatenated: its matrix, split by columns.
        self.pixel_in = nn.Linear(config.latent_channels, config.width, bias=False)
        self.pixel_position = PositionEmbedding(config.width, config.octaves)
        self.encoder = nn.ModuleList(S2IDBlock(config, cross_attention=False) for _ in range(config.encoder_blocks))
        self.decoder = nn.ModuleList(S2IDBlock(config, cross_attention=True) for _ in range(config.decoder_blocks))
        self.out_norm = AdaLN(config.width, config.noise_width, gated=False)
        self.out = nn.Linear(config.width, config.latent_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy_BCHW: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: None = None,
    ) -> DenoiserOutput:
        """Noisy pictures (B, C, H, W) at ᾱ (B,), positions in reading order → prediction (K, B, C, H, W)."""
        batch, _, *size = noisy_BCHW.shape
        vector_BF = self.noise_embedding(alpha_bar_B)
        position_MD = flat(self.pixel_position(positions), positions)
        pixel_BMD = self.pixel_in(noisy_BCHW.flatten(2).transpose(1, 2)) + position_MD
        for block in self.encoder:
            pixel_BMD = block(pixel_BMD, size, vector_BF)
        condition_BND = self.condition_norm(self.condition.rows(conditions, batch))  # K·B rows from here on
        pixel_BMD, vector_BF = (t.repeat(len(conditions), *[1] * (t.dim() - 1)) for t in (pixel_BMD, vector_BF))
        for block in self.decoder:
            pixel_BMD = block(pixel_BMD, size, vector_BF, condition_BND)
        out_BMC = self.out(self.out_norm(pixel_BMD, vector_BF)[0])
        return DenoiserOutput(out_BMC.transpose(1, 2).unflatten(2, size).unflatten(0, (len(conditions), batch)))
