"""Attention, feed-forward and modulation. Every normalisation is per token: nothing reduces over the queries."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.schedule import log_snr

NOISE_FREQUENCIES = 16  # sin and cos of log-SNR, periods from 6 to 400
ATTENTIONS = ("softmax", "linear")
SMALL = 160**2  # queries × keys up to which scores are materialised


class Attention(nn.Module):
    """Multi-head attention of queries over a context, in two parts so that what the context gives is made once.

    "softmax" is scaled dot-product attention; "linear" is Katharopoulos et al. 2020 with ELU+1 features, whose cost
    is linear in queries + context. Queries and keys are normalised per head (LayerNorm). With a single head of softmax
    attention a query costs no linear map and is to come normalised: what the maps would do, keys and values can.
    `context_width`: of the context's tokens, where it is not `width`.
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
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r}: must be one of {', '.join(ATTENTIONS)}")
        if width % heads:
            raise ValueError(f"width {width}: must be a multiple of the {heads} heads")
        self.head_width, self.attention = width // heads, attention
        self.project_queries = project_queries = heads > 1 or attention == "linear"
        self.query = nn.Linear(width, width) if project_queries else nn.Identity()
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.query_norm = nn.LayerNorm(self.head_width) if project_queries else nn.Identity()
        self.key_norm = nn.LayerNorm(self.head_width)
        self.out = nn.Linear(width, width) if project_queries else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """What the context gives, whatever the queries: keys and values, or their sums for linear attention."""
        key_BMD, value_BMD = self.key_value(context_BMD).chunk(2, dim=-1)
        key_BHME, value_BHME = self._heads(key_BMD, self.key_norm), self._heads(value_BMD, nn.Identity())
        if self.attention == "softmax":
            return key_BHME, value_BHME
        key_BHME = F.elu(key_BHME) + 1
        return key_BHME.transpose(-1, -2) @ value_BHME, key_BHME.sum(dim=2, keepdim=True).transpose(-1, -2)

    def forward(self, query_BND: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        query_BHNE = self._heads(self.query(query_BND), self.query_norm)
        first, second = keys_values
        if self.attention == "softmax":
            mixed_BHNE = softmax_attention(query_BHNE, first, second)
        else:
            query_BHNE = F.elu(query_BHNE) + 1
            mixed_BHNE = (query_BHNE @ first) / (query_BHNE @ second)
        return self.dropout(self.out(mixed_BHNE.transpose(1, 2).flatten(2)))

    def _heads(self, tokens_BND: Tensor, norm: nn.Module) -> Tensor:
        return norm(tokens_BND.unflatten(-1, (-1, self.head_width))).transpose(1, 2)


def softmax_attention(query_BHNE: Tensor, key_BHME: Tensor, value_BHME: Tensor) -> Tensor:
    """Scaled dot-product attention. On CPUs torch's own takes five times as long in bfloat16 as what is done here."""
    if query_BHNE.device.type != "cpu" or value_BHME.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query_BHNE, key_BHME, value_BHME)
    if query_BHNE.shape[2] * key_BHME.shape[2] <= SMALL:
        score_BHNM = query_BHNE @ key_BHME.transpose(-1, -2) * query_BHNE.shape[-1] ** -0.5
        return score_BHNM.softmax(dim=-1).to(value_BHME.dtype) @ value_BHME
    return F.scaled_dot_product_attention(query_BHNE.float(), key_BHME.float(), value_BHME.float())


def centred(values: Tensor) -> Tensor:
    """With mean 0 over the channels."""
    return values - values.mean(dim=-1, keepdim=True)


class CentredLinear(nn.Linear):
    """A linear map whose results are centred, at no cost a token."""

    def parts(self) -> tuple[Tensor, Tensor]:
        """Weight (out, in) and bias (out,)."""
        return centred(self.weight.T).T, centred(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, *self.parts())


