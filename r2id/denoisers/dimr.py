"""DiMR, the multi-resolution diffuser: branches from coarse to fine, all reading the same noisy image.

The coarsest branch is a transformer that sees the class, the finer ones are ConvNeXt; each passes its features on to
the next and predicts at its own scale. The result is that of the last (Liu et al. 2024, arXiv 2406.09416).

R in tensor names: K·B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import MLP, Attention
from r2id.limits import (
    BLOCKS,
    HEADS,
    MAX_BLOCKS,
    OCTAVES,
    RATIOS,
    WIDTHS,
    check_heads,
    check_int,
    check_model,
    ranged,
)
from r2id.position import PositionEmbedding, Positions, flat, patch_centres
from r2id.schedule import check_prediction_type, log_snr

LOG_SNR_SCALE = 0.25  # log-SNR reaches ±20, the sigmoid of `TimeDependentNorm` changes within ±4


@dataclass(frozen=True)
class DiMRConfig:
    """Sizes of a DiMR. Of `patches`, `widths` and `blocks`, one value a branch, the coarsest first."""

    latent_channels: int = ranged(1, 1, 4096)
    num_classes: int = ranged(10, 0, 2**17)
    label_tokens: int = ranged(4, 1, 4096)
    patches: tuple[int, ...] = ranged((4, 2), 1, 256)  # side of a branch's tokens, in pixels of the input
    widths: tuple[int, ...] = ranged((128, 64), *WIDTHS)
    blocks: tuple[int, ...] = ranged((6, 4), *BLOCKS)
    heads: int = ranged(4, *HEADS)  # of the transformer
    mlp_ratio: int = ranged(4, *RATIOS)  # of the transformer's MLP
    gated_mlp_ratio: int = ranged(2, *RATIOS)  # of the ConvNeXt blocks' MLP
    kernel: int = ranged(7, 1, 63)  # of the ConvNeXt blocks' depthwise convolution
    octaves: tuple[int, int] = ranged((-2, 4), *OCTAVES)
    prediction_type: str = "v"  # what every branch predicts: v, epsilon or x0
    jitter: float = ranged(0.0, 0.0, 16.0)  # σ in pixels by which training moves the positions

    def __post_init__(self):
        check_model(self)
        if not 0 < len(self.patches) == len(self.widths) == len(self.blocks):
            raise ValueError(f"patches {self.patches}, widths and blocks: must have one value a branch, all three")
        if any(coarse <= fine or coarse % fine for coarse, fine in pairwise(self.patches)):
            raise ValueError(f"patches {self.patches}: each must be a larger multiple of the next")
        check_int(sum(self.blocks), "blocks together", 1, MAX_BLOCKS)
        check_heads(self.heads, widths=self.widths[0])
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel}: must be odd, so that a token is in the middle")
        check_prediction_type(self.prediction_type)

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of it."""
        return self.patches[0]


class TimeDependentNorm(nn.Module):
    """LayerNorm over the last axis; its scale and shift go from `noise` to `clean` as log-SNR rises (TD-LN).

    Per channel p(s) = noise + σ(slope·s + offset)·(clean − noise), s the scaled log-SNR: four numbers a parameter in
    place of an MLP.
    """

    def __init__(self, width: int):
        super().__init__()
        scale_and_shift = torch.tensor([[1.0], [0.0]]).repeat(1, width)
        self.clean = nn.Parameter(scale_and_shift.clone())
        self.noise = nn.Parameter(scale_and_shift.clone())
        self.slope = nn.Parameter(torch.ones(2, width))
        self.offset = nn.Parameter(torch.zeros(2, width))

    def forward(self, tokens_RND: Tensor, time_R: Tensor) -> Tensor:
        """Tokens (R, …, D), s (R,) → the same shape."""
        mix_R2D = torch.sigmoid(self.slope * time_R[:, None, None] + self.offset)
        shape = (len(time_R), *[1] * (tokens_RND.ndim - 2), -1)
        scale, shift = (p.reshape(shape) for p in torch.lerp(self.noise, self.clean, mix_R2D).unbind(1))
        return torch.addcmul(shift, F.layer_norm(tokens_RND, tokens_RND.shape[-1:]), scale)


