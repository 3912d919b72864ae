"""What each stage minimises, and the law by which every step draws its frame and its latent size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import one_hot
from r2id.interpolation import resize
from r2id.position import Positions, grid_positions, jitter, points, read_colours, relative_scale, training_pitch
from r2id.resampler import R2IR
from r2id.schedule import Schedule, noisy, target

MARGIN_REACH = 2.0  # relative units from the centre that margin points cover: outputs of 1:4 to 4:1
WHOLE = 32  # pixels whose centre is compared with their mean, each step and picture
JITTERS = ("true", "published", "none")


@dataclass(frozen=True)
class Shape:
    """What one step draws: the frame as a canvas of pixels, and the latent's cells, both (height, width)."""

    canvas: tuple[int, int]
    cells: tuple[int, int]

    @property
    def aspect(self) -> float:
        return self.canvas[1] / self.canvas[0]


@dataclass(frozen=True)
class Law:
    """How a step draws its shape. Frames that are not square are the picture padded with the background colour."""

    cells: tuple[int, int] = (4, 16)  # of a square frame's side, drawn log-uniformly: small latents are the hard ones
    square: float = 0.5  # share of steps whose frame is square
    widest: float = 16 / 9  # other frames are log-uniform between its inverse and it
    skewed: float = 0.1  # share of steps whose cells are not (nearly) square

    def __post_init__(self):
        if not 1 <= self.cells[0] <= self.cells[1]:
            raise ValueError(f"cells {self.cells}: must be (fewest, most), 1 or more")
        if self.widest < 1:
            raise ValueError(f"widest {self.widest}: must be 1 or more, width / height")

    def draw(self, size: int, *, generator: torch.Generator, stride: int = 1) -> Shape:
        """A shape for pictures of size × size pixels, its cells multiples of the stride."""
        u = torch.rand(5, generator=generator).tolist()
        low, high = self.cells
        side = low * ((high + stride) / low) ** u[0]
        ratio = 1.0 if u[1] < self.square else self.widest ** (2 * u[2] - 1)
        pad = round(size * (max(ratio, 1 / ratio) - 1) / 2)  # on both sides, so the picture stays on whole pixels
        canvas = (size, size + 2 * pad) if ratio >= 1 else (size + 2 * pad, size)
        aspect = canvas[1] / canvas[0]
        skew = 1.5 ** (2 * u[4] - 1) if u[3] < self.skewed else 1.0
        w, h = side * math.sqrt(aspect * skew), side / math.sqrt(aspect * skew)
        shrink = min(1.0, (high + 0.99 * stride) / max(w, h))
        return Shape(canvas, tuple(max(1, int(v * shrink / stride)) * stride for v in (h, w)))


