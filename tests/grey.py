"""The tiny pixel-space pipeline in grey, as the judge of digits sees."""

from __future__ import annotations

from dataclasses import replace

import torch

from r2id import R2ID, Pipeline


def in_grey(pipe: Pipeline, **changes) -> Pipeline:
    """A pixel-space R2ID pipeline with one channel and new random weights; changes: of its configuration."""
    denoiser = replace(pipe.config.denoiser, latent_channels=1)
    one = {"channels": 1, "background": (0.0,), "latent_mean": (0.0,), "latent_std": (1.0,)}
    torch.manual_seed(1)
    model = R2ID(denoiser)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(replace(pipe.config, **one, denoiser=denoiser, **changes), None, model, device="cpu")
