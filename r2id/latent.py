"""`Latent`: what is diffused once and resampled at will. Plain data, and one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from r2id.checkpoint import load_tensors, save_tensors
from r2id.limits import MAX_ASPECT, MAX_IMAGE_CELLS, check_cells, check_float, row_seeds


@dataclass(frozen=True, eq=False)
class Latent:
    """tensor: float32 (B, C, h, w) in [-1, 1], on the CPU. aspect: frame width / height, one for the batch. seeds and
    labels: of every row, where it was diffused; labels as names, None, or {name: weight}. `latent[i]` is a row of it,
    `latent[i:j]` are some."""

    tensor: Tensor
    aspect: float
    seeds: tuple[int, ...] | None = None
    labels: tuple | None = None

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int | slice) -> Latent:
        if not isinstance(index, slice):
            index = range(len(self))[index]
            index = slice(index, index + 1)
        seeds, labels = (v and v[index] for v in (self.seeds, self.labels))
        return Latent(self.tensor[index], self.aspect, seeds, labels)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in cells."""
        return tuple(self.tensor.shape[2:])

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        about = json.dumps({"seeds": self.seeds, "labels": self.labels}).encode()
        about = torch.frombuffer(bytearray(about), dtype=torch.uint8)
        aspect = torch.tensor(self.aspect, dtype=torch.float64)
        save_tensors({"latent": self.tensor, "aspect": aspect, "about": about}, path)

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """A file of `save`. Raises ValueError, one line, for any other file."""
        tensors = load_tensors(path)
        try:
            tensor, aspect, about = (tensors.pop(key) for key in ("latent", "aspect", "about"))
            if tensors or about.ndim != 1 or about.dtype != torch.uint8:
                raise ValueError
            about = json.loads(about.numpy().tobytes())
            seeds, labels = (None if about[key] is None else tuple(about[key]) for key in ("seeds", "labels"))
            if seeds is not None:
                row_seeds(seeds, len(tensor))
            if labels is not None and [isinstance(v, str | dict | None) for v in labels] != [True] * len(tensor):
                raise ValueError
            return check_latent(cls(tensor, float(aspect), seeds, labels))
        except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            reason = f" ({error})" if "latent" in str(error) else ""
            raise ValueError(f"{Path(path).name}: not a latent file{reason}; give one that Latent.save wrote") from None


def check_latent(latent: Latent, channels: int | None = None, most: int = MAX_IMAGE_CELLS) -> Latent:
    """The latent itself; ValueError unless it is one, of this model's channels and within the limits."""
    if not isinstance(latent, Latent):
        raise ValueError(f"latent: must be a Latent, as diffuse and encode give, not {type(latent).__name__}")
    tensor = latent.tensor
    if not isinstance(tensor, Tensor):
        raise ValueError(f"latent tensor: must be a float32 tensor (B, C, h, w), not {type(tensor).__name__}")
    if tensor.ndim != 4 or tensor.dtype != torch.float32:
        raise ValueError(f"latent of shape {tuple(tensor.shape)}, {tensor.dtype}: must be float32 (B, C, h, w)")
    if channels is not None and tensor.shape[1] != channels:
        raise ValueError(
            f"latent of {tensor.shape[1]} channels: this model's have {channels}, use the model it came from"
        )
    if not len(tensor):
        raise ValueError("latent of 0 rows: must have one or more")
    check_cells(latent.size, 1, most)
    check_float(latent.aspect, "latent aspect", 1 / MAX_ASPECT, MAX_ASPECT)
    if not tensor.abs().max() <= 1 + 1e-3:  # NaN is not
        raise ValueError("latent values: must be finite and in [-1, 1]")
    return latent


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless it is a finite float32 tensor of this shape, (B, C, h, w)."""
    given = (getattr(noise, "dtype", None), tuple(getattr(noise, "shape", ())))
    if given != (torch.float32, shape) or not noise.isfinite().all():
        raise ValueError(f"noise: must be a finite float32 tensor {shape}, a row for each label")
