"""What R2ID and S2ID share: a transformer over the tokens of a noisy grid, modulated by the noise level.

The encoder blocks see no condition and run once a step; the decoder blocks attend to the condition's tokens too and run
once a condition.

S in tensor names: the width of the vector that modulates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import MLP, AdaLN, Attention, NoiseEmbedding
from r2id.position import PositionEmbedding, Positions, flat


class BackboneBlock(nn.Module):
    """Self-attention, optional cross-attention to the condition, MLP; each modulated by AdaLN.

    self_attention: called with tokens (B, N, D) in reading order and their grid (height, width).
    """

    def __init__(
        self,
        width: int,
        *,
        self_attention: nn.Module,
        cross_attention: Attention | None,
        noise_width: int,
        gated: bool,
        mlp_ratio: int,
        dropout: float,
    ):
        super().__init__()
        self.self_norm = AdaLN(width, noise_width, gated=gated)
        self.self_attention = self_attention
        self.cross_norm = AdaLN(width, noise_width, gated=gated) if cross_attention else None
        self.cross_attention = cross_attention
        self.mlp_norm = AdaLN(width, noise_width, gated=gated)
        self.mlp = MLP(width, mlp_ratio=mlp_ratio, dropout=dropout)

    def forward(
        self, token_BND: Tensor, size: tuple[int, int], noise_BS: Tensor, condition_BMD: Tensor | None = None
    ) -> Tensor:
        normed_BND, gate = self.self_norm(token_BND, noise_BS)
        token_BND = token_BND + gate * self.self_attention(normed_BND, size)
        if self.cross_attention is not None:
            normed_BND, gate = self.cross_norm(token_BND, noise_BS)
            keys_values = self.cross_attention.keys_values(condition_BMD)
            token_BND = token_BND + gate * self.cross_attention(normed_BND, keys_values)
        normed_BND, gate = self.mlp_norm(token_BND, noise_BS)
        return token_BND + gate * self.mlp(normed_BND)


class Backbone(nn.Module):
    """A denoiser whose tokens are the cells (or pixels) of its input, one each."""

    def __init__(
        self,
        config,
        *,
        self_attention: Callable[[], nn.Module],
        cross_attention: Callable[[], Attention],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.config = config
        width = config.width
        block = {
            "noise_width": config.noise_width,
            "gated": config.gated,
            "mlp_ratio": config.mlp_ratio,
            "dropout": dropout,
        }
        self.condition = LabelCondition(config.num_classes, tokens=config.label_tokens, width=width)
        self.condition_norm = nn.LayerNorm(width)
        self.noise_embedding = NoiseEmbedding(config.noise_width)
        # The sum with `position` is one linear map of values and Fourier features side by side; the bias is there.
        self.token_in = nn.Linear(config.latent_channels, width, bias=False)
        self.position = PositionEmbedding(width, config.octaves)
        self.encoder = nn.ModuleList(
            BackboneBlock(width, self_attention=self_attention(), cross_attention=None, **block)
            for _ in range(config.encoder_blocks)
        )
        self.decoder = nn.ModuleList(
            BackboneBlock(width, self_attention=self_attention(), cross_attention=cross_attention(), **block)
            for _ in range(config.decoder_blocks)
        )
        self.out_norm = AdaLN(width, config.noise_width, gated=False)
        self.out = nn.Linear(width, config.latent_channels)
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
        """Noisy input (B, C, H, W) of unit variance at ᾱ (B,) → prediction (K, B, C, H, W): see `Denoiser`."""
        batch, _, *size = noisy_BCHW.shape
        noise_BS = self.noise_embedding(alpha_bar_B)
        position_ND = flat(self.position(positions), positions)
        token_BND = self.token_in(noisy_BCHW.flatten(2).transpose(1, 2)) + position_ND
        for block in self.encoder:
            token_BND = block(token_BND, size, noise_BS)
        condition_BMD = self.condition_norm(self.condition.rows(conditions, batch))  # K·B rows from here on
        token_BND, noise_BS = (t.repeat(len(conditions), *[1] * (t.dim() - 1)) for t in (token_BND, noise_BS))
        for block in self.decoder:
            token_BND = block(token_BND, size, noise_BS, condition_BMD)
        out_BNC = self.out(self.out_norm(token_BND, noise_BS)[0])
        return DenoiserOutput(out_BNC.transpose(1, 2).unflatten(2, size).unflatten(0, (len(conditions), batch)))
