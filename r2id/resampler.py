"""R2IR, the resolution-invariant image resampler: pixels of any grid → a latent of any size → any point of the plane.

Encoding, cells ask and pixels answer; decoding, pixels ask and cells answer. Both ways are cross-attention over
coordinates, and beside it runs a *local path* of lapped local Fourier coefficients: content times position, which an
additive query cannot express. Related: LIIF's local ensemble (Chen et al. 2021), LTE (Lee & Jin 2022), lapped
transforms. A decoded value depends on the latent and on its own point only, so any tile equals that part of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.layers import ATTENTIONS, Block
from r2id.limits import check_heads, check_model
from r2id.position import PositionEmbedding, Positions, flat

HARMONICS = 4  # of the local basis, in steps of a quarter turn a cell
BASIS = 2 * HARMONICS + 1
COLUMNS = 16  # cells of a row that pixels are decoded from at once
MIN_WEIGHT = 1e-3  # a cell that (almost) no pixel reached gets coefficients near zero, not noise


@dataclass(frozen=True)
class R2IRConfig:
    """Sizes of an R2IR. The shipped values are in `train/configs/mnist_resampler.toml`."""

    channels: int = 1  # of the image
    latent_channels: int = 16
    width: int = 96  # of every token, pixels and cells
    heads: int = 3
    encoder_blocks: int = 2  # cells read the pixels
    decoder_blocks: int = 1  # pixels read the cells
    cell_blocks: int = 1  # self-attention among cells, in the last so many encoder blocks and before decoding
    cell_expansion: int = 4  # feed-forward width of a cell, there are few
    pixel_expansion: int = 2  # feed-forward width of a pixel, there are many
    attention: str = "softmax"
    local: bool = True  # lapped local Fourier coefficients beside attention
    octaves: tuple[int, int] = (-2, 5)  # of position features; half a wave of the last is a training pixel
    footprint: float = 0.5  # sigma of what features average over where jitter is off, in training pixels; 0 is a point
    dropout: float = 0.0

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention {self.attention!r}: must be one of {', '.join(ATTENTIONS)}")
        if self.cell_blocks > self.encoder_blocks:
            raise ValueError(f"cell_blocks {self.cell_blocks}: must be 0…{self.encoder_blocks}, the encoder_blocks")


@dataclass(frozen=True)
class Memory:
    """What decoding needs of a latent, made once for every tile and output size."""

    attention: list[tuple[Tensor, Tensor]]  # one memory per decoder block
    local_BhwF: Tensor | None  # each cell's Fourier coefficients, then its token for interpolation


class R2IR(nn.Module):
    def __init__(self, config: R2IRConfig):
        super().__init__()
        self.config = config
        width = config.width
        shared = {"heads": config.heads, "attention": config.attention, "dropout": config.dropout}

        # encode: pixels (colour ⊕ position) are read by cells (position, local coefficients)
        self.pixel_in = nn.Linear(config.channels, width)
        self.pixel_position = PositionEmbedding(width, config.octaves)
        self.pixel_norm = nn.LayerNorm(width)
        self.cell_query_position = PositionEmbedding(width, config.octaves)
        if config.local:
            self.cell_local = nn.Linear(BASIS**2 * config.channels, width)
        self.encoder = nn.ModuleList(
            Block(
                width,
                expansion=config.cell_expansion,
                crossing=True,
                selfing=i >= config.encoder_blocks - config.cell_blocks,
                **shared,
            )
            for i in range(config.encoder_blocks)
        )
        self.latent_norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, config.latent_channels)

        # decode: cells (latent ⊕ position) are read by pixels (position, local coefficients)
        self.cell_in = nn.Linear(config.latent_channels, width)
        self.cell_position = PositionEmbedding(width, config.octaves)
        self.cell_blocks = nn.ModuleList(
            Block(width, expansion=config.cell_expansion, crossing=False, selfing=True, **shared)
            for _ in range(config.cell_blocks)
        )
        self.cell_norm = nn.LayerNorm(width)
        self.pixel_query_position = PositionEmbedding(width, config.octaves)
        if config.local:
            self.local_out = nn.Linear(width, BASIS**2 + width)
            self.pixel_local = nn.Linear(BASIS**2, width)
        self.decoder = nn.ModuleList(
            Block(width, expansion=config.pixel_expansion, crossing=True, selfing=False, **shared)
            for _ in range(config.decoder_blocks)
        )
        self.image_norm = nn.LayerNorm(width)
        self.image_out = nn.Linear(width, config.channels)

    def encode(self, colour_BNC: Tensor, pixels: Positions, cells: Positions) -> Tensor:
        """Colours (B, N, C) in [-1, 1] at `pixels` → latent before tanh, (B, c, h, w); `cells` is a grid.

        `torch.tanh` of the result is the latent; training penalises what tanh would saturate.
        """
        pixel_BND = self.pixel_norm(self.pixel_in(colour_BNC) + flat(self.pixel_position(pixels), pixels))
        cell_BMD = flat(self.cell_query_position(cells), cells).expand(len(colour_BNC), -1, -1)
        if self.config.local:
            cell_BMD = cell_BMD + self.cell_local(local_coefficients(colour_BNC, pixels, cells.grid))
        for block in self.encoder:
            cell_BMD = block(cell_BMD, block.cross.memory(pixel_BND))
        latent_BMc = self.latent_out(self.latent_norm(cell_BMD))
        return latent_BMc.transpose(1, 2).unflatten(2, cells.grid)

    def memory(self, latent_BChw: Tensor, cells: Positions) -> Memory:
        """What every decoded point of these latents, (B, c, h, w) in [-1, 1], has in common."""
        cell_BMD = self.cell_in(latent_BChw.flatten(2).transpose(1, 2)) + flat(self.cell_position(cells), cells)
        for block in self.cell_blocks:
            cell_BMD = block(cell_BMD)
        cell_BMD = self.cell_norm(cell_BMD)
        local_BhwF = self.local_out(cell_BMD).unflatten(1, cells.grid) if self.config.local else None
        return Memory([block.cross.memory(cell_BMD) for block in self.decoder], local_BhwF)

    def decode(self, memory: Memory, pixels: Positions) -> Tensor:
        """Colours (B, N, C), about [-1, 1], at `pixels`."""
        x_D, y_D = self.pixel_query_position.terms(pixels)
        if not (self.config.local and pixels.framed):
            pixel_BND = flat(x_D + y_D, pixels).expand(len(memory.attention[0][0]), -1, -1)
        elif pixels.grid:
            pixel_BND = read_grid(memory.local_BhwF, pixels, self.pixel_local, x_D[0], y_D[:, 0])
        else:
            pixel_BND = x_D + y_D + read_points(memory.local_BhwF, pixels, self.pixel_local)
        for block, attended in zip(self.decoder, memory.attention, strict=True):
            pixel_BND = block(pixel_BND, attended)
        return self.image_out(self.image_norm(pixel_BND))


def lap(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Absolute coordinates (…) along one axis of `count` cells → index (…, 2) of the two nearest cells and their
    lapped basis (…, 2, 9): the bilinear weight times {1, sin and cos of (π/2)·k·offset}, offset in cells.

    Beyond the frame the nearest point of its edge is read: unclamped, the sinusoids would repeat there.
    """
    cell = values.clamp(-0.5, 0.5) * count + (count - 1) / 2
    inner = cell.clamp(0, count - 1)
    first = inner.floor()
    index = torch.stack((first, (first + 1).clamp(max=count - 1)), dim=-1)
    weight = torch.stack((1 - (inner - first), inner - first), dim=-1)
    angle = (cell[..., None] - index)[..., None] * (math.pi / 2 * torch.arange(1, HARMONICS + 1, device=values.device))
    basis = torch.cat((torch.ones_like(angle[..., :1]), angle.sin(), angle.cos()), dim=-1)
    return index.long(), weight[..., None] * basis


