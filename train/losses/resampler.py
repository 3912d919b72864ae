"""What R2IR minimises: the squared error of decoded points of the plane against the colours there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.fast_decode import GridDecoder
from r2id.interpolation import cubic
from r2id.resampler import R2IR
from train.data.buckets import Bucket, aspect_of, mean_of


class ResamplerLoss(nn.Module):
    """Mean square error at a lattice of random rows × random columns, the same for a batch.

    The encoder sees images at the density of `encoder_size`, the targets are read at that of `decoder_size`. Rows and
    columns are stratified over the frame at random sub-pixel offsets, so that every step covers every image, and the
    lattice stays separable and therefore cheap.
    """

    def __init__(
        self,
        model: R2IR,
        *,
        background: tuple[float, ...],
        lattice: int,
        outside_fraction: float,
        teacher: nn.Module | None = None,
        perceptual: nn.Module | None = None,
        adversarial: nn.Module | None = None,
    ):
        """lattice: rows, and columns, that are decoded of each image. outside_fraction: share of them around the frame,
        where the background goes on; 0 for models without border rings. teacher: another resampler, whose latents are
        learned: the squared error to them is part of the loss, and half of what is decoded are they. perceptual: a
        distance of images, see `PerceptualLoss`. adversarial: see `AdversarialLoss`."""
        super().__init__()
        self.model, self.lattice, self.outside_fraction = model, lattice, outside_fraction
        self.teacher, self.perceptual = teacher and teacher.eval().requires_grad_(False), perceptual
        self.critic = adversarial
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)

    def forward(
        self,
        buckets: Sequence[Bucket],
        targets: Sequence[Sequence[Tensor]],
        generator: torch.Generator,
        *,
        decoder_only: bool = False,
        latent_noise: float = 0.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        lattice: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """buckets: images in [-1, 1] as the encoder sees them. targets: see `targets_of`. decoder_only: the encoder
        learns nothing. latent_noise: standard deviations of noise on latents, in their root mean square, are uniform
        from 0 to this, one an image. perceptual_weight, adversarial_weight: of these losses beside the squared error;
        if either is not 0, a window of neighbouring pixels is decoded in place of a lattice, and frames must be square.
        lattice: in place of the loss's own.
        → the loss, and parts of it."""
        weights = perceptual_weight, adversarial_weight
        losses = [
            self.of(bucket, sources, generator, lattice or self.lattice, decoder_only, latent_noise, *weights)
            for bucket, sources in zip(buckets, targets, strict=True)
        ]
        return mean_of(buckets, losses)

    def of(
        self,
        bucket: Bucket,
        sources: Sequence[Tensor],
        generator: torch.Generator,
        lattice: int,
        decoder_only: bool,
        latent_noise: float,
        perceptual_weight: float,
        adversarial_weight: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model, cells, device = self.model, bucket.cells, self.background.device
        aspects = [aspect for aspect, count in zip(bucket.aspects, bucket.counts, strict=True) for _ in range(count)]
        aspect = aspects[0] if len(set(aspects)) == 1 else torch.tensor(aspects)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
            coefficients = [model.coefficients(canvas_BCHW, cells) for canvas_BCHW in bucket.canvases]
            latent_BChw = model.encode(torch.cat(coefficients), cells, aspect)
        distance, metrics = 0.0, {}
        if self.teacher:
            with torch.no_grad():
                taught = torch.cat([self.teacher.encode_image(canvas_BCHW, cells) for canvas_BCHW in bucket.canvases])
            distance = F.mse_loss(latent_BChw.float(), taught)
            metrics["latent mse"] = distance.detach()
            even_B111 = (torch.arange(len(taught), device=device) % 2 == 0).view(-1, 1, 1, 1)
            latent_BChw = torch.where(even_B111, taught.to(latent_BChw.dtype), latent_BChw)
        if latent_noise:
            on = {"generator": generator, "device": generator.device}
            share_B111 = latent_noise * torch.rand(len(latent_BChw), 1, 1, 1, **on)
            noise_BChw = (share_B111 * torch.randn(latent_BChw.shape, **on)).to(device)
            rms = latent_BChw.float().square().mean().sqrt()  # with its gradient: larger latents would gain nothing
            latent_BChw = (latent_BChw + rms * noise_BChw).clamp(-1, 1)
        context = model.prepare(latent_BChw, aspect)
        if perceptual_weight or adversarial_weight:
            values = [window(lattice, sources[0].shape[-1], generator) for _ in range(2)]
        else:
            values = [self.coordinates(lattice, cells[1 - axis], generator) for axis in (0, 1)]
        columns, rows = (model.axis(value_N, context, axis) for axis, value_N in enumerate(values))
        decoded_BCHW = GridDecoder(model, context)(rows, columns)
        wanted = [
            read_lattice(source.to(device), *values, frame=aspect_of(canvas), background_C=self.background)
            for canvas, source in zip(bucket.canvases, sources, strict=True)
        ]
        wanted_BCHW = torch.cat(wanted)
        error = F.mse_loss(decoded_BCHW.float(), wanted_BCHW)
        metrics["mse"] = error.detach()
        if perceptual_weight:
            seen = self.perceptual(decoded_BCHW, wanted_BCHW)
            distance, metrics["perceptual"] = distance + perceptual_weight * seen, seen.detach()
        if adversarial_weight:
            towards, hinge = self.critic(decoded_BCHW, wanted_BCHW, adversarial_weight)
            distance, metrics["critic"] = distance + towards + hinge, hinge.detach()
        return error + distance, metrics

    def coordinates(self, lattice: int, cells: int, generator: torch.Generator) -> Tensor:
        """Absolute coordinates of a lattice along an axis of so many cells, rising, float64 (N,) on the CPU."""
        uniform_N = torch.rand(lattice, generator=generator, device=generator.device).double().cpu()
        outside = round(lattice * self.outside_fraction / 2)  # on each side
        reach = self.model.config.border_rings / cells
        before_N, inside_N, after_N = uniform_N.split((outside, lattice - 2 * outside, outside))
        stratum_N = torch.arange(len(inside_N), dtype=torch.float64)
        return torch.cat(
            (
                -0.5 - reach * before_N.sort(descending=True).values,
                (stratum_N + inside_N) / len(inside_N) - 0.5,
                0.5 + reach * after_N.sort().values,
            )
        )


def window(lattice: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Absolute coordinates of the centres of `lattice` neighbours among so many pixels along an axis, rising, float64
    (N,) on the CPU. They are whole pixels, since what is read between them lacks the finest detail."""
    first = torch.randint(pixels - lattice + 1, (), generator=generator, device=generator.device).cpu()
    return (torch.arange(lattice, dtype=torch.float64) + 0.5 + first) / pixels - 0.5


