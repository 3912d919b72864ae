"""64 digits of the MNIST test set for the tests: `data/digits.png` is an 8 x 8 grid of them, the label is i mod 10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def digit_bytes() -> np.ndarray:
    """The originals, uint8 (64, 28, 28)."""
    sheet = np.array(Image.open(Path(__file__).parent / "data" / "digits.png"))
    return sheet.reshape(8, 28, 8, 28).transpose(0, 2, 1, 3).reshape(64, 28, 28)


def digits(size: int = 32) -> tuple[Tensor, Tensor]:
    """Images float32 (64, 1, size, size) in [-1, 1], resized as in training, and labels int64 (64,)."""
    images_B1HW = torch.from_numpy(digit_bytes()).float()[:, None] / 255
    images_B1HW = F.interpolate(images_B1HW, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return images_B1HW * 2 - 1, torch.arange(64) % 10