def local_coefficients(colour_BNC: Tensor, pixels: Positions, cells: tuple[int, int]) -> Tensor:
    """Lapped Fourier coefficients (B, M, 81·C) of scattered colours: Σ w·colour·b / Σ w per cell, w bilinear."""
    (x, _), (y, _) = pixels.axes()
    spread_y, spread_x = (dense_lap(v, n) for v, n in zip((y, x), cells, strict=True))
    if pixels.grid is None:  # (…, N, cells, 9) each
        y_BMN, x_BNM = spread_y.flatten(-2).transpose(-1, -2), spread_x.flatten(-2)
        sums = torch.stack([(y_BMN * colour[:, None]) @ x_BNM for colour in colour_BNC.unbind(-1)], dim=-1)
        weights = spread_y[..., 0].transpose(-1, -2) @ spread_x[..., 0]
    else:  # a grid separates: (H, cells, 9) and (W, cells, 9)
        y_HM, x_WM = spread_y.flatten(0, 1).flatten(1), spread_x.flatten(0, 1).flatten(1)
        sums = torch.einsum("hm,bhwc,wn->bmnc", y_HM, colour_BNC.unflatten(1, pixels.grid), x_WM)
        weights = torch.outer(spread_y[..., 0].flatten(0, 1).sum(0), spread_x[..., 0].flatten(0, 1).sum(0))[None]
    sums = sums.unflatten(2, (cells[1], BASIS)).unflatten(1, (cells[0], BASIS))  # B h 9 w 9 C
    sums = sums.transpose(2, 3).flatten(3)
    return (sums / weights.clamp(min=MIN_WEIGHT)[..., None]).flatten(1, 2)


