"""The local path of the resampler with cross-attention: lapped local Fourier coefficients, and the sums of them that
points read.

A point reads its four neighbouring cells, with the basis of `local_basis.py` in each axis: b, which holds a bilinear
weight w. What cells and points exchange are sums of w·b times colours or coefficients: content times position, which an
additive query cannot express.

Letters beside those of `r2id`: M cells in reading order, I and J the basis in y and x, Q a cell's I·J coefficients
followed by its token, S cells and basis of one axis side by side, R rows of pixels of all latents, V some columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.local_basis import MIN_WEIGHT, LocalBasis, dense
from r2id.position import Positions

COLUMNS = 16  # cells of a row that pixels are decoded from at once
GAIN_WIDTH = 16

Lapped = tuple[Tensor, Tensor]  # what `LocalBasis.evaluate` returns: the first of two cells (…) and basis (…, 2, F)


@dataclass(frozen=True)
class AxisFeatures:
    """What depends on the columns of a grid of points alone, or on its rows, for any latents."""

    position_ND: Tensor
    lapped: Lapped | None  # None where nothing local is read
    dense_NMF: Tensor | None  # the same for all cells along the axis

    def __getitem__(self, part: slice) -> AxisFeatures:
        if self.lapped is None:
            return AxisFeatures(self.position_ND[part], None, None)
        first, basis = self.lapped
        return AxisFeatures(self.position_ND[part], (first[part], basis[part]), self.dense_NMF[part])


def evaluate_axis(basis: LocalBasis, pixels: Positions, axis: int, count: int) -> Lapped:
    """The columns (axis 0) or the rows (1) of a grid along `count` cells."""
    absolute, _ = pixels.axes()[axis]
    return basis.evaluate(absolute.flatten(), count)


def local_coefficients(colour_BNC: Tensor, pixels: Positions, cells: tuple[int, int], basis: LocalBasis) -> Tensor:
    """Lapped Fourier coefficients (B, M, F²·C) of scattered colours: Σ w·colour·b / Σ w per cell, w bilinear."""
    (x, _), (y, _) = pixels.axes()
    basis_y, basis_x = (basis.dense(v, n) for v, n in zip((y, x), cells, strict=True))
    if pixels.grid is None:  # (…, N, cells, F) each
        y_BMN, x_BNM = basis_y.flatten(-2).transpose(-1, -2), basis_x.flatten(-2)
        sums = torch.stack([(y_BMN * colour[:, None]) @ x_BNM for colour in colour_BNC.unbind(-1)], dim=-1)
        weights = basis_y[..., 0].transpose(-1, -2) @ basis_x[..., 0]
    else:  # a grid separates: (H, cells, F) and (W, cells, F)
        y_HM, x_WM = basis_y.flatten(0, 1).flatten(1), basis_x.flatten(0, 1).flatten(1)
        sums = torch.einsum("hm,bhwc,wn->bmnc", y_HM, colour_BNC.unflatten(1, pixels.grid), x_WM)
        weights = torch.outer(basis_y[..., 0].flatten(0, 1).sum(0), basis_x[..., 0].flatten(0, 1).sum(0))[None]
    sums = sums.unflatten(2, (cells[1], basis.size)).unflatten(1, (cells[0], basis.size))  # B h F w F C
    sums = sums.transpose(2, 3).flatten(3)
    return (sums / weights.clamp(min=MIN_WEIGHT)[..., None]).flatten(1, 2)


def decode_coefficients(local_BhwCIJ: Tensor, pixels: Positions, basis: LocalBasis) -> Tensor:
    """Σ over cells and basis of b·coefficient → colours (B, N, C): near the inverse of `local_coefficients`."""
    height, width = local_BhwCIJ.shape[1:3]
    if pixels.grid is None:
        (x, _), (y, _) = pixels.axes()
        across_BNwJ, down_BNhI = basis.dense(x, width), basis.dense(y, height)
        line_BNwJC = torch.einsum("bnhi,bhwcij->bnwjc", down_BNhI.expand(len(local_BhwCIJ), -1, -1, -1), local_BhwCIJ)
        return torch.einsum("bnwj,bnwjc->bnc", across_BNwJ.expand(len(local_BhwCIJ), -1, -1, -1), line_BNwJC)
    lines = (dense(*evaluate_axis(basis, pixels, axis, n), n) for axis, n in enumerate((width, height)))
    return decode_coefficients_grid(local_BhwCIJ, *lines)


def decode_coefficients_grid(local_BhwCIJ: Tensor, across_WwF: Tensor, down_HhF: Tensor) -> Tensor:
    """The same where rows and columns cross, (B, H·W, C)."""
    across_WS, down_HS = across_WwF.flatten(1), down_HhF.flatten(1)
    line_BHwCJ = torch.einsum("yr,brwcj->bywcj", down_HS, local_BhwCIJ.permute(0, 1, 4, 2, 3, 5).flatten(1, 2))
    return torch.einsum("xr,byrc->byxc", across_WS, line_BHwCJ.transpose(3, 4).flatten(2, 3)).flatten(1, 2)


def read_points(local_BhwQ: Tensor, pixels: Positions, basis: LocalBasis, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
    """linear(Σ over a point's four cells of w·b·coefficients) + Σ w·token → (B, N, D), for scattered points."""
    (x, _), (y, _) = pixels.axes()
    height, width = local_BhwQ.shape[1:3]
    (row, row_basis), (column, column_basis) = basis.evaluate(y, height), basis.evaluate(x, width)
    size = basis.size
    tokens = local_BhwQ.shape[-1] - size**2

    def factors(lapped: Tensor, outer: bool) -> Tensor:
        """The basis of one axis laid out over Q: F² products (row-major), then the bilinear weight for the token."""
        products = lapped.repeat_interleave(size, dim=-1) if outer else lapped.tile(size)
        return torch.cat((products, lapped[..., :1].expand(*lapped.shape[:-1], tokens)), dim=-1)

    row_factor, column_factor = factors(row_basis, True), factors(column_basis, False)
    row, column = two_cells(row, height), two_cells(column, width)
    cells_RQ = local_BhwQ.flatten(0, 2)  # those of all latents: an embedding look-up has the fastest gradient
    base_B1 = torch.arange(len(local_BhwQ), device=x.device)[:, None] * (height * width)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            cell_BNQ = F.embedding(base_B1 + row[a] * width + column[b], cells_RQ)
            total = total + cell_BNQ * (row_factor[..., a, :] * column_factor[..., b, :])
    return F.linear(total[..., : size**2], weight_DF, bias_D) + total[..., size**2 :]


def two_cells(first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of both cells; where there is one, it is also the second."""
    return first, (first + 1).clamp(max=count - 1)


def read_grid(
    local_BhwQ: Tensor, columns: AxisFeatures, rows: AxisFeatures, weight_DF: Tensor, bias_D: Tensor
) -> Tensor:
    """`read_points` plus the position features where rows and columns cross → (B, H·W, D). All of it separates: the
    linear map is applied once for each row and cell, and each pixel then costs one product over its row's cells."""
    (row, row_basis), (column, _) = rows.lapped, columns.lapped
    width, size = local_BhwQ.shape[2], row_basis.shape[-1]
    near, far = (row_basis[:, a, None] for a in (0, 1))  # (H, 1, F) each
    row = two_cells(row, local_BhwQ.shape[1])
    coefficient_BhwIJ = local_BhwQ[..., : size**2].unflatten(-1, (size, size))
    token_BhwD = local_BhwQ[..., size**2 :]
    line_BHwIJ = sum(coefficient_BhwIJ[:, row[a]] * b[..., None] for a, b in enumerate((near, far)))
    token_BHwD = sum(token_BhwD[:, row[a]] * b[..., :1] for a, b in enumerate((near, far)))
    token_BHwD = token_BHwD + (rows.position_ND + bias_D)[:, None]
    mapped_BHwJD = torch.einsum("bhwij,dij->bhwjd", line_BHwIJ, weight_DF.unflatten(1, (size, size)))
    # The first of the basis is the bilinear weight; those of one point sum to 1, so what all columns share goes there.
    first_BHw1D = mapped_BHwJD[..., :1, :] + token_BHwD[..., None, :]
    mapped_RwJD = torch.cat((first_BHw1D, mapped_BHwJD[..., 1:, :]), dim=-2).flatten(0, 1)
    parts = -(-width // COLUMNS)
    read_RWD = []
    along = (column, columns.dense_NMF, columns.position_ND)
    for first, dense_VwJ, x_VD in zip(*(v.chunk(parts) for v in along), strict=True):
        low, high = first[0].item(), first[-1].item() + 2  # a zoom or a tile reads few of many cells
        mapped_RSD = mapped_RwJD[:, low:high].flatten(1, 2)
        weight_VS, many = dense_VwJ[:, low:high].flatten(1), len(mapped_RSD)
        read_RWD.append(torch.baddbmm(x_VD.expand(many, -1, -1), weight_VS.expand(many, -1, -1), mapped_RSD))
    read_RWD = read_RWD[0] if parts == 1 else torch.cat(read_RWD, dim=1)  # which would copy a single one
    return read_RWD.unflatten(0, line_BHwIJ.shape[:2]).flatten(1, 2)


class LinearCodec(nn.Module):
    """Local coefficients → latent → local coefficients, linearly: the part of the task that is linear is learned here,
    and attention adds the rest. Gains weigh each harmonic by the size of a cell, since the harmonics of small cells are
    finer than the pixels."""

    def __init__(self, *, channels: int, latent_channels: int, basis: int):
        super().__init__()
        self.channels, self.basis = channels, basis
        self.latent = nn.Linear(basis**2 * channels, latent_channels)
        self.colour = nn.Linear(latent_channels, channels * basis**2)
        self.gain_in, self.gain_out = (
            nn.Sequential(nn.Linear(1, GAIN_WIDTH), nn.Tanh(), nn.Linear(GAIN_WIDTH, self.basis)) for _ in range(2)
        )
        for gain in (self.gain_in, self.gain_out):
            nn.init.zeros_(gain[-1].weight)
            nn.init.ones_(gain[-1].bias)

    def gains(self, network: nn.Module, cells: Positions) -> Tensor:
        """One factor for each pair of harmonics, (F, F) or (B, 1, F, F)."""
        x, y = (network(side.log2()[..., None]) for side in cell_sides(cells))
        return y[..., :, None] * x[..., None, :]

    def encode(self, local_BMF: Tensor, cells: Positions) -> Tensor:
        """Local coefficients (B, M, F²·C) → latent before tanh, (B, M, c)."""
        local_BMIJC = local_BMF.unflatten(-1, (self.basis, self.basis, self.channels))
        return self.latent((local_BMIJC * self.gains(self.gain_in, cells)[..., None]).flatten(2))

    def prepare(self, latent_BMc: Tensor, cells: Positions) -> Tensor:
        """Latents (B, M, c) → coefficients of the colours (B, h, w, C, F, F), for `decode_coefficients`."""
        colour_BMCIJ = self.colour(latent_BMc).unflatten(-1, (self.channels, self.basis, self.basis))
        return (colour_BMCIJ * self.gains(self.gain_out, cells)[..., None, :, :]).unflatten(1, cells.grid)


def cell_sides(cells: Positions) -> tuple[Tensor, Tensor]:
    """Width and height of a cell, in short sides of the frame, () or (B, 1) each."""
    reach = (p.abs().amax(dim=-2, keepdim=p.ndim > 2) for p in (cells.relative, cells.absolute))
    relative, absolute = reach
    scale = torch.where(absolute > 0, relative / absolute, 1.0)  # a single cell says nothing of the frame: a square
    scale = scale / scale.amin(dim=-1, keepdim=True)
    return scale[..., 0] / cells.grid[1], scale[..., 1] / cells.grid[0]
