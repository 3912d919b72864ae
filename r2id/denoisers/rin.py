"""RIN, the recurrent interface network (Jabri et al. 2022): most of the work is done on a few latent tokens.

The image's patches are the interface X; a few latents Z read from it, compute among themselves and write to it, block
after block. Time and condition are tokens beside the latents, so the interface learns of them only from what is
written. The latents of one sampling step start the next (latent self-conditioning).

R in tensor names: K·B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.layers import MLP, Block, NoiseEmbedding
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
from r2id.schedule import check_prediction_type, x0_from

MIN_DEVIATION = 1e-4  # so that an image of one colour is not divided by 0
ESTIMATE_LIMIT = 3.0  # noise prediction gives any estimate of x0 near ᾱ = 0; images lie within ±1, latents near ±1


@dataclass(frozen=True)
class RINConfig:
    """Sizes of a RIN. The small one is in `train/configs/mnist_rin.toml`."""

    latent_channels: int = ranged(1, 1, 4096)  # of the input: the image's, in pixel space
    num_classes: int = ranged(10, 0, 2**17)
    label_tokens: int = ranged(1, 1, 4096)
    patch: int = ranged(4, 1, 256)  # pixels a side of an interface token
    interface_width: int = ranged(96, *WIDTHS)
    num_latents: int = ranged(32, 1, 2**14)  # of Z, at any image size
    latent_width: int = ranged(128, *WIDTHS)
    blocks: int = ranged(3, *BLOCKS)
    compute_layers: int = ranged(2, *BLOCKS)  # self-attention layers on the latents, in each block
    heads: int = ranged(4, *HEADS)
    mlp_ratio: int = ranged(4, *RATIOS)
    octaves: tuple[int, int] = ranged((-2, 3), *OCTAVES)
    normalise: bool = True  # divide each input by its own deviation (Chen 2023)
    interface_attention: bool = False  # linear self-attention on the interface, before each write
    pixel_conditioning: bool = False  # the step before's estimate of x0 as more channels of the input
    dual_norm: bool = False  # LayerNorm before and after the patch embedding (Kumar et al. 2023)
    prediction_type: str = "v"  # what the network predicts: v, epsilon or x0
    jitter: float = ranged(0.0, 0.0, 16.0)  # by which training moves the positions: standard deviation, in pixels
    dropout: float = ranged(0.0, 0.0, 0.99)

    def __post_init__(self):
        check_model(self)
        check_int(self.blocks * self.compute_layers, "blocks x compute_layers", 1, MAX_BLOCKS)
        check_heads(self.heads, interface_width=self.interface_width, latent_width=self.latent_width)
        check_prediction_type(self.prediction_type)

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of it."""
        return self.patch


class RINBlock(nn.Module):
    """Read (latents attend to the interface), compute (latents to latents), write (the interface to latents)."""

    def __init__(self, config: RINConfig):
        super().__init__()
        options = {"heads": config.heads, "mlp_ratio": config.mlp_ratio, "dropout": config.dropout}
        latent, interface = config.latent_width, config.interface_width
        self.read_norm = nn.LayerNorm(interface)
        self.read = Block(latent, cross_attention=True, self_attention=False, context_width=interface, **options)
        self.compute = nn.Sequential(
            *(
                Block(latent, cross_attention=False, self_attention=True, **options)
                for _ in range(config.compute_layers)
            )
        )
        self.interface_attention = nn.Identity()
        if config.interface_attention:
            self.interface_attention = Block(
                interface, cross_attention=False, self_attention=True, attention="linear", **options
            )
        self.write_norm = nn.LayerNorm(latent)
        self.write = Block(interface, cross_attention=True, self_attention=False, context_width=latent, **options)

    def forward(self, interface_BMD: Tensor, latent_BND: Tensor) -> tuple[Tensor, Tensor]:
        latent_BND = self.read(latent_BND, self.read.cross_attention.keys_values(self.read_norm(interface_BMD)))
        latent_BND = self.compute(latent_BND)
        interface_BMD = self.interface_attention(interface_BMD)
        return self.write(
            interface_BMD, self.write.cross_attention.keys_values(self.write_norm(latent_BND))
        ), latent_BND


@dataclass(frozen=True)
class RecurrentState:
    """What one step passes to the next: the latents (K, B, N, D) and, with `pixel_conditioning`, its estimate of x0
    (K, B, C, H, W)."""

    latents: Tensor
    estimate: Tensor | None = None

    def detach(self) -> RecurrentState:
        """The same without gradients."""
        return RecurrentState(self.latents.detach(), None if self.estimate is None else self.estimate.detach())


