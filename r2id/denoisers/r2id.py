"""R2ID, the resolution-invariant image diffuser: a transformer over latent cells of any count and shape.

Cells carry both coordinate systems, so no size is built in. The encoder blocks (self-attention) see no condition and
run once a step; the decoder blocks (self-attention, cross-attention to the condition) run once a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import ATTENTIONS, MLP, AdaLN, Attention, NoiseEmbedding
from r2id.limits import check_heads, check_model
from r2id.position import PositionEmbedding, Positions, flat


@dataclass(frozen=True)
class R2IDConfig:
    """Sizes of an R2ID. The shipped values are in `train/configs/mnist_r2id.toml`."""

    latent_channels: int = 16
    num_classes: int = 10
    label_tokens: int = 4
    width: int = 128
    heads: int = 4
    encoder_blocks: int = 3
    decoder_blocks: int = 4
    mlp_ratio: int = 4
    noise_width: int = 128  # of the vector that modulates every block
    gated: bool = True  # adaLN-Zero; False: shift and scale only
    attention: str = "softmax"
    octaves: tuple[int, int] = (-2, 4)
    prediction_type: str = "v"  # what the network predicts: v, epsilon or x0
    dropout: float = 0.0
    size_multiple: ClassVar[int] = 1  # latents of any size
    jitter: ClassVar[float] = 0.0  # of cells in training

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention {self.attention!r}: must be one of {', '.join(ATTENTIONS)}")
        if self.prediction_type not in ("v", "epsilon", "x0"):
            raise ValueError(f"prediction_type {self.prediction_type!r}: must be v, epsilon or x0")


class R2IDBlock(nn.Module):
    """Self-attention, optional cross-attention to the condition, MLP; each modulated by AdaLN."""

    def __init__(self, config: R2IDConfig, *, cross_attention: bool):
        super().__init__()
        attention = {"heads": config.heads, "attention": config.attention, "dropout": config.dropout}
        modulation = (config.width, config.noise_width)
        self.self_norm = AdaLN(*modulation, gated=config.gated)
        self.self_attention = Attention(config.width, **attention)
        self.cross_norm = AdaLN(*modulation, gated=config.gated) if cross_attention else None
        self.cross_attention = Attention(config.width, **attention) if cross_attention else None
        self.mlp_norm = AdaLN(*modulation, gated=config.gated)
        self.mlp = MLP(config.width, mlp_ratio=config.mlp_ratio, dropout=config.dropout)

    def forward(self, cell_BMD: Tensor, vector_BF: Tensor, condition_BND: Tensor | None = None) -> Tensor:
        normed_BMD, gate = self.self_norm(cell_BMD, vector_BF)
        cell_BMD = cell_BMD + gate * self.self_attention(normed_BMD, self.self_attention.keys_values(normed_BMD))
        if self.cross_attention:
            normed_BMD, gate = self.cross_norm(cell_BMD, vector_BF)
            cell_BMD = cell_BMD + gate * self.cross_attention(
                normed_BMD, self.cross_attention.keys_values(condition_BND)
            )
        normed_BMD, gate = self.mlp_norm(cell_BMD, vector_BF)
        return cell_BMD + gate * self.mlp(normed_BMD)


class R2ID(nn.Module):
    def __init__(self, config: R2IDConfig):
        super().__init__()
        self.config = config
        self.condition = LabelCondition(config.num_classes, tokens=config.label_tokens, width=config.width)
        self.condition_norm = nn.LayerNorm(config.width)
        self.noise_embedding = NoiseEmbedding(config.noise_width)
        self.cell_in = nn.Linear(config.latent_channels, config.width)
        self.cell_position = PositionEmbedding(config.width, config.octaves)
        self.encoder = nn.ModuleList(R2IDBlock(config, cross_attention=False) for _ in range(config.encoder_blocks))
        self.decoder = nn.ModuleList(R2IDBlock(config, cross_attention=True) for _ in range(config.decoder_blocks))
        self.out_norm = AdaLN(config.width, config.noise_width, gated=False)
        self.out = nn.Linear(config.width, config.latent_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy_BChw: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: None = None,
    ) -> DenoiserOutput:
        """Noisy latents (B, C, h, w) of unit variance at ᾱ (B,) → `config.prediction_type`, (K, B, C, h, w)."""
        batch, _, *size = noisy_BChw.shape
        vector_BF = self.noise_embedding(alpha_bar_B)
        position_MD = flat(self.cell_position(positions), positions)
        cell_BMD = self.cell_in(noisy_BChw.flatten(2).transpose(1, 2)) + position_MD
        for block in self.encoder:
            cell_BMD = block(cell_BMD, vector_BF)
        condition_BND = self.condition_norm(self.condition.rows(conditions, batch))  # K·B rows from here on
        cell_BMD, vector_BF = (t.repeat(len(conditions), *[1] * (t.dim() - 1)) for t in (cell_BMD, vector_BF))
        for block in self.decoder:
            cell_BMD = block(cell_BMD, vector_BF, condition_BND)
        out_BMC = self.out(self.out_norm(cell_BMD, vector_BF)[0])
        return DenoiserOutput(out_BMC.transpose(1, 2).unflatten(2, size).unflatten(0, (len(conditions), batch)))
