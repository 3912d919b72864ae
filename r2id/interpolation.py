"""Antialiased bicubic interpolation of a window, and tiles. Every output pixel depends on its own place alone.

The kernel is Keys' cubic (1981) with a = -½, widened to the output's pitch where that is coarser than the cells, and
normalised over the cells that there are: what `F.interpolate(mode="bicubic", antialias=True)` computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from r2id.position import Window

COLUMNS = 512  # pixels of a tile's width, at most: the cost of a column is shared by more rows
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
CHUNK = 256  # pixels whose weights are computed at once in float64, to bound memory


def resize(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Images in [-1, 1] at another size, antialiased, in [-1, 1]."""
    if image_BCHW.shape[2:] == size:
        return image_BCHW
    return F.interpolate(image_BCHW, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel at distances in cells; 0 from 2 on."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def axis_weights(cells: int, pixels: range, origin: float, pitch: float) -> tuple[Tensor, Tensor]:
    """One axis of a window → weights (N, cells) of the cells in each pixel, and coverage (N,): the share of the pixel
    that is inside the frame. Beyond the frame the weights are those at its edge. Float64 inside, float32 out."""
    edge_N = (torch.arange(pixels.start, pixels.stop, dtype=torch.float64) + origin) * pitch + 0.5
    coverage_N = ((edge_N + pitch).clamp(0, 1) - edge_N.clamp(0, 1)) / pitch
    centre_N1 = (edge_N[:, None] + pitch / 2).clamp(0, 1) * cells
    cells_M, widening = torch.arange(cells, dtype=torch.float64) + 0.5, max(1.0, pitch * cells)
    weights_NM = []
    for part_N1 in centre_N1.split(CHUNK):
        weight_NM = cubic((cells_M - part_N1) / widening)
        weights_NM.append((weight_NM / weight_NM.sum(dim=1, keepdim=True)).float())
    return torch.cat(weights_NM), coverage_N.float()


def tile_boxes(size: tuple[int, int], pixels: int) -> Iterator[Box]:
    """Tiles of at most so many pixels, about as large as one another, in reading order."""
    height, width = size
    columns = even(width, min(max(1, pixels), COLUMNS))
    rows = even(height, max(1, pixels // columns))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def even(length: int, most: int) -> int:
    """A length cut into as few parts as parts of `most` would be → the length of each but the last."""
    return math.ceil(length / math.ceil(length / most))


def share_done(box: Box, size: tuple[int, int]) -> float:
    """The share of an output that is done once this box of `tile_boxes` is."""
    (_, top, right, bottom), (height, width) = box, size
    return (top * width + right * (bottom - top)) / (height * width)


@torch.no_grad()
def interpolate_tiles(
    image_BChw: Tensor, window: Window, *, width: int, background_C: Tensor, boxes: Iterator[tuple]
) -> Iterator[tuple[tuple[int, int, int, int], Tensor]]:
    """Images in [-1, 1] that fill the frame → boxes (left, top, right, bottom) of the window, whose pixel columns
    are 0…width, in [-1, 1]: with the background colour beyond the frame, mixed where a pixel lies across its edge."""
    h, w = image_BChw.shape[2:]
    columns_Ww, inside_W = axis_weights(w, range(width), window.origin[0], window.pitch[0])
    for left, top, right, bottom in boxes:
        rows_Hh, inside_H = axis_weights(h, range(top, bottom), window.origin[1], window.pitch[1])
        tile = (rows_Hh @ image_BChw @ columns_Ww[left:right].T).clamp(-1, 1)
        inside_HW = inside_H[:, None] * inside_W[left:right]
        yield (left, top, right, bottom), background_C.view(-1, 1, 1).lerp(tile, inside_HW)