class RIN(nn.Module):
    """See `Denoiser`. Its recurrent state is a `RecurrentState`."""

    def __init__(self, config: RINConfig):
        super().__init__()
        self.config = config
        values = config.latent_channels * config.patch**2  # of a patch
        values_in = 2 * values if config.pixel_conditioning else values
        embedding = [nn.Linear(values_in, config.interface_width)]
        if config.dual_norm:
            embedding = [nn.LayerNorm(values_in), *embedding, nn.LayerNorm(config.interface_width)]
        self.patch_in = nn.Sequential(*embedding)
        self.patch_position = PositionEmbedding(config.interface_width, config.octaves)
        self.latents = nn.Parameter(torch.randn(config.num_latents, config.latent_width))
        self.self_conditioning = MLP(config.latent_width, mlp_ratio=config.mlp_ratio)
        self.self_conditioning_norm = nn.LayerNorm(config.latent_width)
        nn.init.zeros_(self.self_conditioning_norm.weight)  # the bias is 0 already: a warm start begins as a cold one
        self.noise_embedding = NoiseEmbedding(config.latent_width)
        self.condition = LabelCondition(config.num_classes, tokens=config.label_tokens, width=config.latent_width)
        self.blocks = nn.ModuleList(RINBlock(config) for _ in range(config.blocks))
        self.out_norm = nn.LayerNorm(config.interface_width)
        self.out = nn.Linear(config.interface_width, values)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy_BCHW: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state: RecurrentState | None = None,
    ) -> DenoiserOutput:
        """Noisy images (B, C, H, W) at ᾱ (B,), and the pixels' positions → prediction (K, B, C, H, W).

        `recurrent_state` comes from a call with the same conditions. Raises ValueError unless both sides
        are multiples of the patch.
        """
        batch, _, height, width = noisy_BCHW.shape
        patch, rows = self.config.patch, (len(conditions), batch)
        if height % patch or width % patch:
            raise ValueError(f"size {height} x {width}: both sides must be multiples of the patch, {patch}")
        interface_RMD = self.interface(noisy_BCHW, positions, rows, recurrent_state)  # R = K·B rows from here on
        latent_RND = self.latent_tokens(alpha_bar_B, conditions, recurrent_state)
        for block in self.blocks:
            interface_RMD, latent_RND = block(interface_RMD, latent_RND)
        out_RMC = self.out(self.out_norm(interface_RMD))
        out_RChw = out_RMC.transpose(1, 2).unflatten(2, (height // patch, width // patch))
        prediction_KBCHW = F.pixel_shuffle(out_RChw, patch).unflatten(0, rows)
        estimate_KBCHW = None
        if self.config.pixel_conditioning:
            estimate_BKCHW = x0_from(  # ᾱ belongs to the first axis
                self.config.prediction_type, prediction_KBCHW.transpose(0, 1), noisy_BCHW[:, None], alpha_bar_B
            )
            estimate_KBCHW = estimate_BKCHW.transpose(0, 1).clamp(-ESTIMATE_LIMIT, ESTIMATE_LIMIT)
        latent_KBND = latent_RND[:, : self.config.num_latents].unflatten(0, rows)
        return DenoiserOutput(prediction_KBCHW, recurrent_state=RecurrentState(latent_KBND, estimate_KBCHW))

    def interface(
        self, noisy_BCHW: Tensor, positions: Positions, rows: tuple[int, int], recurrent_state: RecurrentState | None
    ) -> Tensor:
        """A token a patch, (K·B, M, D); embedded once for all conditions where they share the input."""
        (count, batch), (height, width) = rows, noisy_BCHW.shape[2:]
        input_RCHW = noisy_BCHW
        if self.config.normalise:
            deviation_B = noisy_BCHW.flatten(1).std(dim=1, correction=0).clamp(min=MIN_DEVIATION)
            input_RCHW = noisy_BCHW / deviation_B.view(-1, 1, 1, 1)
        if self.config.pixel_conditioning:
            input_RCHW = input_RCHW.repeat(count, 1, 1, 1)
            estimate_RCHW = (
                torch.zeros_like(input_RCHW) if recurrent_state is None else recurrent_state.estimate.flatten(0, 1)
            )
            input_RCHW = torch.cat((input_RCHW, estimate_RCHW), dim=1)
        patch_RMC = F.pixel_unshuffle(input_RCHW, self.config.patch).flatten(2).transpose(1, 2)
        position_MD = flat(self.patch_position(patch_centres(positions, (height, width), self.config.patch)), positions)
        token_KBMD = self.patch_in(patch_RMC).unflatten(0, (-1, batch)) + position_MD
        return token_KBMD.expand(count, -1, -1, -1).flatten(0, 1)

    def latent_tokens(
        self, alpha_bar_B: Tensor, conditions: Sequence[Tensor | None], recurrent_state: RecurrentState | None
    ) -> Tensor:
        """The latents at the start, the time and the condition, side by side: (K·B, N + 1 + label_tokens, D)."""
        count, batch = len(conditions), len(alpha_bar_B)
        before_RND = (
            torch.zeros_like(self.latents[None]) if recurrent_state is None else recurrent_state.latents.flatten(0, 1)
        )
        latent_RND = (self.latents + self.self_conditioning_norm(self.self_conditioning(before_RND))).expand(
            count * batch, -1, -1
        )
        time_R1D = self.noise_embedding(alpha_bar_B)[:, None].repeat(count, 1, 1)
        condition_RND = self.condition.rows(conditions, batch)
        return torch.cat((latent_RND, time_R1D, condition_RND), dim=1)
