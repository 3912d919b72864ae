"""Positions of pixels and cells: two coordinate systems, windows of the frame's plane, jitter and Fourier features.

The *frame* is the rectangle that a latent describes; its aspect is width / height. A point has *absolute* x and y,
from -½ to ½ across the frame, and *relative* ones, the same point divided by the frame's long side, so that x and y
have one unit of length. Points beyond the frame have larger values. Pixel i of N is its centre, (i + ½)/N - ½.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.limits import check_choice, short_repr

FITS = ("contain", "cover", "stretch")
FULL = (0.0, 0.0, 1.0, 1.0)
MIN_REGION = 2.0**-20


@dataclass(frozen=True)
class Positions:
    """Points (N, 2) for all rows of a batch, or (B, N, 2), x before y, in float32.

    grid: (rows, columns) where the points form a grid, in reading order. A batch of grids, one a frame, is for cells.
    ipe_sigma: the standard deviation over which features average (integrated positional encoding), ((x, y) absolute,
    (x, y) relative); None for exact or jittered points. framed: False for the published system's coordinates of an
    output of another shape, which have no one place in the frame, so nothing local can be read there.
    """

    absolute: Tensor
    relative: Tensor
    grid: tuple[int, int] | None = None
    ipe_sigma: tuple[tuple[float, float], tuple[float, float]] | None = None
    framed: bool = True

    def axes(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """((x absolute, x relative), (y absolute, y relative)): (…, 1, W) and (…, H, 1) on a grid, else (…, N) each."""
        both = (self.absolute, self.relative)
        if self.grid is None:
            return tuple(p[..., 0] for p in both), tuple(p[..., 1] for p in both)
        both = tuple(p.unflatten(-2, self.grid) for p in both)
        return tuple(p[..., :1, :, 0] for p in both), tuple(p[..., :1, 1] for p in both)

    def to(self, device: torch.device | str) -> Positions:
        """The same on another device."""
        return replace(self, absolute=self.absolute.to(device), relative=self.relative.to(device))

    def repeat(self, count: int) -> Positions:
        """The rows of a batch, repeated; what all rows share stays as it is."""
        if self.absolute.ndim == 2:
            return self
        return replace(self, absolute=self.absolute.repeat(count, 1, 1), relative=self.relative.repeat(count, 1, 1))


@dataclass(frozen=True)
class Window:
    """A pixel grid laid on the frame's plane: pixel (i, j) is at ((j, i) + ½ + origin) · pitch, in absolute units."""

    origin: tuple[float, float]  # x, y, in pixels: the left and top edge, from the frame's centre
    pitch: tuple[float, float]  # x, y, absolute units a pixel
    relative_scale: tuple[float, float]  # relative = absolute · this
    framed: bool = True

    def supersample(self, factors: tuple[int, int]) -> Window:
        """The same window with every pixel cut into (across, down) smaller ones."""
        origin = tuple(o * k for o, k in zip(self.origin, factors, strict=True))
        pitch = tuple(p / k for p, k in zip(self.pitch, factors, strict=True))
        return Window(origin, pitch, self.relative_scale, self.framed)

    def coordinates(self, axis: int, pixels: range) -> Tensor:
        """Absolute x (axis 0) or y (1) of the centres of these columns or rows, float64 (N,) on the CPU."""
        pixel_N = torch.arange(pixels.start, pixels.stop, dtype=torch.float64)
        return (pixel_N + 0.5 + self.origin[axis]) * self.pitch[axis]

    def positions(
        self, rows: range, columns: range, *, ipe_sigma: tuple | None = None, device: torch.device | str = "cpu"
    ) -> Positions:
        """Positions of the pixels rows × columns, computed on the device: in float64 from integer indices, so that a
        tile equals its part of the whole exactly."""
        exact = "cpu" if torch.device(device).type == "mps" else device  # MPS has no float64
        x_W, y_H = (
            (torch.arange(r.start, r.stop, dtype=torch.float64, device=exact) + 0.5 + o) * p
            for r, o, p in zip((columns, rows), self.origin, self.pitch, strict=True)
        )
        y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
        absolute = torch.stack((x_HW, y_HW), dim=-1).flatten(0, 1)
        relative = absolute * absolute.new_tensor(self.relative_scale)
        positions = Positions(absolute.float(), relative.float(), (len(rows), len(columns)), ipe_sigma, self.framed)
        return positions.to(device)


def relative_scale(aspect: float) -> tuple[float, float]:
    """Frame width and height divided by its long side."""
    return min(1.0, aspect), min(1.0, 1.0 / aspect)


