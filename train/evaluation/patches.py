"""Fréchet distance of patches, for outputs of a higher density than what was trained on (INFD, Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor

from train.evaluation.metrics import frechet

PATCH = 64  # pixels


def random_patches(images_BCHW: Tensor, *, size: int = PATCH, count: int = 1, generator: Generator) -> Tensor:
    """`count` squares of each image, at places drawn alike, (B * count, C, size, size). Raises ValueError for images
    that are smaller."""
    height, width = images_BCHW.shape[2:]
    if size > min(height, width):
        raise ValueError(f"patches of {size} of images of {height} × {width}: take patches of {min(height, width)}")
    patches = []
    for image_CHW in images_BCHW.repeat_interleave(count, dim=0):
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in (height, width))
        patches.append(image_CHW[:, top : top + size, left : left + size])
    return torch.stack(patches)


def patch_frechet(
    outputs: Iterable[Tensor],
    real: Iterable[Tensor],
    features: Callable[[Tensor], Tensor],
    *,
    size: int = PATCH,
    count: int = 1,
    seed: int = 0,
) -> float:
    """Fréchet distance of random patches of outputs to those of real images, batches (B, C, H, W) of one density.
    features: patches (B, C, size, size) → (B, D); judges that resize do so to patches of both alike."""

    def seen(batches: Iterable[Tensor], seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        return torch.cat([features(random_patches(b, size=size, count=count, generator=generator)) for b in batches])

    return frechet(seen(outputs, 2 * seed), seen(real, 2 * seed + 1))
