"""A word: one latent a letter, decoded side by side as one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r2id.condition import index_of
from r2id.demo.illustrations import equal_numbers_pixels
from r2id.latent import Latent
from r2id.limits import SEEDS, check_int, short_repr
from r2id.pipeline import Pipeline
from r2id.position import FULL

MAX_LETTERS = 12


def can_spell(labels: Sequence[str]) -> bool:
    """Whether all labels of a model are single characters."""
    return bool(labels) and all(len(label) == 1 for label in labels)


def spell(text: str, labels: Sequence[str]) -> list[str]:
    """The label of every letter; case counts only where a model has both. Raises ValueError, one line, for a word that
    the model cannot write."""
    if not can_spell(labels):
        raise ValueError("this model's labels are not single letters: choose a model of letters or digits")
    letters = text.strip() if isinstance(text, str) else ""
    if not 1 <= len(letters) <= MAX_LETTERS:
        counted = f"{len(letters)} letters" if letters else "no letters"
        raise ValueError(f"word of {counted}: type 1 to {MAX_LETTERS}")
    found = []
    for letter in letters:
        try:
            found.append(labels[index_of(letter, tuple(labels))])
        except ValueError:
            known = "".join(labels) if len(labels) <= 40 else f"{len(labels)} others"
            raise ValueError(f"{short_repr(letter)} cannot be written: this model knows {known}") from None
    return found


def seeds_of(seed: int, letters: int, *, one_seed: bool) -> list[int]:
    """The seed of every letter: the same one, or seed + i."""
    seed = check_int(seed, "seed", 0, SEEDS - 1)
    return [(seed + i * (not one_seed)) % SEEDS for i in range(letters)]


def row_size(latent: Latent, height: int) -> tuple[int, int]:
    """(height, width) in pixels of all rows of a latent side by side."""
    return height, len(latent) * max(1, round(height * latent.aspect))


def resample_row(pipe: Pipeline, latent: Latent, *, height: int, region=FULL) -> Tensor:
    """All rows of a latent, each in its whole frame, side by side: (C, H, W) in [0, 1] at `row_size`.

    region: (left, top, right, bottom) in fractions of the whole row, shown at that size. A letter that begins within a
    pixel begins at the pixel's nearer edge. Raises ValueError as `Pipeline.resample` does.
    """
    height, width = row_size(latent, check_int(height, "height", 1, 8192))
    letters, (left, top, right, bottom) = len(latent), region
    if tuple(region) == FULL:
        return torch.cat(list(pipe.resample(latent, size=(height, width // letters), fit="stretch")), dim=-1)
    parts, scale = [], width / (right - left)
    for i in range(letters):
        ends = [min(max(round((edge / letters - left) * scale), 0), width) for edge in (i, i + 1)]
        if ends[0] < ends[1]:
            from_x, to_x = (min(max((left + end / scale) * letters - i, 0.0), 1.0) for end in ends)
            size, part = (height, ends[1] - ends[0]), (from_x, top, to_x, bottom)
            parts.append(pipe.resample(latent[i], size=size, fit="stretch", region=part)[0])
    return torch.cat(parts, dim=-1)


def small_row(pipe: Pipeline, latent: Latent) -> Tensor:
    """All rows of a latent side by side, each an image of as many pixels as it holds numbers: (C, H, W) in [0, 1]."""
    small = pipe.resample(latent, size=equal_numbers_pixels(latent, pipe.config.channels), fit="stretch")
    return torch.cat(list(small), dim=-1)