def training_pitch(aspect: float, training_size: int) -> tuple[float, float]:
    """Absolute size (x, y) of a training pixel: the frame's short side has `training_size` of them."""
    return 1.0 / (training_size * max(1.0, aspect)), 1.0 / (training_size * max(1.0, 1.0 / aspect))


def ipe_sigma_of(aspect: float, pitch: tuple[float, float], sigma: float) -> tuple | None:
    """sigma in pixels of an absolute pitch (x, y) → `Positions.ipe_sigma`; None for sigma 0."""
    if sigma == 0:
        return None
    absolute = tuple(p * sigma for p in pitch)
    return absolute, tuple(a * s for a, s in zip(absolute, relative_scale(aspect), strict=True))


def window_of(
    size: tuple[int, int],
    *,
    aspect: float,
    fit: str,
    region: tuple[float, float, float, float] = FULL,
    output_frame: bool = False,
) -> Window:
    """The window that an output of `size` (height, width) shows of a frame of this aspect.

    `fit`: "contain" shows the whole frame and the plane beyond it, "cover" the largest centred part inside the frame,
    "stretch" pulls the frame to the output's shape. `region` = (left, top, right, bottom), fractions of the whole
    image, which is then larger than `size` by 1 / (right - left) and 1 / (bottom - top). `output_frame`: "stretch" as
    the published system has it, where a pixel has both coordinate systems of the *output's* frame. Raises ValueError
    for an unknown fit or a region outside [0, 1] or narrower than 2⁻²⁰.
    """
    check_choice(fit, "fit", FITS)
    left, top, right, bottom = check_region(region)
    width, height = size[1] / (right - left), size[0] / (bottom - top)
    frame_width, frame_height = width, height
    if fit in ("contain", "cover"):
        frame_height = (min if fit == "contain" else max)(height, width / aspect)
        frame_width = frame_height * aspect
    output_frame = output_frame and fit == "stretch"
    scale = relative_scale(width / height if output_frame else aspect)
    origin = (left * width - width / 2, top * height - height / 2)
    return Window(origin, (1.0 / frame_width, 1.0 / frame_height), scale, not output_frame)


def check_region(region) -> tuple[float, float, float, float]:
    """`region` as floats. ValueError unless 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1, each 2⁻²⁰ wide or more."""
    try:
        left, top, right, bottom = sides = tuple(region)
        if any(isinstance(v, (str, bytes, bool)) for v in sides):
            raise TypeError
        left, top, right, bottom = map(float, sides)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"region {short_repr(region)}: give four numbers, left, top, right, bottom") from None
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1  # False for NaN too
    if not inside or min(right - left, bottom - top) < MIN_REGION:
        raise ValueError(
            f"region {(left, top, right, bottom)}: needs 0 <= left < right <= 1, top and bottom alike, 2^-20 or wider"
        )
    return left, top, right, bottom


def points_per_pixel(window: Window, *, aspect: float, decoder_size: int) -> tuple[int, int]:
    """How many points (across, down) a pixel is the mean of, so that nothing aliases.

    Along each axis, ceil(min(decoder_size, 2·max(R, 256)) / R) for R pixels on the frame's short side: a square image
    costs at most max(512², 4·R²) points, and from R = decoder_size on a pixel is the point at its centre.
    """
    short_sides = max(1.0, aspect), max(1.0, 1 / aspect)  # of the frame, in its short side
    densities = (1 / (pitch * side) for pitch, side in zip(window.pitch, short_sides, strict=True))
    return tuple(max(1, math.ceil(min(decoder_size, 2 * max(r, 256)) / r - 1e-9)) for r in densities)


def grid_positions(size: tuple[int, int], aspect: float, *, sigma: float = 0.0) -> Positions:
    """The centres of size = (rows, columns) pixels or cells that fill the frame; sigma: as in `ipe_sigma_of`."""
    rows, columns = size
    window = window_of(size, aspect=aspect, fit="stretch")
    return window.positions(range(rows), range(columns), ipe_sigma=ipe_sigma_of(aspect, window.pitch, sigma))


def points(absolute: Tensor, aspect: float) -> Positions:
    """Positions of any absolute points (…, N, 2)."""
    return Positions(absolute, absolute * absolute.new_tensor(relative_scale(aspect)))


def batched(parts: Sequence[Positions], counts: Sequence[int]) -> Positions:
    """Positions in several frames, equally many in each and without ipe_sigma → those of a batch with `counts` rows in
    each frame. Positions in a single frame stay as they are, shared by all rows."""
    if len(parts) == 1:
        return parts[0]
    absolute, relative = (
        torch.cat([part_N2.expand(count, -1, -1) for part_N2, count in zip(of_parts, counts, strict=True)])
        for of_parts in zip(*((part.absolute, part.relative) for part in parts), strict=True)
    )
    return Positions(absolute, relative, parts[0].grid)


