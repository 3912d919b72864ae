"""Attention, MLP and modulation. Every normalisation is per token: nothing reduces over the queries.

G in tensor names: attention heads. S: the width of the vector that modulates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.limits import check_choice, check_heads
from r2id.schedule import log_snr

NOISE_FREQUENCIES = 16  # sin and cos of log-SNR, periods from 6 to 400
ATTENTIONS = ("softmax", "linear")
SMALL = 2**18  # queries × keys, at most, whose scores are held in memory


class Attention(nn.Module):
    """Multi-head attention in two parts, so that keys and values of a context are computed once for many queries.

    "softmax" is scaled dot-product attention; "linear" is Katharopoulos et al. 2020 with ELU+1 features, whose cost
    is linear in queries + context. Queries and keys are normalised per head (LayerNorm). A single head of softmax
    attention projects neither queries nor results, which keys and values can do for it; its queries have to be
    normalised. context_width: of the context's tokens, None for `width`.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        attention: str = "softmax",
        dropout: float = 0.0,
        context_width: int | None = None,
    ):
        super().__init__()
        check_choice(attention, "attention", ATTENTIONS)
        check_heads(heads, width=width)
        self.head_width, self.attention = width // heads, attention
        self.project_queries = project_queries = heads > 1 or attention == "linear"
        self.query = nn.Linear(width, width) if project_queries else nn.Identity()
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.query_norm = nn.LayerNorm(self.head_width) if project_queries else nn.Identity()
        self.key_norm = nn.LayerNorm(self.head_width)
        self.out = nn.Linear(width, width) if project_queries else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens (B, M, D) → keys and values (B, G, M, E), or for linear attention their sums over M."""
        key_BMD, value_BMD = self.key_value(context_BMD).chunk(2, dim=-1)
        key_BGME, value_BGME = self._heads(key_BMD, self.key_norm), self._heads(value_BMD, nn.Identity())
        if self.attention == "softmax":
            return key_BGME, value_BGME
        key_BGME = F.elu(key_BGME) + 1
        return key_BGME.transpose(-1, -2) @ value_BGME, key_BGME.sum(dim=2, keepdim=True).transpose(-1, -2)

    def forward(self, query_BND: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        query_BGNE = self._heads(self.query(query_BND), self.query_norm)
        first, second = keys_values
        if self.attention == "softmax":
            mixed_BGNE = softmax_attention(query_BGNE, first, second)
        else:
            query_BGNE = F.elu(query_BGNE) + 1
            mixed_BGNE = (query_BGNE @ first) / (query_BGNE @ second)
        return self.dropout(self.out(mixed_BGNE.transpose(1, 2).flatten(2)))

    def _heads(self, tokens_BND: Tensor, norm: nn.Module) -> Tensor:
        return norm(tokens_BND.unflatten(-1, (-1, self.head_width))).transpose(1, 2)


def softmax_attention(query_BGNE: Tensor, key_BGME: Tensor, value_BGME: Tensor) -> Tensor:
    """Scaled dot-product attention. On CPUs torch's own takes up to eight times as long as plain products in bfloat16,
    which hold all scores in memory."""
    small = query_BGNE.shape[2] * key_BGME.shape[2] <= SMALL
    if not small or query_BGNE.device.type != "cpu" or value_BGME.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query_BGNE, key_BGME, value_BGME)
    score_BGNM = query_BGNE @ key_BGME.transpose(-1, -2) * query_BGNE.shape[-1] ** -0.5
    return score_BGNM.softmax(dim=-1).to(value_BGME.dtype) @ value_BGME


def centred(values: Tensor) -> Tensor:
    """Tokens (…, D) minus their mean over D."""
    return values - values.mean(dim=-1, keepdim=True)


class CentredLinear(nn.Linear):
    """A linear map whose results are centred: its weights are, so that tokens cost nothing more."""

    def parts(self) -> tuple[Tensor, Tensor]:
        """Weight (out, in) and bias (out,)."""
        return centred(self.weight.T).T, centred(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, *self.parts())


class MLP(nn.Sequential):
    """Two linear maps with GELU between, mlp_ratio · width wide inside."""

    def __init__(self, width: int, *, mlp_ratio: int, dropout: float = 0.0):
        hidden = mlp_ratio * width
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class NoiseEmbedding(nn.Sequential):
    """ᾱ (B,) in [0, 1] → vectors (B, S), from sines and cosines of log-SNR, in the weights' dtype."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(2 * NOISE_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        periods = torch.logspace(math.log10(6), math.log10(400), NOISE_FREQUENCIES)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)

    def forward(self, alpha_bar_B: Tensor) -> Tensor:
        angles_BF = log_snr(alpha_bar_B)[:, None].to(self[0].weight.dtype) * self.frequencies
        return super().forward(torch.cat((angles_BF.sin(), angles_BF.cos()), dim=-1))


