"""The resampler with cross-attention, R2IR as its published system has it: pixels of any grid → a latent of any size →
any point of the plane.

Encoding, the cells' queries attend to the pixels; decoding, the pixels' queries attend to the cells. Beside attention
runs a *local path* (`cross_attention_basis.py`). A decoded value depends on the latent and on its own point alone, so
any tile equals that part of the whole. Related: LIIF's local ensemble (Chen et al. 2021), LTE (Lee & Jin 2022), lapped
transforms.

Letters beside those of `r2id`: M cells in reading order, I and J the basis in y and x, Q a cell's local coefficients
followed by its token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.cross_attention_basis import (
    AxisFeatures,
    LinearCodec,
    decode_coefficients,
    decode_coefficients_grid,
    evaluate_axis,
    local_coefficients,
    read_grid,
    read_points,
)
from r2id.layers import ATTENTIONS, Block, CentredLinear, Reader, centred, inverse_rms
from r2id.limits import (
    BLOCKS,
    HEADS,
    MAX_BLOCKS,
    MAX_SIDE,
    OCTAVES,
    RATIOS,
    WIDTHS,
    check_choice,
    check_heads,
    check_model,
    ranged,
)
from r2id.local_basis import LocalBasis, dense
from r2id.position import (
    PositionEmbedding,
    Positions,
    Window,
    flat,
    grid_positions,
    ipe_sigma_of,
    training_pitch,
    window_of,
)


@dataclass(frozen=True)
class CrossAttentionR2IRConfig:
    """Sizes of a `CrossAttentionR2IR`; those shipped are in `train/configs/mnist_cross_attention_resampler.toml`."""

    channels: int = ranged(1, 1, 64)  # of the image
    latent_channels: int = ranged(16, 1, 4096)
    width: int = ranged(96, *WIDTHS)  # of every token but those of decoded pixels
    pixel_width: int | None = ranged(None, *WIDTHS)  # of decoded pixels, which are many; None: as above
    heads: int = ranged(3, *HEADS)
    pixel_heads: int | None = ranged(None, *HEADS)  # of decoded pixels; None: as many
    encoder_blocks: int = ranged(2, *BLOCKS)  # cells read the pixels
    decoder_blocks: int = ranged(1, *BLOCKS)  # pixels read the cells
    # self-attention among cells, in the last so many encoder blocks and before decoding
    cell_blocks: int = ranged(1, 0, MAX_BLOCKS)
    cell_mlp_ratio: int = ranged(4, *RATIOS)  # of the cells, which are few
    pixel_mlp_ratio: int = ranged(2, *RATIOS)  # of the pixels, which are many
    attention: str = "softmax"
    local: bool = True  # lapped local Fourier coefficients beside attention
    harmonics: int = ranged(4, 1, 64)  # of the local basis
    base_frequency: float = ranged(0.25, 0.0, 16.0)  # of the first harmonic, in cycles per cell
    linear_codec: bool = True  # the local path also leads from colours to latent and back, linearly
    octaves: tuple[int, int] = ranged((-2, 5), *OCTAVES)  # of positions; half a wave of the last is a training pixel
    ipe_size: int = ranged(32, 1, MAX_SIDE)  # pixels on the frame's short side that ipe_sigma is measured in
    # sigma of what features average over where jitter is off, in training pixels; 0 is a point
    ipe_sigma: float = ranged(0.5, 0.0, 16.0)
    dropout: float = ranged(0.0, 0.0, 0.99)
    output_frame: bool = False  # as published: stretched to another shape, a pixel has the coordinates of that frame

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        check_heads(self.heads_of_pixel, pixel_width=self.of_pixel)
        check_choice(self.attention, "attention", ATTENTIONS)
        if self.cell_blocks > self.encoder_blocks:
            raise ValueError(f"cell_blocks {self.cell_blocks}: must be 0…{self.encoder_blocks}, the encoder_blocks")

    @property
    def of_pixel(self) -> int:
        """Width of a decoded pixel's token."""
        return self.width if self.pixel_width is None else self.pixel_width

    @property
    def heads_of_pixel(self) -> int:
        """Heads with which decoded pixels attend."""
        return self.heads if self.pixel_heads is None else self.pixel_heads


@dataclass(frozen=True)
class DecoderContext:
    """What decoding needs of a latent, computed once for every tile and output size."""

    attention: list[tuple[Tensor, Tensor]]  # keys and values of each decoder block
    local_BhwQ: Tensor | None  # each cell's Fourier coefficients, then its token for interpolation
    coefficient_BhwCIJ: Tensor | None  # each cell's Fourier coefficients of the colours
    aspect: float = 1.0  # of the frame


