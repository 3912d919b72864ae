"""MobileNetV2 (Sandler et al. 2018) of ImageNet, in torchvision's names, so that published weights load strictly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224  # pixels, of the images that it was trained on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels
# Table 2 of the paper: expansion, output channels, repeats, stride of the first
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES, CLASSES = 1280, 1000


def convolution(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolve = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolve, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: (B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [convolution(inputs, width)] if expansion > 1 else []
        filter_each = convolution(width, width, kernel=3, stride=stride, groups=width)
        project = nn.Conv2d(width, outputs, 1, bias=False)
        self.conv = nn.Sequential(*expand, filter_each, project, nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv(x_BCHW) if self.residual else self.conv(x_BCHW)


class MobileNetV2(nn.Module):
    """Images (B, 3, H, W), normalised by MEAN and STD → logits (B, 1000); 3.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = [convolution(3, 32, kernel=3, stride=2)], 32
        for expansion, outputs, repeats, stride in BLOCKS:
            for number in range(repeats):
                first = stride if number == 0 else 1
                layers.append(InvertedResidual(width, outputs, stride=first, expansion=expansion))
                width = outputs
        self.features = nn.Sequential(*layers, convolution(width, FEATURES))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, CLASSES))

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """The features before the classifier, averaged over the image, (B, 1280)."""
        return self.features(x_BCHW).mean(dim=(2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.classifier(self.pooled(x_BCHW))


def as_imagenet(images_BCHW: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [0, 1] of any size → (B, 3, 224, 224) as ImageNet's networks take them."""
    resized_BCHW = F.interpolate(images_BCHW.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True)
    mean_C11, std_C11 = (torch.tensor(v, device=images_BCHW.device).view(3, 1, 1) for v in (MEAN, STD))
    return (resized_BCHW.clamp(0, 1) - mean_C11) / std_C11