class AdaLN(nn.Module):
    """LayerNorm whose shift and scale come from a vector, and a gate for the layer that follows (adaLN-Zero of DiT,
    Peebles & Xie 2023): `normed_BND, gate = adaln(tokens_BND, vector_BS)`. Not gated, the gate is 1 (FiLM)."""

    def __init__(self, width: int, vector_width: int, *, gated: bool = True):
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(vector_width, (3 if gated else 2) * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens_BND: Tensor, vector_BS: Tensor) -> tuple[Tensor, Tensor | float]:
        shift, scale, *gate = self.modulation(F.silu(vector_BS))[:, None].split(self.width, dim=-1)
        return torch.addcmul(shift, self.norm(tokens_BND), 1 + scale), gate[0] if gate else 1.0


class Block(nn.Module):
    """Pre-norm residual block: optional cross-attention, optional self-attention, MLP."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        mlp_ratio: int,
        cross_attention: bool,
        self_attention: bool,
        attention: str = "softmax",
        dropout: float = 0.0,
        context_width: int | None = None,
    ):
        super().__init__()
        options = {"heads": heads, "attention": attention, "dropout": dropout}
        self.cross_norm = nn.LayerNorm(width) if cross_attention else None
        self.cross_attention = Attention(width, context_width=context_width, **options) if cross_attention else None
        self.self_norm = nn.LayerNorm(width) if self_attention else None
        self.self_attention = Attention(width, **options) if self_attention else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio=mlp_ratio, dropout=dropout)

    def forward(self, tokens_BND: Tensor, keys_values: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """keys_values: what `self.cross_attention.keys_values` returned, None without cross-attention."""
        if keys_values is not None:
            tokens_BND = tokens_BND + self.cross_attention(self.cross_norm(tokens_BND), keys_values)
        if self.self_attention:
            normed_BND = self.self_norm(tokens_BND)
            tokens_BND = tokens_BND + self.self_attention(normed_BND, self.self_attention.keys_values(normed_BND))
        return tokens_BND + self.mlp(self.mlp_norm(tokens_BND))


class Reader(Block):
    """A `Block` of cross-attention for many tokens and a small context. It computes the same function of tokens that
    are centred, as every norm would make them, and keeps them centred; so a LayerNorm is a scale alone, and folds into
    the product after it."""

    def __init__(self, width: int, *, mlp_ratio: int, dropout: float = 0.0, **options):
        super().__init__(
            width, mlp_ratio=mlp_ratio, dropout=dropout, cross_attention=True, self_attention=False, **options
        )
        self.mlp[2] = CentredLinear(mlp_ratio * width, width)
        if self.cross_attention.project_queries:
            self.cross_attention.out = CentredLinear(width, width)

    def keys_values(self, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens (B, M, D) → what `forward` takes."""
        first, second = self.cross_attention.keys_values(context_BMD)
        return (
            (first, second)
            if self.cross_attention.project_queries
            else (fold_layernorm(self.cross_norm, first), centred(second))
        )

    def forward(self, tokens_BND: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        query_BND = self.cross_norm(tokens_BND) if self.cross_attention.project_queries else normed(tokens_BND)
        tokens_BND = residual_add(tokens_BND, self.cross_attention(query_BND, keys_values))
        first, *others = self.mlp
        new_BND = F.linear(normed(tokens_BND), fold_layernorm(self.mlp_norm, first.weight, first.bias))
        for layer in others:
            new_BND = layer(new_BND)
        return residual_add(tokens_BND, new_BND)


def inverse_rms(tokens: Tensor) -> Tensor:
    """The factor (…, 1) by which a LayerNorm scales centred tokens (…, D) to variance 1."""
    return math.sqrt(tokens.shape[-1]) / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)


def normed(tokens: Tensor) -> Tensor:
    """Centred tokens (…, D) scaled to variance 1, plus 1: the input that `fold_layernorm` is for."""
    return torch.addcmul(tokens.new_ones(tokens.shape[-1]), tokens, inverse_rms(tokens))


def fold_layernorm(norm: nn.LayerNorm, weight_ND: Tensor, bias_N: Tensor | float = 0.0) -> Tensor:
    """Folds a LayerNorm's scale and bias into the linear map (or the keys) after it: weights (…, N, D) whose product
    with `normed(x)` is that of the given ones with `norm(x)`, plus the bias. The constant is added to a
    row in equal parts, since the 1 in `normed` meets the row's sum, and the centred tokens do not."""
    scaled_ND = weight_ND * norm.weight
    constant_N = weight_ND @ norm.bias + bias_N
    return scaled_ND + (constant_N - scaled_ND.sum(dim=-1))[..., None] / norm.weight.numel()


def residual_add(tokens: Tensor, new: Tensor) -> Tensor:
    """The sum of both, written over `new` where no gradient needs it."""
    in_place = not torch.is_grad_enabled() and new.dtype == torch.promote_types(tokens.dtype, new.dtype)
    return new.add_(tokens) if in_place else tokens + new