class MLP(nn.Sequential):
    def __init__(self, width: int, *, mlp_ratio: int, dropout: float = 0.0):
        hidden = mlp_ratio * width
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class NoiseEmbedding(nn.Sequential):
    """ᾱ (B,) in [0, 1] → (B, F), from sines and cosines of log-SNR; computed in the weights' dtype."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(2 * NOISE_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        periods = torch.logspace(math.log10(6), math.log10(400), NOISE_FREQUENCIES)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)

    def forward(self, alpha_bar_B: Tensor) -> Tensor:
        angles_BK = log_snr(alpha_bar_B)[:, None].to(self[0].weight.dtype) * self.frequencies
        return super().forward(torch.cat((angles_BK.sin(), angles_BK.cos()), dim=-1))


class AdaLN(nn.Module):
    """LayerNorm whose shift and scale come from a vector, and the gate of what follows (DiT's adaLN-Zero, Peebles &
    Xie 2023): `normed, gate = adaln(tokens_BND, vector_BF)`. Without `gated` the gate is 1, as in plain FiLM."""

    def __init__(self, width: int, vector_width: int, *, gated: bool = True):
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(vector_width, (3 if gated else 2) * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens_BND: Tensor, vector_BF: Tensor) -> tuple[Tensor, Tensor | float]:
        shift, scale, *gate = self.modulation(F.silu(vector_BF))[:, None].split(self.width, dim=-1)
        return torch.addcmul(shift, self.norm(tokens_BND), 1 + scale), gate[0] if gate else 1.0


class Block(nn.Module):
    """Pre-norm residual block: optional cross-attention, optional self-attention, feed-forward."""

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
        """`keys_values`: of `self.cross_attention`; required when the block has cross-attention."""
        if keys_values is not None:
            tokens_BND = tokens_BND + self.cross_attention(self.cross_norm(tokens_BND), keys_values)
        if self.self_attention:
            normed_BND = self.self_norm(tokens_BND)
            tokens_BND = tokens_BND + self.self_attention(normed_BND, self.self_attention.keys_values(normed_BND))
        return tokens_BND + self.mlp(self.mlp_norm(tokens_BND))


class Reader(Block):
    """A block of very many tokens that read a few: the same function of the same weights, for tokens that are centred,
    as all norms would make them, and that stay so. `fold_layernorm` is what a norm costs beside the
    product after it."""

    def __init__(self, width: int, *, mlp_ratio: int, dropout: float = 0.0, **options):
        super().__init__(
            width, mlp_ratio=mlp_ratio, dropout=dropout, cross_attention=True, self_attention=False, **options
        )
        self.mlp[2] = CentredLinear(mlp_ratio * width, width)
        if self.cross_attention.project_queries:
            self.cross_attention.out = CentredLinear(width, width)

    def keys_values(self, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` needs of the context."""
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
    """What brings centred tokens (…, D) to variance 1, as a LayerNorm does: a factor (…, 1)."""
    return math.sqrt(tokens.shape[-1]) / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)


def normed(tokens: Tensor) -> Tensor:
    """Centred tokens with variance 1, and mean 1 for `fold_layernorm`."""
    return torch.addcmul(tokens.new_ones(tokens.shape[-1]), tokens, inverse_rms(tokens))


def fold_layernorm(norm: nn.LayerNorm, weight_KD: Tensor, bias_K: Tensor | float = 0.0) -> Tensor:
    """The weights (K, D), or any keys, that give of `normed(x)` what these give of `norm(x)`, bias included: the mean
    of 1 meets the sum of a row, which nothing else does, so that it can hold all that does not depend on x."""
    scaled_KD = weight_KD * norm.weight
    constant_K = weight_KD @ norm.bias + bias_K
    return scaled_KD + (constant_K - scaled_KD.sum(dim=-1))[..., None] / norm.weight.numel()


def residual_add(tokens: Tensor, new: Tensor) -> Tensor:
    """Their sum, in the memory of what is new where nothing else needs it."""
    in_place = not torch.is_grad_enabled() and new.dtype == torch.promote_types(tokens.dtype, new.dtype)
    return new.add_(tokens) if in_place else tokens + new
