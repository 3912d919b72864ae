"""What the resampler with cross-attention minimises: the squared error at random points, from random pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.cross_attention_resampler import CrossAttentionR2IR
from r2id.position import (
    Positions,
    batched,
    grid_positions,
    jitter,
    points,
    read_colours,
    relative_scale,
)
from train.data.buckets import Bucket, NativeAspect, Shape, aspect_of, mean_of

MARGIN_REACH = 2.0  # relative units from the centre that margin points cover: outputs of 1:4 to 4:1
WHOLE = 32  # pixels whose centre is compared with their mean, each step and image
JITTERS = ("true", "published", "none")


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after another; one alone keeps its memory layout."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def stacked(read: list[tuple[Tensor, Positions]]) -> tuple[Tensor, Positions]:
    """Colours (B, N, C) and positions of every size → of all."""
    colours, positions = zip(*read, strict=True)
    return joined(colours), batched(positions, [len(colour_BNC) for colour_BNC in colours])


class CrossAttentionLoss(nn.Module):
    """Reconstruction at random points of the plane, from random pixels of the frame."""

    def __init__(
        self,
        model: CrossAttentionR2IR,
        *,
        background: tuple[float, ...],
        jitter: str,
        pre_tanh_l2: float,
        outside_fraction: float,
    ):
        """jitter: "true" moves a point and reads the colour there, "published" keeps the old colour, "none".
        pre_tanh_l2: weight of the mean square before tanh. outside_fraction: share of the points out drawn around the
        frame."""
        super().__init__()
        if jitter not in JITTERS:
            raise ValueError(f"jitter {jitter!r}: must be one of {', '.join(JITTERS)}")
        if outside_fraction and jitter == "published":
            raise ValueError(
                f"outside_fraction {outside_fraction}: must be 0 with the published jitter, which keeps old colours"
            )
        self.model, self.jitter, self.pre_tanh_l2, self.outside_fraction = model, jitter, pre_tanh_l2, outside_fraction
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)

    def forward(
        self,
        images: Tensor | list[Tensor],
        shape: Shape | NativeAspect,
        pixels_in: int,
        pixels_out: int,
        generator: torch.Generator,
        *,
        consistency: float = 0.0,
        decoder_only: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images in [-1, 1] → loss, parts of it. pixels_in and pixels_out: how many random pixels, 0 for all.

        consistency: weight of the mean square between a pixel's centre and the mean over the pixel, which is what
        outputs of different sizes disagree by. decoder_only: the encoder learns nothing.
        """
        buckets = shape.buckets(images, self.background)
        if pixels_out == 0:  # all of an image are another number for every size
            buckets = [alone for bucket in buckets for alone in bucket.sizes()]
        how = pixels_in, pixels_out, generator, consistency, decoder_only
        return mean_of(buckets, (self.of(bucket, *how) for bucket in buckets))

    def of(
        self,
        bucket: Bucket,
        pixels_in: int,
        pixels_out: int,
        generator: torch.Generator,
        consistency: float,
        decoder_only: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        most = max(math.prod(canvas_BCHW.shape[2:]) for canvas_BCHW in bucket.canvases)
        as_used = self.jitter == "true"  # the encoder gets all pixels where they are

        def encode(part: Bucket) -> Tensor:
            count = min(pixels_in, most)
            read = [self.pixels(canvas_BCHW, count, generator, exact=as_used) for canvas_BCHW in part.canvases]
            return self.model.encode(*stacked(read), part.positions)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
            latent_BChw = joined([encode(part) for part in ([bucket] if pixels_in else bucket.sizes())])
        count, whole = min(pixels_out, most), consistency > 0
        read = [self.targets(canvas_BCHW, count, generator, whole=whole) for canvas_BCHW in bucket.canvases]
        colour_BNC, pixels = stacked(read)
        decoded_BNC = self.model.decode(self.model.context(torch.tanh(latent_BChw), bucket.positions), pixels)
        error = F.mse_loss(decoded_BNC, colour_BNC)
        loss, metrics = error + self.pre_tanh_l2 * latent_BChw.square().mean(), {"mse": error.detach()}
        if consistency:
            disagreement = inconsistency(decoded_BNC[:, -5 * WHOLE :])
            loss, metrics["inconsistency"] = loss + consistency * disagreement, disagreement.detach()
        return loss, metrics

    def targets(
        self, canvas_BCHW: Tensor, count: int, generator: torch.Generator, *, whole: bool
    ) -> tuple[Tensor, Positions]:
        """What is decoded: `pixels`, then, if asked for, the points of `whole_pixels`."""
        colour_BNC, pixels = self.pixels(canvas_BCHW, count, generator, self.outside_fraction)
        if whole:
            whole_BN2 = self.whole_pixels(canvas_BCHW, generator)
            whole_BNC = read_colours(canvas_BCHW, whole_BN2, self.background)
            colour_BNC = torch.cat((colour_BNC, whole_BNC), dim=1)
            absolute_BN2 = pixels.absolute.expand(len(canvas_BCHW), -1, -1)
            pixels = points(torch.cat((absolute_BN2, whole_BN2), dim=1), aspect_of(canvas_BCHW))
        return colour_BNC, pixels

    def pixels(
        self,
        canvas_BCHW: Tensor,
        count: int,
        generator: torch.Generator,
        outside_fraction: float = 0.0,
        *,
        exact: bool = False,
    ) -> tuple[Tensor, Positions]:
        """Colours (B, N, C) at `count` random pixels each (0: at all; of more than there are, some again), jittered
        unless all are taken exactly; the last `outside_fraction` of them anywhere in the plane that an output from 1:4
        to 4:1 can show."""
        batch, channels, height, width = canvas_BCHW.shape
        aspect, device, every = aspect_of(canvas_BCHW), canvas_BCHW.device, height * width
        grid = grid_positions((height, width), aspect, sigma=self.model.config.ipe_sigma)
        colour_BNC = canvas_BCHW.flatten(2).transpose(1, 2)
        if (exact or self.jitter == "none") and count == 0 and not outside_fraction:
            return colour_BNC, grid.to(device)
        rng_device = generator.device
        absolute_BN2 = grid.absolute.to(rng_device).expand(batch, -1, -1)  # stays there until all is drawn
        if count not in (0, every):
            copies = -(-count // every)
            order_BN = torch.rand(batch, copies * every, generator=generator, device=rng_device)
            drawn_BN = order_BN.topk(count, dim=1).indices % every
            absolute_BN2 = absolute_BN2.gather(1, drawn_BN[..., None].expand(-1, -1, 2))
            colour_BNC = colour_BNC.gather(1, drawn_BN[..., None].to(device).expand(-1, -1, channels))
        if self.jitter != "none":
            absolute_BN2 = jitter(absolute_BN2, (1 / width, 1 / height), 0.5, generator)
        if outside_fraction:
            around_BN2 = self.around(batch, round(outside_fraction * absolute_BN2.shape[1]), aspect, generator)
            kept = absolute_BN2.shape[1] - around_BN2.shape[1]
            absolute_BN2 = torch.cat((absolute_BN2[:, :kept], around_BN2), dim=1)
        absolute_BN2 = absolute_BN2.to(device)
        if self.jitter == "true" or outside_fraction:
            colour_BNC = read_colours(canvas_BCHW, absolute_BN2, self.background)
        return colour_BNC, points(absolute_BN2, aspect)

    @staticmethod
    def whole_pixels(canvas_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Points (B, 5·WHOLE, 2): of each of WHOLE random pixels its centre, then its four Gauss points, whose mean is
        the mean over the pixel of anything up to a cubic."""
        device = generator.device
        sides = torch.tensor((canvas_BCHW.shape[3], canvas_BCHW.shape[2]), device=device)
        corner_BW12 = (torch.rand(len(canvas_BCHW), WHOLE, 1, 2, generator=generator, device=device) * sides).floor()
        gauss = 0.5 / math.sqrt(3)
        offsets = torch.tensor([(0.0, 0.0), *((x, y) for x in (-gauss, gauss) for y in (-gauss, gauss))], device=device)
        return ((corner_BW12 + 0.5 + offsets) / sides - 0.5).flatten(1, 2).to(canvas_BCHW.device)

    @staticmethod
    def around(batch: int, count: int, aspect: float, generator: torch.Generator) -> Tensor:
        """Points (B, N, 2) of the cross that wide and tall outputs show of the frame's plane."""
        device = generator.device
        absolute_BN2 = torch.rand(batch, count, 2, generator=generator, device=device) - 0.5
        reach = 2 * MARGIN_REACH / absolute_BN2.new_tensor(relative_scale(aspect))
        wide = torch.rand(batch, count, 1, generator=generator, device=device) < 0.5
        return absolute_BN2 * torch.where(torch.cat((wide, ~wide), dim=-1), reach, 1.0)


def inconsistency(decoded_BNC: Tensor) -> Tensor:
    """Colours at `whole_pixels` → mean square between centre and mean of a pixel."""
    centre, *gauss = decoded_BNC.unflatten(1, (-1, 5)).unbind(2)
    return F.mse_loss(sum(gauss) / len(gauss), centre)
