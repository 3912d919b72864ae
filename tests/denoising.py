"""What the tests of the denoisers share: models past their zero initialisation, and inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r2id.denoisers import DENOISERS
from r2id.position import Positions, grid_positions

MODELS = dict(DENOISERS.values())  # configuration → module


def random_model(config) -> nn.Module:
    """The denoiser of a configuration, all weights at random."""
    torch.manual_seed(0)
    model = MODELS[type(config)](config).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(
    model: nn.Module, *, batch: int = 2, size: tuple[int, int] = (3, 4)
) -> tuple[Tensor, Tensor, Positions, Tensor]:
    """Noisy latents or images (B, 3, H, W), ᾱ (B,), positions, and tokens of four labels in turn."""
    noisy_BCHW = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    tokens_BND = model.condition(torch.eye(4)[torch.arange(batch) % 4])
    return noisy_BCHW, torch.linspace(0.2, 0.7, batch), grid_positions(size, size[1] / size[0]), tokens_BND


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
