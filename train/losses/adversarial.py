"""A critic of small patches (Isola et al. 2017), by the hinge loss: squared error alone blurs what it cannot know."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (48, 96, 192)  # of its layers, each of half the resolution of the one before
SLOPE = 0.2  # of leaky ReLU


class AdversarialLoss(nn.Module):
    """Tells decoded images from real ones, patch by patch, while the decoder learns to pass for real."""

    def __init__(self, channels: int):
        super().__init__()
        layers = []
        for number, (before, after) in enumerate(pairwise((channels, *WIDTHS))):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, after)] if number else []
            layers += [nn.LeakyReLU(SLOPE)]
        self.network = nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, decoded_BCHW: Tensor, real_BCHW: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Decoded and real images in [-1, 1] → what the decoder adds to its loss, and the critic's own loss.

        weight: norm of the decoder's gradient from the critic, in the images, to that of their squared error.
        """
        decoded_BCHW, real_BCHW = decoded_BCHW.float(), real_BCHW.float()
        self.network.requires_grad_(False)
        (towards_BCHW,) = torch.autograd.grad(-self.network(decoded_BCHW).float().mean(), decoded_BCHW)
        self.network.requires_grad_(True)
        error = 2 * (decoded_BCHW.detach() - real_BCHW).norm() / real_BCHW.numel()
        towards_BCHW = towards_BCHW * (weight * error / towards_BCHW.norm().clamp(min=1e-12))
        judged = (self.network(images_BCHW).float() for images_BCHW in (real_BCHW, decoded_BCHW.detach()))
        hinge = sum(F.relu(1 - side * value).mean() for side, value in zip((1, -1), judged, strict=True))
        value = (decoded_BCHW * towards_BCHW).sum()
        return value - value.detach(), hinge