class CrossAttentionR2IR(nn.Module):
    """See `resamplers.Resampler`."""

    def __init__(self, config: CrossAttentionR2IRConfig):
        super().__init__()
        self.config = config
        width, narrow = config.width, config.of_pixel
        shared = {"attention": config.attention, "dropout": config.dropout}
        of_cells = {"heads": config.heads, "mlp_ratio": config.cell_mlp_ratio, **shared}
        of_pixels = {"heads": config.heads_of_pixel, "mlp_ratio": config.pixel_mlp_ratio, **shared}

        # encode: cells (position, local coefficients) attend to pixels (colour + position)
        self.pixel_in = nn.Linear(config.channels, width)
        self.pixel_position = PositionEmbedding(width, config.octaves)
        self.pixel_norm = nn.LayerNorm(width)
        self.cell_query_position = PositionEmbedding(width, config.octaves)
        if config.local:
            self.basis = LocalBasis(config.harmonics, config.base_frequency)
            basis = self.basis.size
            self.cell_local = nn.Linear(basis**2 * config.channels, width)
        self.encoder = nn.ModuleList(
            Block(
                width, cross_attention=True, self_attention=i >= config.encoder_blocks - config.cell_blocks, **of_cells
            )
            for i in range(config.encoder_blocks)
        )
        self.latent_norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, config.latent_channels)

        # decode: pixels (position, local coefficients) attend to cells (latent + position)
        self.cell_in = nn.Linear(config.latent_channels, width)
        self.cell_position = PositionEmbedding(width, config.octaves)
        self.cell_blocks = nn.ModuleList(
            Block(width, cross_attention=False, self_attention=True, **of_cells) for _ in range(config.cell_blocks)
        )
        self.cell_norm = nn.LayerNorm(width)
        self.pixel_query_position = PositionEmbedding(narrow, config.octaves)
        if config.local:
            self.local_out = nn.Linear(width, basis**2 + narrow)
            self.pixel_local = CentredLinear(basis**2, narrow)
        self.decoder = nn.ModuleList(
            Reader(narrow, context_width=width, **of_pixels) for _ in range(config.decoder_blocks)
        )
        self.image_norm = nn.LayerNorm(narrow)
        self.image_out = nn.Linear(narrow, config.channels)
        self.linear_codec = None
        if config.local and config.linear_codec:
            sizes = {"channels": config.channels, "latent_channels": config.latent_channels, "basis": basis}
            self.linear_codec = LinearCodec(**sizes)
            for last in (self.latent_out, self.image_out):  # what the rest adds to it begins small
                nn.init.normal_(last.weight, std=1e-2)
                nn.init.zeros_(last.bias)

    def encode(self, colour_BNC: Tensor, pixels: Positions, cells: Positions) -> Tensor:
        """Colours (B, N, C) in [-1, 1] at `pixels` → latent before tanh, (B, c, h, w); `cells` is a grid.

        `torch.tanh` of the result is the latent; training penalises what tanh would saturate.
        """
        pixel_BND = self.pixel_norm(self.pixel_in(colour_BNC) + flat(self.pixel_position(pixels), pixels))
        cell_BMD = flat(self.cell_query_position(cells), cells).expand(len(colour_BNC), -1, -1)
        if self.config.local:
            local_BMF = local_coefficients(colour_BNC, pixels, cells.grid, self.basis)
            cell_BMD = cell_BMD + self.cell_local(local_BMF)
        for block in self.encoder:
            cell_BMD = block(cell_BMD, block.cross_attention.keys_values(pixel_BND))
        latent_BMc = self.latent_out(self.latent_norm(cell_BMD))
        if self.linear_codec:
            latent_BMc = latent_BMc + self.linear_codec.encode(local_BMF, cells)
        return latent_BMc.transpose(1, 2).unflatten(2, cells.grid)

    def encode_image(self, image_BCHW: Tensor, size: tuple[int, int], aspect: float | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] that fill their frames → latents (B, c, h, w) in [-1, 1], size = (h, w), from
        all pixels. aspect: width / height of the frame; None: that of the image."""
        height, width = image_BCHW.shape[2:]
        aspect = width / height if aspect is None else aspect
        window, device = window_of((height, width), aspect=aspect, fit="stretch"), image_BCHW.device
        pixels = window.positions(range(height), range(width), ipe_sigma=self.ipe_sigma(aspect), device=device)
        cells = grid_positions(size, aspect).to(device)
        return torch.tanh(self.encode(image_BCHW.flatten(2).transpose(1, 2), pixels, cells))

    def ipe_sigma(self, aspect: float) -> tuple | None:
        """`Positions.ipe_sigma` of a frame, where jitter is off."""
        return ipe_sigma_of(aspect, training_pitch(aspect, self.config.ipe_size), self.config.ipe_sigma)

    def prepare(self, latent_BChw: Tensor, aspect: float) -> DecoderContext:
        """Latents (B, c, h, w) in [-1, 1] and the aspect of their frames → what decoding needs of them."""
        cells = grid_positions(tuple(latent_BChw.shape[2:]), aspect).to(latent_BChw.device)
        return replace(self.context(latent_BChw, cells), aspect=aspect)

    def grid_decoder(
        self, context: DecoderContext, window: Window, size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> Callable[[range, range], Tensor]:
        """The decoder of the pixels of a window, size = (H, W): a function of ranges of rows and of columns → colours
        (B, C, rows, columns). dtype: unused, all is computed in that of the weights."""
        device, ipe_sigma = self.image_out.weight.device, self.ipe_sigma(context.aspect)
        axes = (range(1), range(size[1])), (range(size[0]), range(1))
        along = [window.positions(*part, ipe_sigma=ipe_sigma, device=device) for part in axes]
        columns, rows = (self.axis_features(context, pixels, axis) for axis, pixels in enumerate(along))

        def decode(down: range, across: range) -> Tensor:
            part = columns[across.start : across.stop], rows[down.start : down.stop]
            return self.decode_grid(context, *part).transpose(1, 2).unflatten(2, (len(down), len(across)))

        return decode

    def decode_image(
        self, latent_BChw: Tensor, *, size: tuple[int, int], aspect: float = 1.0, fit: str = "stretch"
    ) -> Tensor:
        """Latents (B, c, h, w) in [-1, 1] → images (B, C, H, W), about [-1, 1], a point a pixel, with gradients.

        aspect: of the frame. fit: which window of its plane, as in `position.window_of`; size = (H, W).
        """
        window = window_of(size, aspect=aspect, fit=fit)
        decode = self.grid_decoder(self.prepare(latent_BChw, aspect), window, size)
        return decode(range(size[0]), range(size[1]))

    def reach(self, cells: tuple[int, int]) -> tuple[float, float]:
        """How far from the frame's centre (x, y) the decoder speaks of the plane, in absolute units: everywhere."""
        return math.inf, math.inf

    def context(self, latent_BChw: Tensor, cells: Positions) -> DecoderContext:
        """`prepare`, of cells that may lie in frames of several aspects."""
        latent_BMc = latent_BChw.flatten(2).transpose(1, 2)
        cell_BMD = self.cell_in(latent_BMc) + flat(self.cell_position(cells), cells)
        for block in self.cell_blocks:
            cell_BMD = block(cell_BMD)
        cell_BMD = self.cell_norm(cell_BMD)
        local_BhwQ = None
        if self.config.local:
            local_BMQ, size = self.local_out(cell_BMD), self.basis.size**2
            local_BMQ = torch.cat((local_BMQ[..., :size], centred(local_BMQ[..., size:])), dim=-1)
            local_BhwQ = local_BMQ.unflatten(1, cells.grid)
        coefficient_BhwCIJ = self.linear_codec.prepare(latent_BMc, cells) if self.linear_codec else None
        return DecoderContext([block.keys_values(cell_BMD) for block in self.decoder], local_BhwQ, coefficient_BhwCIJ)

    def axis_features(self, context: DecoderContext, pixels: Positions, axis: int) -> AxisFeatures:
        """The columns (axis 0) or the rows (1) of a grid, for `decode_grid`."""
        position_ND = centred(self.pixel_query_position.term(pixels, axis).flatten(0, 1))
        if not (self.config.local and pixels.framed):
            return AxisFeatures(position_ND, None, None)
        count = context.local_BhwQ.shape[2 - axis]
        lapped = evaluate_axis(self.basis, pixels, axis, count)
        return AxisFeatures(position_ND, lapped, dense(*lapped, count))

    def decode(self, context: DecoderContext, pixels: Positions) -> Tensor:
        """Colours (B, N, C), about [-1, 1], at `pixels`."""
        if pixels.grid:
            return self.decode_grid(context, *(self.axis_features(context, pixels, axis) for axis in (0, 1)))
        pixel_BND = centred(self.pixel_query_position(pixels)).expand(len(context.attention[0][0]), -1, -1)
        if not (self.config.local and pixels.framed):
            return self._decode(context, pixel_BND)
        local_BND = read_points(context.local_BhwQ, pixels, self.basis, *self.pixel_local.parts())
        colour_BNC = self._decode(context, pixel_BND + local_BND)
        return (
            colour_BNC + decode_coefficients(context.coefficient_BhwCIJ, pixels, self.basis)
            if self.linear_codec
            else colour_BNC
        )

    def decode_grid(self, context: DecoderContext, columns: AxisFeatures, rows: AxisFeatures) -> Tensor:
        """The same where rows and columns cross, in reading order."""
        if columns.lapped is None:
            pixel_ND = (columns.position_ND + rows.position_ND[:, None]).flatten(0, 1)
            return self._decode(context, pixel_ND.expand(len(context.attention[0][0]), -1, -1))
        colour_BNC = self._decode(context, read_grid(context.local_BhwQ, columns, rows, *self.pixel_local.parts()))
        return (
            colour_BNC + decode_coefficients_grid(context.coefficient_BhwCIJ, columns.dense_NMF, rows.dense_NMF)
            if self.linear_codec
            else colour_BNC
        )

    def _decode(self, context: DecoderContext, pixel_BND: Tensor) -> Tensor:
        for block, attended in zip(self.decoder, context.attention, strict=True):
            pixel_BND = block(pixel_BND, attended)
        norm, out = self.image_norm, self.image_out  # folded: few colours are scaled, not many tokens
        constant_C = out.bias + out.weight @ norm.bias
        return torch.addcmul(constant_C, F.linear(pixel_BND, out.weight * norm.weight), inverse_rms(pixel_BND))
