"""Not a copy machine: how far generated images are from the closest training image, beside real ones never seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(features_ND: Tensor, training_MD: Tensor, *, chunk: int = 1_000) -> tuple[Tensor, Tensor]:
    """Euclidean distance to the closest training image, (N,), and which it is, (N,)."""
    if not len(training_MD):
        raise ValueError("no training images to be close to")
    parts = [torch.cdist(part_ND, training_MD).min(dim=1) for part_ND in features_ND.split(chunk)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def novelty(generated_ND: Tensor, real_ND: Tensor, training_MD: Tensor) -> dict[str, float]:
    """Median distances to the closest training image: of `generated`, of `real` images that were not trained on, and
    their `ratio`. Below 1 is closer than chance, about 0 is a copy."""
    medians = [nearest(rows_ND, training_MD)[0].median().item() for rows_ND in (generated_ND, real_ND)]
    return {"generated": medians[0], "real": medians[1], "ratio": medians[0] / max(medians[1], 1e-12)}


def pixel_features(images_BCHW: Tensor, *, side: int = 32) -> Tensor:
    """Images area-reduced to side × side, flat, (B, D), so that distances are root mean squares of the values."""
    reduced_BD = F.interpolate(images_BCHW.float(), size=(side, side), mode="area").flatten(1)
    return reduced_BD / reduced_BD.shape[1] ** 0.5
