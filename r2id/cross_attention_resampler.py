"""R2IR, the resolution-invariant image resampler: pixels of any grid → a latent of any size → any point of the plane.

Encoding, cells ask and pixels answer; decoding, pixels ask and cells answer. Both ways are cross-attention over
coordinates, and beside it runs a *local path* of lapped local Fourier coefficients: content times position, which an
additive query cannot express. Related: LIIF's local ensemble (Chen et al. 2021), LTE (Lee & Jin 2022), lapped
transforms. A decoded value depends on the latent and on its own point only, so any tile equals that part of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from r2id.position import (
    PositionEmbedding,
    Positions,
    Window,
    flat,
    fourier,
    grid_positions,
    ipe_sigma_of,
    training_pitch,
    window_of,
)

COLUMNS = 16  # cells of a row that pixels are decoded from at once
GAIN_WIDTH = 16
MIN_WEIGHT = 1e-3  # a cell that (almost) no pixel reached gets coefficients near zero, not noise

Lapped = tuple[Tensor, Tensor]  # what `LocalBasis.evaluate` gives: index (…, 2) and basis (…, 2, F)


@dataclass(frozen=True)
class CrossAttentionR2IRConfig:
    """Sizes of an R2IR. The shipped values are in `train/configs/mnist_resampler.toml`."""

    channels: int = ranged(1, 1, 64)  # of the image
    latent_channels: int = ranged(16, 1, 4096)
    width: int = ranged(96, *WIDTHS)  # of every token but those of the pixels that are decoded
    pixel_width: int | None = ranged(None, *WIDTHS)  # of these, there are many; None: like the others
    heads: int = ranged(3, *HEADS)
    pixel_heads: int | None = ranged(None, *HEADS)  # of the pixels that are decoded; None: as many
    encoder_blocks: int = ranged(2, *BLOCKS)  # cells read the pixels
    decoder_blocks: int = ranged(1, *BLOCKS)  # pixels read the cells
    cell_blocks: int = ranged(
        1, 0, MAX_BLOCKS
    )  # self-attention among cells, in the last so many encoder blocks and before decoding
    cell_mlp_ratio: int = ranged(4, *RATIOS)  # feed-forward width of a cell, there are few
    pixel_mlp_ratio: int = ranged(2, *RATIOS)  # feed-forward width of a pixel, there are many
    attention: str = "softmax"
    local: bool = True  # lapped local Fourier coefficients beside attention
    harmonics: int = ranged(4, 1, 64)  # of the local basis
    base_frequency: float = ranged(0.25, 0.0, 16.0)  # of the first of them, full turns a cell
    linear_codec: bool = True  # the local path also leads straight from colours to latent and back, linearly
    octaves: tuple[int, int] = ranged(
        (-2, 5), *OCTAVES
    )  # of position features; half a wave of the last is a training pixel
    ipe_size: int = ranged(32, 1, MAX_SIDE)  # pixels on the frame's short side that ipe_sigma is measured in
    ipe_sigma: float = ranged(
        0.5, 0.0, 16.0
    )  # sigma of what features average over where jitter is off, in training pixels; 0 is a point
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
        """Width of the token of a pixel that is decoded."""
        return self.width if self.pixel_width is None else self.pixel_width

    @property
    def heads_of_pixel(self) -> int:
        return self.heads if self.pixel_heads is None else self.pixel_heads


@dataclass(frozen=True)
class DecoderContext:
    """What decoding needs of a latent, made once for every tile and output size."""

    attention: list[tuple[Tensor, Tensor]]  # keys and values of each decoder block
    local_BhwZ: Tensor | None  # each cell's Fourier coefficients, then its token for interpolation
    coefficient_BhwCij: Tensor | None  # each cell's Fourier coefficients of the colours
    aspect: float = 1.0  # of the frame


@dataclass(frozen=True)
class AxisFeatures:
    """The columns of a grid of points, or its rows: what each has by itself, whatever the latents and its length."""

    position_ND: Tensor
    lapped: Lapped | None  # None where nothing local is read
    dense_NKF: Tensor | None  # the same for all K cells

    def __getitem__(self, part: slice) -> AxisFeatures:
        if self.lapped is None:
            return AxisFeatures(self.position_ND[part], None, None)
        index, basis = self.lapped
        return AxisFeatures(self.position_ND[part], (index[part], basis[part]), self.dense_NKF[part])


class CrossAttentionR2IR(nn.Module):
    def __init__(self, config: CrossAttentionR2IRConfig):
        super().__init__()
        self.config = config
        width, narrow = config.width, config.of_pixel
        shared = {"attention": config.attention, "dropout": config.dropout}
        of_cells = {"heads": config.heads, "mlp_ratio": config.cell_mlp_ratio, **shared}
        of_pixels = {"heads": config.heads_of_pixel, "mlp_ratio": config.pixel_mlp_ratio, **shared}

        # encode: pixels (colour ⊕ position) are read by cells (position, local coefficients)
        self.pixel_in = nn.Linear(config.channels, width)
        self.pixel_position = PositionEmbedding(width, config.octaves)
        self.pixel_norm = nn.LayerNorm(width)
        self.cell_query_position = PositionEmbedding(width, config.octaves)
        if config.local:
            self.basis = LocalBasis(config)
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

        # decode: cells (latent ⊕ position) are read by pixels (position, local coefficients)
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
        self.linear_codec = LinearCodec(config) if config.local and config.linear_codec else None
        if self.linear_codec:  # what the rest adds to it begins small
            for last in (self.latent_out, self.image_out):
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
        local_BhwZ = None
        if self.config.local:
            local_BMZ, size = self.local_out(cell_BMD), self.basis.size**2
            local_BMZ = torch.cat((local_BMZ[..., :size], centred(local_BMZ[..., size:])), dim=-1)
            local_BhwZ = local_BMZ.unflatten(1, cells.grid)
        coefficient_BhwCij = self.linear_codec.prepare(latent_BMc, cells) if self.linear_codec else None
        return DecoderContext([block.keys_values(cell_BMD) for block in self.decoder], local_BhwZ, coefficient_BhwCij)

    def axis_features(self, context: DecoderContext, pixels: Positions, axis: int) -> AxisFeatures:
        """The columns (axis 0) or the rows (1) of a grid, for `decode_grid`."""
        position_ND = centred(self.pixel_query_position.term(pixels, axis).flatten(0, 1))
        if not (self.config.local and pixels.framed):
            return AxisFeatures(position_ND, None, None)
        count = context.local_BhwZ.shape[2 - axis]
        lapped = self.basis.evaluate_axis(pixels, axis, count)
        return AxisFeatures(position_ND, lapped, dense(*lapped, count))

    def decode(self, context: DecoderContext, pixels: Positions) -> Tensor:
        """Colours (B, N, C), about [-1, 1], at `pixels`."""
        if pixels.grid:
            return self.decode_grid(context, *(self.axis_features(context, pixels, axis) for axis in (0, 1)))
        pixel_BND = centred(self.pixel_query_position(pixels)).expand(len(context.attention[0][0]), -1, -1)
        if not (self.config.local and pixels.framed):
            return self._decode(context, pixel_BND)
        local_BND = read_points(context.local_BhwZ, pixels, self.basis, *self.pixel_local.parts())
        colour_BNC = self._decode(context, pixel_BND + local_BND)
        return (
            colour_BNC + decode_coefficients(context.coefficient_BhwCij, pixels, self.basis)
            if self.linear_codec
            else colour_BNC
        )

    def decode_grid(self, context: DecoderContext, columns: AxisFeatures, rows: AxisFeatures) -> Tensor:
        """The same where rows and columns cross, in reading order."""
        if columns.lapped is None:
            pixel_ND = (columns.position_ND + rows.position_ND[:, None]).flatten(0, 1)
            return self._decode(context, pixel_ND.expand(len(context.attention[0][0]), -1, -1))
        colour_BNC = self._decode(context, read_grid(context.local_BhwZ, columns, rows, *self.pixel_local.parts()))
        return (
            colour_BNC + decode_coefficients_grid(context.coefficient_BhwCij, columns.dense_NKF, rows.dense_NKF)
            if self.linear_codec
            else colour_BNC
        )

    def _decode(self, context: DecoderContext, pixel_BND: Tensor) -> Tensor:
        for block, attended in zip(self.decoder, context.attention, strict=True):
            pixel_BND = block(pixel_BND, attended)
        norm, out = self.image_norm, self.image_out  # merged, too; what is normed are the few colours
        constant_C = out.bias + out.weight @ norm.bias
        return torch.addcmul(constant_C, F.linear(pixel_BND, out.weight * norm.weight), inverse_rms(pixel_BND))


class LinearCodec(nn.Module):
    """A linear codec beside all else: local coefficients → latent → local coefficients. What is linear in the task is
    learned here, soon and exactly; attention adds the rest. How much each harmonic counts depends on how large a cell
    is, since those of small cells are finer than the pixels."""

    def __init__(self, config: CrossAttentionR2IRConfig):
        super().__init__()
        self.channels, self.basis = config.channels, 2 * config.harmonics + 1
        self.latent = nn.Linear(self.basis**2 * config.channels, config.latent_channels)
        self.colour = nn.Linear(config.latent_channels, config.channels * self.basis**2)
        self.gain_in, self.gain_out = (
            nn.Sequential(nn.Linear(1, GAIN_WIDTH), nn.Tanh(), nn.Linear(GAIN_WIDTH, self.basis)) for _ in range(2)
        )
        for gain in (self.gain_in, self.gain_out):
            nn.init.zeros_(gain[-1].weight)
            nn.init.ones_(gain[-1].bias)

    def gains(self, network: nn.Module, cells: Positions) -> Tensor:
        """Of each pair of harmonics, (F, F) or (B, 1, F, F)."""
        x, y = (network(side.log2()[..., None]) for side in cell_sides(cells))
        return y[..., :, None] * x[..., None, :]

    def encode(self, local_BMF: Tensor, cells: Positions) -> Tensor:
        """What `local_coefficients` gave → latent before tanh, (B, M, c)."""
        local_BMijC = local_BMF.unflatten(-1, (self.basis, self.basis, self.channels))
        return self.latent((local_BMijC * self.gains(self.gain_in, cells)[..., None]).flatten(2))

    def prepare(self, latent_BMc: Tensor, cells: Positions) -> Tensor:
        """Coefficients of the colours, (B, h, w, C, F, F), for `decode_coefficients`."""
        colour_BMCij = self.colour(latent_BMc).unflatten(-1, (self.channels, self.basis, self.basis))
        return (colour_BMCij * self.gains(self.gain_out, cells)[..., None, :, :]).unflatten(1, cells.grid)


def cell_sides(cells: Positions) -> tuple[Tensor, Tensor]:
    """Width and height of a cell, in short sides of the frame, () or (B, 1) each."""
    reach = (p.abs().amax(dim=-2, keepdim=p.ndim > 2) for p in (cells.relative, cells.absolute))
    relative, absolute = reach
    scale = torch.where(absolute > 0, relative / absolute, 1.0)  # a single cell says nothing of the frame: a square
    scale = scale / scale.amin(dim=-1, keepdim=True)
    return scale[..., 0] / cells.grid[1], scale[..., 1] / cells.grid[0]


class LocalBasis(nn.Module):
    """The lapped Fourier basis of one axis."""

    def __init__(self, config: CrossAttentionR2IRConfig):
        super().__init__()
        self.size = 2 * config.harmonics + 1
        frequencies = 2 * math.pi * config.base_frequency * torch.arange(1, config.harmonics + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def evaluate(self, values: Tensor, count: int) -> Lapped:
        """Absolute coordinates (…) along `count` cells → index (…, 2) of the two nearest cells and their basis
        (…, 2, F): the bilinear weight times {1, sin and cos of frequency·offset}, offset in cells.

        Beyond the frame the nearest point of its edge is read: unclamped, the sinusoids would repeat there.
        """
        cell = values.clamp(-0.5, 0.5) * count + (count - 1) / 2
        inner = cell.clamp(0, count - 1)
        first = inner.floor()
        index = torch.stack((first, (first + 1).clamp(max=count - 1)), dim=-1)
        weight = torch.stack((1 - (inner - first), inner - first), dim=-1)
        waves = fourier(cell[..., None] - index, self.frequencies)
        return index.long(), weight[..., None] * torch.cat((torch.ones_like(waves[..., :1]), waves), dim=-1)

    def evaluate_axis(self, pixels: Positions, axis: int, count: int) -> Lapped:
        """`evaluate` of the columns (axis 0) or the rows (1) of a grid."""
        absolute, _ = pixels.axes()[axis]
        return self.evaluate(absolute.flatten(), count)

    def dense(self, values: Tensor, count: int) -> Tensor:
        """`evaluate` as (…, count, F), zero for all but the two nearest cells."""
        return dense(*self.evaluate(values, count), count)


def dense(index: Tensor, basis: Tensor, count: int) -> Tensor:
    """What `evaluate` gives, as (…, count, F)."""
    zeros = basis.new_zeros(*index.shape[:-1], count, basis.shape[-1])
    return zeros.scatter_add(-2, index[..., None].expand_as(basis), basis)


def local_coefficients(colour_BNC: Tensor, pixels: Positions, cells: tuple[int, int], basis: LocalBasis) -> Tensor:
    """Lapped Fourier coefficients (B, M, F²·C) of scattered colours: Σ w·colour·b / Σ w per cell, w bilinear."""
    (x, _), (y, _) = pixels.axes()
    spread_y, spread_x = (basis.dense(v, n) for v, n in zip((y, x), cells, strict=True))
    if pixels.grid is None:  # (…, N, cells, F) each
        y_BMN, x_BNM = spread_y.flatten(-2).transpose(-1, -2), spread_x.flatten(-2)
        sums = torch.stack([(y_BMN * colour[:, None]) @ x_BNM for colour in colour_BNC.unbind(-1)], dim=-1)
        weights = spread_y[..., 0].transpose(-1, -2) @ spread_x[..., 0]
    else:  # a grid separates: (H, cells, F) and (W, cells, F)
        y_HM, x_WM = spread_y.flatten(0, 1).flatten(1), spread_x.flatten(0, 1).flatten(1)
        sums = torch.einsum("hm,bhwc,wn->bmnc", y_HM, colour_BNC.unflatten(1, pixels.grid), x_WM)
        weights = torch.outer(spread_y[..., 0].flatten(0, 1).sum(0), spread_x[..., 0].flatten(0, 1).sum(0))[None]
    sums = sums.unflatten(2, (cells[1], basis.size)).unflatten(1, (cells[0], basis.size))  # B h F w F C
    sums = sums.transpose(2, 3).flatten(3)
    return (sums / weights.clamp(min=MIN_WEIGHT)[..., None]).flatten(1, 2)


def decode_coefficients(local_BhwCij: Tensor, pixels: Positions, basis: LocalBasis) -> Tensor:
    """Σ over cells and basis of b·coefficient, colours (B, N, C): the inverse of `local_coefficients`, near enough."""
    height, width = local_BhwCij.shape[1:3]
    if pixels.grid is None:
        (x, _), (y, _) = pixels.axes()
        across_BNwj, down_BNhi = basis.dense(x, width), basis.dense(y, height)
        line_BNwjC = torch.einsum("bnhi,bhwcij->bnwjc", down_BNhi.expand(len(local_BhwCij), -1, -1, -1), local_BhwCij)
        return torch.einsum("bnwj,bnwjc->bnc", across_BNwj.expand(len(local_BhwCij), -1, -1, -1), line_BNwjC)
    lines = (dense(*basis.evaluate_axis(pixels, axis, n), n) for axis, n in enumerate((width, height)))
    return decode_coefficients_grid(local_BhwCij, *lines)


def decode_coefficients_grid(local_BhwCij: Tensor, across_WwF: Tensor, down_HhF: Tensor) -> Tensor:
    """The same where rows and columns cross."""
    across_WX, down_HX = across_WwF.flatten(1), down_HhF.flatten(1)
    line_BHwCj = torch.einsum("yr,brwcj->bywcj", down_HX, local_BhwCij.permute(0, 1, 4, 2, 3, 5).flatten(1, 2))
    return torch.einsum("xr,byrc->byxc", across_WX, line_BHwCj.transpose(3, 4).flatten(2, 3)).flatten(1, 2)


def read_points(local_BhwZ: Tensor, pixels: Positions, basis: LocalBasis, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
    """linear(Σ over a point's four cells of w·b·coefficients (F²)) + Σ w·token, (B, N, D), for scattered points."""
    (x, _), (y, _) = pixels.axes()
    height, width = local_BhwZ.shape[1:3]
    (row, row_basis), (column, column_basis) = basis.evaluate(y, height), basis.evaluate(x, width)
    size = basis.size
    tokens = local_BhwZ.shape[-1] - size**2

    def factors(lapped: Tensor, outer: bool) -> Tensor:
        """The basis of one axis laid out over Z: F² products (row-major), then the bilinear weight for the token."""
        spread = lapped.repeat_interleave(size, dim=-1) if outer else lapped.tile(size)
        return torch.cat((spread, lapped[..., :1].expand(*lapped.shape[:-1], tokens)), dim=-1)

    row_factor, column_factor = factors(row_basis, True), factors(column_basis, False)
    cells_XZ = local_BhwZ.flatten(0, 2)  # rows of all latents: an embedding look-up has the fastest gradient
    base_B1 = torch.arange(len(local_BhwZ), device=x.device)[:, None] * (height * width)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            cell_BNZ = F.embedding(base_B1 + row[..., a] * width + column[..., b], cells_XZ)
            total = total + cell_BNZ * (row_factor[..., a, :] * column_factor[..., b, :])
    return F.linear(total[..., : size**2], weight_DF, bias_D) + total[..., size**2 :]


def read_grid(
    local_BhwZ: Tensor, columns: AxisFeatures, rows: AxisFeatures, weight_DF: Tensor, bias_D: Tensor
) -> Tensor:
    """`read_points` + the positions where rows and columns cross, (B, H·W, D). All of it separates: the linear map
    meets the coefficients once a row and cell, and what is left for a pixel is one product over its row's cells."""
    (row, row_basis), (column, _) = rows.lapped, columns.lapped
    width, size = local_BhwZ.shape[2], row_basis.shape[-1]
    near, far = (row_basis[:, a, None] for a in (0, 1))  # (H, 1, F) each
    coefficient_Bhwij = local_BhwZ[..., : size**2].unflatten(-1, (size, size))
    token_BhwD = local_BhwZ[..., size**2 :]
    line_BHwij = sum(coefficient_Bhwij[:, row[:, a]] * b[..., None] for a, b in enumerate((near, far)))
    token_BHwD = sum(token_BhwD[:, row[:, a]] * b[..., :1] for a, b in enumerate((near, far)))
    token_BHwD = token_BHwD + (rows.position_ND + bias_D)[:, None]
    mapped_BHwjD = torch.einsum("bhwij,dij->bhwjd", line_BHwij, weight_DF.unflatten(1, (size, size)))
    # The first of the basis is the bilinear weight; those of one point sum to 1, so what all columns share goes there.
    first_BHw1D = mapped_BHwjD[..., :1, :] + token_BHwD[..., None, :]
    mapped_ZwjD = torch.cat((first_BHw1D, mapped_BHwjD[..., 1:, :]), dim=-2).flatten(0, 1)
    parts = -(-width // COLUMNS)
    read_ZWD = []
    along = (column, columns.dense_NKF, columns.position_ND)
    for index, dense_VwF, x_VD in zip(*(v.chunk(parts) for v in along), strict=True):
        low, high = index[0, 0].item(), index[-1, 1].item() + 1  # a zoom or a tile reads few of many cells
        mapped_ZKD = mapped_ZwjD[:, low:high].flatten(1, 2)
        weight_VK, many = dense_VwF[:, low:high].flatten(1), len(mapped_ZKD)
        read_ZWD.append(torch.baddbmm(x_VD.expand(many, -1, -1), weight_VK.expand(many, -1, -1), mapped_ZKD))
    read_ZWD = read_ZWD[0] if parts == 1 else torch.cat(read_ZWD, dim=1)  # which would copy a single one
    return read_ZWD.unflatten(0, line_BHwij.shape[:2]).flatten(1, 2)