class TransformerBlock(nn.Module):
    """Self-attention and MLP, each after a norm that depends on time."""

    def __init__(self, config: DiMRConfig):
        super().__init__()
        width = config.widths[0]
        self.self_norm = TimeDependentNorm(width)
        self.self_attention = Attention(width, heads=config.heads)
        self.mlp_norm = TimeDependentNorm(width)
        self.mlp = MLP(width, mlp_ratio=config.mlp_ratio)

    def forward(self, tokens_RND: Tensor, time_R: Tensor) -> Tensor:
        normed_RND = self.self_norm(tokens_RND, time_R)
        tokens_RND = tokens_RND + self.self_attention(normed_RND, self.self_attention.keys_values(normed_RND))
        return tokens_RND + self.mlp(self.mlp_norm(tokens_RND, time_R))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then an MLP gated by GELU; channels last."""

    def __init__(self, width: int, *, kernel: int, mlp_ratio: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = TimeDependentNorm(width)
        self.value = nn.Linear(width, mlp_ratio * width)
        self.gate = nn.Linear(width, mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)

    def forward(self, tokens_RhwD: Tensor, time_R: Tensor) -> Tensor:
        mixed_RhwD = self.depthwise(tokens_RhwD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normed_RhwD = self.norm(mixed_RhwD, time_R)
        return tokens_RhwD + self.down(self.value(normed_RhwD) * F.gelu(self.gate(normed_RhwD)))


class LongSkips(nn.Module):
    """Blocks in a row; what leaves block i joins what enters block n − 1 − i (U-ViT, Bao et al. 2023)."""

    def __init__(self, blocks: Sequence[nn.Module], width: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(len(blocks) // 2))

    def forward(self, tokens_RND: Tensor, time_R: Tensor) -> Tensor:
        kept = []
        for index, block in enumerate(self.blocks):
            mirrored = index - (len(self.blocks) - len(self.joins))
            if mirrored >= 0:
                tokens_RND = self.joins[mirrored](torch.cat((tokens_RND, kept.pop()), dim=-1))
            tokens_RND = block(tokens_RND, time_R)
            if index < len(self.joins):
                kept.append(tokens_RND)
        return tokens_RND


class Cascade(nn.Module):
    """Features of a branch → as many tokens as the next branch has, by pixel-shuffle between two norms."""

    def __init__(self, width: int, next_width: int, *, factor: int):
        super().__init__()
        self.norm = TimeDependentNorm(width)
        self.expand = nn.Linear(width, next_width * factor**2)
        self.factor = factor
        self.next_norm = TimeDependentNorm(next_width)

    def forward(self, feature_RhwD: Tensor, time_R: Tensor) -> Tensor:
        expanded_RDhw = self.expand(self.norm(feature_RhwD, time_R)).permute(0, 3, 1, 2)
        return self.next_norm(F.pixel_shuffle(expanded_RDhw, self.factor).permute(0, 2, 3, 1), time_R)


class Head(nn.Module):
    """Features → the prediction at the branch's scale, `patch` pixels a token; zero at first."""

    def __init__(self, width: int, channels: int, *, patch: int):
        super().__init__()
        self.norm = TimeDependentNorm(width)
        self.out = nn.Conv2d(width, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.patch = patch

    def forward(self, feature_RhwD: Tensor, time_R: Tensor) -> Tensor:
        return F.pixel_shuffle(self.out(self.norm(feature_RhwD, time_R).permute(0, 3, 1, 2)), self.patch)


class Transformer(nn.Module):
    """The coarsest branch: class tokens and one token a patch."""

    def __init__(self, config: DiMRConfig):
        super().__init__()
        self.patch, width = config.patches[0], config.widths[0]
        self.stem = nn.Conv2d(config.latent_channels, width, self.patch, stride=self.patch)
        self.position = PositionEmbedding(width, config.octaves)
        self.blocks = LongSkips([TransformerBlock(config) for _ in range(config.blocks[0])], width)

    def forward(self, noisy_BCHW: Tensor, positions: Positions, class_RND: Tensor, time_R: Tensor) -> Tensor:
        """→ features (R, h, w, D); R rows are K conditions of B images."""
        token_BDhw = self.stem(noisy_BCHW)
        size = token_BDhw.shape[2:]
        position_MD = flat(self.position(patch_centres(positions, noisy_BCHW.shape[2:], self.patch)), positions)
        token_BMD = token_BDhw.flatten(2).transpose(1, 2) + position_MD
        token_RMD = token_BMD.repeat(len(class_RND) // len(token_BMD), 1, 1)
        token_RND = self.blocks(torch.cat((class_RND, token_RMD), dim=1), time_R)
        return token_RND[:, class_RND.shape[1] :].unflatten(1, size)


class ConvNeXt(nn.Module):
    """A finer branch: it gets the class from the features of the coarser one, and positions from its padding."""

    def __init__(self, config: DiMRConfig, branch: int):
        super().__init__()
        patch, width = config.patches[branch], config.widths[branch]
        self.stem = nn.Conv2d(config.latent_channels, width, patch, stride=patch)
        self.cascade = Cascade(config.widths[branch - 1], width, factor=config.patches[branch - 1] // patch)
        options = {"kernel": config.kernel, "mlp_ratio": config.gated_mlp_ratio}
        self.blocks = LongSkips([ConvNeXtBlock(width, **options) for _ in range(config.blocks[branch])], width)

    def forward(self, noisy_BCHW: Tensor, coarse_RhwD: Tensor, time_R: Tensor) -> Tensor:
        stem_BhwD = self.stem(noisy_BCHW).permute(0, 2, 3, 1)
        stem_RhwD = stem_BhwD.repeat(len(coarse_RhwD) // len(stem_BhwD), 1, 1, 1)
        return self.blocks(stem_RhwD + self.cascade(coarse_RhwD, time_R), time_R)


class DiMR(nn.Module):
    """See `Denoiser`. Its pyramid holds the predictions of the coarser branches."""

    def __init__(self, config: DiMRConfig):
        super().__init__()
        self.config = config
        self.condition = LabelCondition(config.num_classes, tokens=config.label_tokens, width=config.widths[0])
        self.transformer = Transformer(config)
        self.finer = nn.ModuleList(ConvNeXt(config, branch) for branch in range(1, len(config.patches)))
        head = {"channels": config.latent_channels, "patch": config.patches[-1]}
        self.heads = nn.ModuleList(Head(width, **head) for width in config.widths)

    def forward(
        self,
        noisy_BCHW: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: None = None,
    ) -> DenoiserOutput:
        """Noisy images (B, C, H, W) of unit variance at ᾱ (B,) → prediction (K, B, C, H, W), and the same at the
        coarser scales. Raises ValueError unless H and W are multiples of `size_multiple`."""
        batch, _, height, width = noisy_BCHW.shape
        size_multiple = self.config.size_multiple
        if height % size_multiple or width % size_multiple:
            multiples = f"multiples of {size_multiple}, the side of the coarsest tokens"
            raise ValueError(f"size ({height}, {width}): height and width must be {multiples}")
        time_R = (LOG_SNR_SCALE * log_snr(alpha_bar_B)).to(noisy_BCHW.dtype).repeat(len(conditions))
        features = [self.transformer(noisy_BCHW, positions, self.condition.rows(conditions, batch), time_R)]
        for branch in self.finer:
            features.append(branch(noisy_BCHW, features[-1], time_R))
        predictions = [
            head(feature_RhwD, time_R).unflatten(0, (len(conditions), batch))
            for head, feature_RhwD in zip(self.heads, features, strict=True)
        ]
        return DenoiserOutput(predictions[-1], pyramid=tuple(predictions[:-1]))