def targets_of(buckets: Sequence[Bucket], targets: Tensor | Sequence[Tensor]) -> list[list[Tensor]]:
    """The images (C, H, W) of a batch, in [-1, 1] at the density of the targets → of each bucket's canvases the images
    (B, C, H, W) that they show."""
    found = []
    for bucket in buckets:
        places = iter(bucket.places)
        rows = ([targets[next(places)] for _ in range(count)] for count in bucket.counts)
        whole = len(bucket.counts) == 1 and isinstance(targets, Tensor) and len(targets) == len(bucket)
        found.append([targets] if whole else [torch.stack(row) for row in rows])
    return found


def read_lattice(source_BCHW: Tensor, x_W: Tensor, y_H: Tensor, *, frame: float, background_C: Tensor) -> Tensor:
    """Colours (B, C, len(y), len(x)) in [-1, 1] of images that lie centred in a frame of this aspect, as large as it
    holds, at absolute coordinates of the frame: bicubic, edges replicated, the background colour around the images."""
    own = source_BCHW.shape[3] / source_BCHW.shape[2]
    scales = max(1.0, frame / own), max(1.0, own / frame)  # of the frame's width and height to the image's
    across, down = (value * scale for value, scale in zip((x_W, y_H), scales, strict=True))
    lines_BCHW = taps(source_BCHW, down, 2)
    colours_BCHW = taps(lines_BCHW, across, 3)
    inside = (down.abs() <= 0.5)[:, None] & (across.abs() <= 0.5)
    return torch.where(inside.to(colours_BCHW.device), colours_BCHW.clamp(-1, 1), background_C.view(-1, 1, 1))


def taps(image: Tensor, values_N: Tensor, axis: int) -> Tensor:
    """Cubic interpolation along an axis (Keys 1981) at coordinates from -½ to ½ across it."""
    pixels = image.shape[axis]
    place_N = (values_N.clamp(-0.5, 0.5) + 0.5) * pixels - 0.5
    index_N4 = place_N.floor()[:, None] + torch.arange(-1, 3)
    weight_N4 = cubic(place_N[:, None] - index_N4).to(image.device, torch.float32)
    index_N4 = index_N4.clamp(0, pixels - 1).long().to(image.device)
    shape = [1] * image.ndim
    shape[axis] = -1
    return sum(
        image.index_select(axis, index_N) * weight_N.view(shape)
        for index_N, weight_N in zip(index_N4.T, weight_N4.T, strict=True)
    )