def pad_to(image_BCHW: Tensor, canvas: tuple[int, int], background_C: Tensor) -> Tensor:
    """Pictures centred on a canvas of the background colour."""
    if image_BCHW.shape[2:] == canvas:
        return image_BCHW
    padded = background_C.view(-1, 1, 1).repeat(len(image_BCHW), 1, *canvas)
    top, left = ((c - s) // 2 for c, s in zip(canvas, image_BCHW.shape[2:], strict=True))
    padded[:, :, top : top + image_BCHW.shape[2], left : left + image_BCHW.shape[3]] = image_BCHW
    return padded


class ResamplerLoss(nn.Module):
    """Reconstruction at random points of the plane, from random pixels of the frame."""

    def __init__(
        self,
        model: R2IR,
        *,
        background: tuple[float, ...],
        jitter: str,
        penalty: float,
        margin: float,
    ):
        """jitter: "true" moves a point and reads the colour there, "published" keeps the old colour, "none".
        penalty: weight of the mean square before tanh. margin: share of the points out drawn around the frame."""
        super().__init__()
        if jitter not in JITTERS:
            raise ValueError(f"jitter {jitter!r}: must be one of {', '.join(JITTERS)}")
        if margin and jitter == "published":
            raise ValueError(f"margin {margin}: must be 0 with the published jitter, which keeps a pixel's old colour")
        self.model, self.jitter, self.penalty, self.margin = model, jitter, penalty, margin
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)

    def forward(
        self,
        image_BCHW: Tensor,
        shape: Shape,
        pixels_in: int,
        pixels_out: int,
        generator: torch.Generator,
        *,
        consistency: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [-1, 1] → loss, parts of it. pixels_in and pixels_out: how many random pixels, 0 for all.

        consistency: weight of the mean square between a pixel's centre and the mean over the pixel, which is what
        outputs of different sizes disagree by.
        """
        canvas_BCHW = pad_to(image_BCHW, shape.canvas, self.background)
        cells = grid_positions(shape.cells, shape.aspect)
        as_used = self.jitter == "true"  # the encoder gets all pixels where they are
        colour_BNC, pixels = self.pixels(canvas_BCHW, shape, pixels_in, generator, exact=as_used)
        latent_BChw = self.model.encode(colour_BNC, pixels, cells)
        colour_BNC, pixels = self.pixels(canvas_BCHW, shape, pixels_out, generator, self.margin)
        if consistency:
            whole_BN2 = self.whole_pixels(len(canvas_BCHW), shape, generator).to(canvas_BCHW.device)
            whole_BNC = read_colours(canvas_BCHW, whole_BN2, self.background)
            colour_BNC = torch.cat((colour_BNC, whole_BNC), dim=1)
            absolute_BN2 = pixels.absolute.expand(len(canvas_BCHW), -1, -1)
            pixels = points(torch.cat((absolute_BN2, whole_BN2), dim=1), shape.aspect)
        decoded_BNC = self.model.decode(self.model.memory(torch.tanh(latent_BChw), cells), pixels)
        error = F.mse_loss(decoded_BNC, colour_BNC)
        loss, metrics = error + self.penalty * latent_BChw.square().mean(), {"mse": error.detach()}
        if consistency:
            disagreement = inconsistency(decoded_BNC[:, -whole_BN2.shape[1] :])
            loss, metrics["inconsistency"] = loss + consistency * disagreement, disagreement.detach()
        return loss, metrics

    def pixels(
        self,
        canvas_BCHW: Tensor,
        shape: Shape,
        count: int,
        generator: torch.Generator,
        margin: float = 0.0,
        *,
        exact: bool = False,
    ) -> tuple[Tensor, Positions]:
        """Colours (B, N, C) at `count` random pixels each (0: at all), jittered unless all are taken exactly; the last
        `margin` of them anywhere in the plane that an output from 1:4 to 4:1 can show."""
        batch, channels = canvas_BCHW.shape[:2]
        grid = grid_positions(shape.canvas, shape.aspect, sigma=self.model.config.footprint)
        absolute_BN2 = grid.absolute.to(canvas_BCHW.device).expand(batch, -1, -1)
        colour_BNC = canvas_BCHW.flatten(2).transpose(1, 2)
        if (exact or self.jitter == "none") and count == 0 and not margin:
            return colour_BNC, grid.to(canvas_BCHW.device)
        if 0 < count < absolute_BN2.shape[1]:
            order = torch.rand(absolute_BN2.shape[:2], generator=generator).topk(count, dim=1).indices
            order = order[..., None].to(canvas_BCHW.device)
            absolute_BN2 = absolute_BN2.gather(1, order.expand(-1, -1, 2))
            colour_BNC = colour_BNC.gather(1, order.expand(-1, -1, channels))
        if self.jitter != "none":
            pitch = (1 / shape.canvas[1], 1 / shape.canvas[0])
            absolute_BN2 = jitter(absolute_BN2, pitch, 0.5, generator)
        if margin:
            around_BN2 = self.around(batch, round(margin * absolute_BN2.shape[1]), shape.aspect, generator)
            kept = absolute_BN2.shape[1] - around_BN2.shape[1]
            absolute_BN2 = torch.cat((absolute_BN2[:, :kept], around_BN2.to(absolute_BN2.device)), dim=1)
        if self.jitter == "true" or margin:
            colour_BNC = read_colours(canvas_BCHW, absolute_BN2, self.background)
        return colour_BNC, points(absolute_BN2, shape.aspect)

    @staticmethod
    def whole_pixels(batch: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Points (B, 5·WHOLE, 2): of each of WHOLE random pixels its centre, then its four Gauss points, whose mean is
        the mean over the pixel of anything up to a cubic."""
        sides = torch.tensor(shape.canvas[::-1])
        corner_BW12 = (torch.rand(batch, WHOLE, 1, 2, generator=generator) * sides).floor()
        gauss = 0.5 / math.sqrt(3)
        offsets = torch.tensor([(0.0, 0.0), *((x, y) for x in (-gauss, gauss) for y in (-gauss, gauss))])
        return ((corner_BW12 + 0.5 + offsets) / sides - 0.5).flatten(1, 2)

    @staticmethod
    def around(batch: int, count: int, aspect: float, generator: torch.Generator) -> Tensor:
        """Points (B, N, 2) of the cross that wide and tall outputs show of the frame's plane."""
        absolute_BN2 = torch.rand(batch, count, 2, generator=generator) - 0.5
        reach = 2 * MARGIN_REACH / absolute_BN2.new_tensor(relative_scale(aspect))
        wide = torch.rand(batch, count, 1, generator=generator) < 0.5
        return absolute_BN2 * torch.where(torch.cat((wide, ~wide), dim=-1), reach, 1.0)


def inconsistency(decoded_BNC: Tensor) -> Tensor:
    """Colours at `whole_pixels` → mean square between centre and mean of a pixel."""
    centre, *gauss = decoded_BNC.unflatten(1, (-1, 5)).unbind(2)
    return F.mse_loss(sum(gauss) / len(gauss), centre)


def encode(resampler: R2IR, canvas_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
    """Pictures in [-1, 1] that fill the frame → latents (B, c, h, w), from all their pixels."""
    height, width = canvas_BCHW.shape[2:]
    pixels = grid_positions((height, width), width / height, sigma=resampler.config.footprint)
    colour_BNC = canvas_BCHW.flatten(2).transpose(1, 2)
    device = canvas_BCHW.device
    cells = grid_positions(cells, width / height).to(device)
    return torch.tanh(resampler.encode(colour_BNC, pixels.to(device), cells))


class DenoiserLoss(nn.Module):
    """Mean square of the objective at every scale the model predicts, on latents of whole pictures: encoded by a frozen
    resampler, or without one (pixel space) the pictures themselves at the latent's size."""

    def __init__(
        self,
        model: nn.Module,
        resampler: R2IR | None,
        *,
        schedule: Schedule,
        background: tuple[float, ...],
        latent_mean: tuple[float, ...],
        latent_std: tuple[float, ...],
        label_dropout: float,
        finest: int,
        warm_start: float = 0.0,
    ):
        """finest: cells on the short side of the training grid whose pitch the model's jitter is measured in.
        warm_start: share of the steps that begin from the carry of a pass without gradient."""
        super().__init__()
        self.model, self.schedule, self.label_dropout = model, schedule, label_dropout
        self.finest, self.warm_start = finest, warm_start
        self.resampler = resampler and resampler.requires_grad_(False).eval()
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)
        self.register_buffer("mean", torch.tensor(latent_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(latent_std).view(-1, 1, 1), persistent=False)

    def forward(
        self, image_BCHW: Tensor, label_B: Tensor, shape: Shape, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [-1, 1], labels (-1: none) → loss, parts of it. Times are stratified over the batch."""
        batch, device = len(image_BCHW), image_BCHW.device
        with torch.no_grad():
            canvas_BCHW = pad_to(image_BCHW, shape.canvas, self.background)
            if self.resampler is None:
                latent_BChw = resize(canvas_BCHW, shape.cells)
            else:
                latent_BChw = encode(self.resampler, canvas_BCHW, shape.cells)
            x0_BChw = (latent_BChw - self.mean) / self.std
        t_B = (torch.arange(batch) + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch
        alpha_bar_B = self.schedule.alpha_bar(t_B, cells=shape.cells)
        noise_BChw = torch.randn(x0_BChw.shape, generator=generator).to(device)
        dropped_B = (torch.rand(batch, generator=generator) < self.label_dropout).to(device)
        tokens_BND = self.model.condition(one_hot(label_B, self.model.condition.labels, dropped_B=dropped_B))
        positions = self.positions(shape, batch, generator).to(device)
        inputs = noisy(x0_BChw, noise_BChw, alpha_bar_B), alpha_bar_B.to(device), positions, (tokens_BND,)
        carry = None
        if self.warm_start and torch.rand((), generator=generator) < self.warm_start:
            with torch.no_grad():
                carry = self.model(*inputs).carry
        output = self.model(*inputs, carry)
        wanted_BChw = target(self.model.config.objective, x0_BChw, noise_BChw, alpha_bar_B)
        error = F.mse_loss(output.prediction[0], wanted_BChw)
        coarser = (coarse_error(prediction_KBChw[0], wanted_BChw) for prediction_KBChw in output.pyramid)
        return error + sum(coarser), {"mse": error.detach()}

    def positions(self, shape: Shape, batch: int, generator: torch.Generator) -> Positions:
        """The cells' centres, each moved by the model's jitter; as published, what is in a cell stays the same."""
        grid, sigma = grid_positions(shape.cells, shape.aspect), self.model.config.jitter
        if not sigma:
            return grid
        pitch = training_pitch(shape.aspect, self.finest)
        return points(jitter(grid.absolute.expand(batch, -1, -1), pitch, sigma, generator), shape.aspect)


def coarse_error(coarse_BChw: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean square at a scale coarser by k, times 1 / k². The target is summed over k × k and divided by k: so noise
    keeps unit variance (Liu et al. 2024)."""
    k = wanted_BCHW.shape[-1] // coarse_BChw.shape[-1]
    return F.mse_loss(coarse_BChw, F.avg_pool2d(wanted_BCHW, k) * k) / k**2
