"""Latents as a denoiser sees them: images encoded by a frozen resampler and standardised; in pixel space the images
themselves, at the latent's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r2id.interpolation import resize
from r2id.position import Positions, batched, grid_positions
from r2id.schedule import Schedule
from train.data.buckets import Bucket, ShapeSampler
from train.engine.loop import generator

CHUNK = 100  # images that share a shape where statistics are taken


@dataclass(frozen=True)
class CleanLatents:
    """Clean latents of one size, as the denoiser sees them, in frames of one shape or of several."""

    x0_BChw: Tensor
    frames: Sequence[tuple[float, int]]  # aspect (width / height) and number of rows, in the order of the rows
    places: Sequence[int]  # of each row in the batch

    def __len__(self) -> int:
        return len(self.places)

    @property
    def cells(self) -> tuple[int, int]:
        return tuple(self.x0_BChw.shape[2:])

    @property
    def positions(self) -> Positions:
        """Of the cells' centres."""
        grids = [grid_positions(self.cells, aspect) for aspect, _ in self.frames]
        return batched(grids, [count for _, count in self.frames]).to(self.x0_BChw.device)


class LatentSpace(nn.Module):
    """A resampler (None: pixel space), the mean and deviation of its latents per channel, and a noise schedule."""

    def __init__(self, resampler: nn.Module | None, *, mean: Sequence[float], std: Sequence[float], schedule: Schedule):
        super().__init__()
        self.schedule = schedule
        self.resampler = resampler and resampler.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def channels(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
        """Images in [-1, 1] that fill their frame → clean latents (B, c, h, w), in float32."""
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.standardise(self.raw(image_BCHW, cells))

    def raw(self, image_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
        """Images in [-1, 1] → latents in [-1, 1], as a pipeline gives them."""
        if self.resampler is None:
            return resize(image_BCHW, cells)
        return self.resampler.encode_image(image_BCHW, cells)

    def encode_bucket(self, bucket: Bucket) -> CleanLatents:
        parts = [self.encode(canvas_BCHW, bucket.cells) for canvas_BCHW in bucket.canvases]
        frames = list(zip(bucket.aspects, bucket.counts, strict=True))
        return CleanLatents(torch.cat(parts) if len(parts) > 1 else parts[0], frames, bucket.places)

    def standardise(self, latent_BChw: Tensor) -> Tensor:
        return (latent_BChw - self.mean) / self.std

    def restore(self, x0_BChw: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x0_BChw * self.std + self.mean

    def clip(self, x0_BChw: Tensor) -> Tensor:
        """Bounds an estimate of x0 to [-1, 1] in units of the resampler's latents."""
        return self.standardise(self.restore(x0_BChw).clamp(-1, 1))

    def decode(self, x0_BChw: Tensor, *, aspect: float, side: int) -> Tensor:
        """Clean latents → the central square of their frames, (B, C, side, side) in [-1, 1]; in pixel space the images
        themselves. With gradients."""
        latent_BChw = self.restore(x0_BChw)
        if self.resampler is None:
            return latent_BChw
        decoded_BCHW = self.resampler.decode_image(latent_BChw, size=(side, side), aspect=aspect, fit="cover")
        return decoded_BCHW.clamp(-1, 1)


@torch.no_grad()
def latent_statistics(
    resampler: nn.Module,
    images: Tensor | list[Tensor],
    shape_sampler: ShapeSampler,
    background: Sequence[float],
    size: int | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of latents in shapes that the sampler draws (see `ShapeSampler.draw`):
    one set for all sizes."""
    rng, background_C = generator(0, 0), torch.tensor(background) * 2 - 1
    channels = resampler.config.latent_channels
    space = LatentSpace(resampler, mean=(0.0,) * channels, std=(1.0,) * channels, schedule=Schedule())
    latents = []
    for start in range(0, len(images), CHUNK):
        buckets = shape_sampler.draw(size, generator=rng).buckets(images[start : start + CHUNK], background_C)
        latents += [space.encode_bucket(bucket).x0_BChw for bucket in buckets]
    every_CN = torch.cat([latent_BChw.transpose(0, 1).flatten(1) for latent_BChw in latents], dim=1)
    return tuple(every_CN.mean(dim=1).tolist()), tuple(every_CN.std(dim=1).tolist())