def cell_positions(size: tuple[int, int], aspect: float | Tensor) -> Positions:
    """The centres of size = (h, w) cells in a frame of this aspect, or (B,) in one frame a row."""
    if not isinstance(aspect, Tensor):
        return grid_positions(size, aspect)
    return batched([grid_positions(size, a) for a in aspect.tolist()], [1] * len(aspect))


def cell_sides(size: tuple[int, int], aspect: float | Tensor) -> Tensor:
    """Width and height of a cell in short sides of the frame, (2,), or (B, 1, 2) for aspects (B,)."""
    aspect = torch.as_tensor(aspect, dtype=torch.float32)[..., None]
    sides = torch.cat((aspect.clamp(min=1) / size[1], (1 / aspect).clamp(min=1) / size[0]), dim=-1)
    return sides[:, None] if sides.ndim > 1 else sides


def patch_centres(positions: Positions, size: tuple[int, int], patch: int) -> Positions:
    """Positions of size = (height, width) pixels → of their patches. The mean of a patch's jitter is `patch` times
    narrower than that of its pixels, and so is its ipe_sigma."""
    rows, columns = (side // patch for side in size)
    absolute, relative = (
        system.unflatten(-2, (rows, patch, columns, patch)).mean(dim=(-4, -2)).flatten(-3, -2)
        for system in (positions.absolute, positions.relative)
    )
    grid = (rows, columns) if positions.grid else None
    ipe_sigma = positions.ipe_sigma and tuple(tuple(s / patch for s in system) for system in positions.ipe_sigma)
    return Positions(absolute, relative, grid, ipe_sigma, positions.framed)


def jitter(absolute: Tensor, pitch: tuple[float, float], sigma: float, generator: torch.Generator | None) -> Tensor:
    """Absolute points, each moved by a normal offset of sigma pixels of this pitch; relative ones follow from them."""
    offsets = torch.randn(absolute.shape, generator=generator, device=absolute.device)
    return absolute + offsets * absolute.new_tensor(pitch) * sigma


def read_colours(image_BCHW: Tensor, absolute_BN2: Tensor, background_C: Tensor) -> Tensor:
    """Colours (B, N, C) of the images at absolute points: bicubic, edges replicated, `background` beyond the frame."""
    colours_BCN = F.grid_sample(
        image_BCHW, absolute_BN2[:, :, None] * 2, mode="bicubic", padding_mode="border", align_corners=False
    ).squeeze(-1)
    inside_BN = (absolute_BN2.abs() <= 0.5).all(dim=-1)
    return torch.where(inside_BN[:, :, None], colours_BCN.transpose(1, 2), background_C)


def fourier(values: Tensor, frequencies: Tensor, ipe_sigma: float = 0.0) -> Tensor:
    """(…) → (…, 2K): sin and cos of value · frequency, times exp(-ω²σ²/2), their mean over a Gaussian footprint of
    standard deviation `ipe_sigma` (integrated positional encoding, Barron et al. 2021)."""
    angles = values[..., None] * frequencies
    features = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return features * torch.exp(-0.5 * (frequencies * ipe_sigma) ** 2).repeat(2) if ipe_sigma else features


def flat(tokens: Tensor, positions: Positions) -> Tensor:
    """Tokens of a grid, (…, H, W, D), in reading order as (…, N, D); other tokens as they are."""
    return tokens.flatten(-3, -2) if positions.grid else tokens


class PositionEmbedding(nn.Module):
    """Positions → (…, N, D), or (…, H, W, D) on a grid: a linear map of sin/cos features of both systems.

    Octaves low … high mean frequencies π·2^k. The map is a sum of a term in x and a term in y, so on a grid it is
    computed once a column and once a row.
    """

    def __init__(self, width: int, octaves: tuple[int, int]):
        super().__init__()
        low, high = octaves
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(low, high + 1), persistent=False)
        features = 4 * (high - low + 1)
        self.x = nn.Linear(features, width)
        self.y = nn.Linear(features, width, bias=False)

    def forward(self, positions: Positions) -> Tensor:
        return self.term(positions, 0) + self.term(positions, 1)

    def term(self, positions: Positions, axis: int) -> Tensor:
        """What x (axis 0) or y (1) contributes: (…, 1, W, D) or (…, H, 1, D) on a grid, else (…, N, D)."""
        systems = zip(positions.axes()[axis], positions.ipe_sigma or ((0.0, 0.0), (0.0, 0.0)), strict=True)
        features = [fourier(values, self.frequencies, ipe_sigma[axis]) for values, ipe_sigma in systems]
        return (self.x, self.y)[axis](torch.cat(features, dim=-1))