def dense_lap(values: Tensor, count: int) -> Tensor:
    """`lap` as (…, count, 9), zero for all but the two nearest cells."""
    return dense(*lap(values, count), count)


def dense(index: Tensor, basis: Tensor, count: int) -> Tensor:
    """What `lap` gives, as (…, count, 9)."""
    zeros = basis.new_zeros(*index.shape[:-1], count, BASIS)
    return zeros.scatter_add(-2, index[..., None].expand_as(basis), basis)


def read_points(local_BhwF: Tensor, pixels: Positions, linear: nn.Linear) -> Tensor:
    """linear(Σ over a point's four cells of w·b·coefficients (81)) + Σ w·token, (B, N, D), for scattered points."""
    (x, _), (y, _) = pixels.axes()
    height, width = local_BhwF.shape[1:3]
    (row, row_basis), (column, column_basis) = lap(y, height), lap(x, width)
    tokens = local_BhwF.shape[-1] - BASIS**2

    def factors(basis: Tensor, outer: bool) -> Tensor:
        """The basis of one axis laid out over F: 81 products (row-major), then the bilinear weight for the token."""
        spread = basis.repeat_interleave(BASIS, dim=-1) if outer else basis.tile(BASIS)
        return torch.cat((spread, basis[..., :1].expand(*basis.shape[:-1], tokens)), dim=-1)

    row_factor, column_factor = factors(row_basis, True), factors(column_basis, False)
    cells_XF = local_BhwF.flatten(0, 2)  # rows of all latents: an embedding look-up has the fastest gradient
    base_B1 = torch.arange(len(local_BhwF), device=x.device)[:, None] * (height * width)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            cell_BNF = F.embedding(base_B1 + row[..., a] * width + column[..., b], cells_XF)
            total = total + cell_BNF * (row_factor[..., a, :] * column_factor[..., b, :])
    return linear(total[..., : BASIS**2]) + total[..., BASIS**2 :]


def read_grid(local_BhwF: Tensor, pixels: Positions, linear: nn.Linear, x_WD: Tensor, y_HD: Tensor) -> Tensor:
    """`read_points` + x + y at the points of a grid, (B, H·W, D), where all of it separates: the linear map meets the
    coefficients once a row and cell, and what is left for a pixel is one product over the cells of its row."""
    (x, _), (y, _) = pixels.axes()
    height, width = local_BhwF.shape[1:3]
    (row, row_basis), (column, column_basis) = lap(y[:, 0], height), lap(x[0], width)
    basis = [row_basis[:, a, None] for a in (0, 1)]  # (H, 1, 9) each
    coefficient_Bhwij, token_BhwD = (
        local_BhwF[..., : BASIS**2].unflatten(-1, (BASIS, BASIS)),
        local_BhwF[..., BASIS**2 :],
    )
    line_BHwij = sum(coefficient_Bhwij[:, row[:, a]] * basis[a][..., None] for a in (0, 1))
    token_BHwD = sum(token_BhwD[:, row[:, a]] * basis[a][..., :1] for a in (0, 1)) + (y_HD + linear.bias)[:, None]
    mapped_BHwjD = torch.einsum("bhwij,dij->bhwjd", line_BHwij, linear.weight.unflatten(1, (BASIS, BASIS)))
    # The first of the basis is the bilinear weight; those of one point sum to 1, so what all columns share goes there.
    first_BHw1D = mapped_BHwjD[..., :1, :] + token_BHwD[..., None, :]
    mapped_ZwjD = torch.cat((first_BHw1D, mapped_BHwjD[..., 1:, :]), dim=-2).flatten(0, 1)
    parts = -(-width // COLUMNS)
    read_ZWD = []
    for index, lapped, x_VD in zip(*(v.chunk(parts) for v in (column, column_basis, x_WD)), strict=True):
        low, high = (0, width) if parts == 1 else (index[0, 0].item(), index[-1, 1].item() + 1)
        mapped_ZKD = mapped_ZwjD[:, low:high].flatten(1, 2)
        weight_VK, many = dense(index - low, lapped, high - low).flatten(1), len(mapped_ZKD)
        read_ZWD.append(torch.baddbmm(x_VD.expand(many, -1, -1), weight_VK.expand(many, -1, -1), mapped_ZKD))
    return torch.cat(read_ZWD, dim=1).unflatten(0, line_BHwij.shape[:2]).flatten(1, 2)
