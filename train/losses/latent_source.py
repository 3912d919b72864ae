"""Where a step's clean latents come from: images encoded when the step needs them, or latents that were encoded once,
all of them, and lie in files of the run. Encoding costs as much as a denoiser's step, and the same every epoch."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Generator, Tensor

from train.data.buckets import NativeAspect, Shape, ShapeSampler
from train.data.images import ImageSet
from train.engine.cli import draw
from train.engine.loop import generator
from train.engine.progress import progress_bar
from train.engine.recipe import CacheConfig
from train.losses.latent_space import CleanLatents, LatentSpace

CHUNK = 64  # images encoded at once, after which a file can be gone on with
SAMPLED = 256  # images, spread over the set, that tell whether the data are the same
VERSION = 1  # of the files


def index_of(label: str, names: Sequence[str], setting: str) -> int:
    """Its place among the data's labels. Raises ValueError, with the recipe's `setting`, for one that they have not."""
    if label not in names:
        raise ValueError(f"{setting}: no label is {label!r}, only {', '.join(names)}")
    return names.index(label)


class Mirror:
    """Mirror images, left and right exchanged, and the labels that change with them."""

    def __init__(self, names: Sequence[str], pairs: dict[str, str]):
        """pairs: labels that change places, each named once or from both sides. Raises ValueError for a label that is
        none of `names`, or that has two partners."""
        partners = list(range(len(names) + 1))  # the last: none, at -1
        for one, other in pairs.items():
            a, b = (index_of(name, names, f"mirror_labels {one} = {other}") for name in (one, other))
            if {partners[a], partners[b]} - {a, b}:
                raise ValueError(f"mirror_labels {one} = {other}: one of them has another partner; name each pair once")
            partners[a], partners[b] = b, a
        self.partner_L = torch.tensor([*partners[:-1], -1])

    def labels(self, label_B: Tensor, mirrored_B: Tensor) -> Tensor:
        return torch.where(mirrored_B, self.partner_L.to(label_B.device)[label_B], label_B)

    @staticmethod
    def images(images: Tensor | list[Tensor], mirrored_B: Tensor) -> Tensor | list[Tensor]:
        if isinstance(images, Tensor):
            return torch.where(mirrored_B.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
        return [image.flip(-1) if mirrored else image for image, mirrored in zip(images, mirrored_B, strict=True)]


def some(count: int, rng: Generator, device: torch.device) -> Tensor:
    """Which of a step's images are mirrored, one in two on average."""
    return (torch.rand(count, generator=rng, device=rng.device) < 0.5).to(device)


class EncodedLatents:
    """Latents of shapes that a sampler draws, encoded when they are asked for."""

    def __init__(
        self,
        space: LatentSpace,
        train: ImageSet,
        background: Sequence[float],
        mirror: Mirror | None,
        *,
        size: int | None,
        size_multiple: int = 1,
    ):
        """size: side of the images, None where they have their own aspect ratios."""
        self.space, self.train, self.mirror = space, train, mirror
        self.draw = partial(draw, size=size, size_multiple=size_multiple, device=space.mean.device)
        self.background_C = (torch.tensor(background) * 2 - 1).to(space.mean.device)

    def __call__(
        self, indices: Tensor, shape: Shape | NativeAspect, rng: Generator
    ) -> tuple[list[CleanLatents], Tensor]:
        """Images by their place → latents of every size, and the labels of all."""
        images, label_B = self.train.images[indices], self.train.labels[indices].to(self.background_C.device)
        if self.mirror:
            mirrored_B = some(len(label_B), rng, label_B.device)
            images, label_B = self.mirror.images(images, mirrored_B), self.mirror.labels(label_B, mirrored_B)
        return [self.space.encode_bucket(bucket) for bucket in shape.buckets(images, self.background_C)], label_B


class CachedLatents:
    """Latents of a few sizes, memory-mapped, and the mirror images' too if there is a mirror."""

    def __init__(
        self,
        folder: Path,
        config: CacheConfig,
        space: LatentSpace,
        train: ImageSet,
        background: Sequence[float],
        mirror: Mirror | None,
    ):
        """Encodes what the folder has not yet, or has of other weights or data; stopped, it goes on where it was.

        Raises ValueError for images of several sizes, for a stream, for frames that cannot be padded, and where the
        disk has too little room.
        """
        if train.count is None or None in train.images.shape:
            needs = "images of one size that are not streamed"
            raise ValueError(f"cache_latents: needs {needs}; leave it out, so that a step encodes its own")
        self.config, self.space, self.mirror, self.count = config, space, mirror, len(train)
        self.shapes = {cells: Shape(canvas_of(train.images.shape[-1], cells), cells) for cells in config.cells}
        if train.background is None and any(shape.aspect != 1 for shape in self.shapes.values()):
            raise ValueError("cache_latents: no known background, so frames cannot be padded; give square cells")
        self.files = {}
        with PartialState().main_process_first():
            self.check_room(folder)
            known = fingerprint(space, train, mirror)
            for shape in self.shapes.values():
                self.files[shape.cells] = self.file(folder, shape, train, background, known)
            self.label_N = torch.from_numpy(np.load(folder / "labels.npy"))

    @property
    def rows(self) -> int:
        """Of a file: the images, then their mirror images."""
        return self.count * (2 if self.mirror else 1)

    def check_room(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(2 * self.rows * self.space.channels * math.prod(cells) for cells in self.config.cells)
        there = sum(path.stat().st_size for path in folder.glob("*.bin"))
        if (free := shutil.disk_usage(folder).free + there) < needed:
            sizes = f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} are free"
            raise ValueError(f"cache_latents: {folder} needs {sizes}; make room, or give fewer cells")

    def file(self, folder: Path, shape: Shape, train: ImageSet, background: Sequence[float], known: str) -> np.memmap:
        """The latents (rows, c, h, w) of a size, as 16-bit integers of the same bytes."""
        name = "{}x{}".format(*shape.cells)
        path, progress = folder / f"{name}.bin", folder / f"{name}.json"
        key = f"{VERSION} {known} {self.config.dtype} {shape}"
        done = read_progress(progress, key) if path.exists() else 0
        size = self.rows, self.space.channels, *shape.cells
        if done == 0:
            progress.unlink(missing_ok=True)
        file = np.memmap(path, np.int16, "r+" if done else "w+", shape=size)
        if done < self.rows:
            self.encode(file, shape, train, background, done, progress, key)
        return np.memmap(path, np.int16, "r", shape=size)

    def encode(
        self,
        file: np.memmap,
        shape: Shape,
        train: ImageSet,
        background: Sequence[float],
        done: int,
        progress: Path,
        key: str,
    ) -> None:
        device, dtype = self.space.mean.device, getattr(torch, self.config.dtype)
        background_C = (torch.tensor(background) * 2 - 1).to(device)
        labels = progress.with_name("labels.npy")
        mode = "r+" if labels.exists() and len(np.load(labels, mmap_mode="r")) == self.count else "w+"
        label_N = np.lib.format.open_memmap(labels, mode, np.int64, (self.count,))
        starts = [(m, start) for m in range(self.rows // self.count) for start in range(0, self.count, CHUNK)]
        with progress_bar(title=f"encode {progress.stem}", total=self.rows, initial=done, unit="image") as bar:
            for mirrored, start in starts:
                end = min(start + CHUNK, self.count)
                first, last = mirrored * self.count + start, mirrored * self.count + end
                if last <= done:
                    continue
                images = train.images[torch.arange(start, end)]
                (bucket,) = shape.buckets(images.flip(-1) if mirrored else images, background_C)
                latent_BChw = self.space.restore(self.space.encode_bucket(bucket).x0_BChw)
                file[first:last] = latent_BChw.to(dtype).cpu().view(torch.int16).numpy()
                label_N[start:end] = train.labels[torch.arange(start, end)].cpu().numpy()
                file.flush()
                label_N.flush()
                write(progress, {"key": key, "done": last})
                bar.update(last - first)

    def draw(self, shape_sampler: ShapeSampler, seed: int, step: int, part: int = 0) -> tuple[Shape, Generator]:
        """A step's shape, one of those whose cells are within the sampler's, and the generator of all else."""
        low, high = shape_sampler.cells
        within = [s for s in self.shapes.values() if low <= min(s.cells) and max(s.cells) <= high]
        shapes, device = within or list(self.shapes.values()), self.space.mean.device
        rng = generator(seed, step)
        shape = shapes[int(torch.randint(len(shapes), (), generator=rng))]
        return shape, rng if part == 0 and device.type == "cpu" else generator(seed, step, part, device)

    def __call__(self, indices: Tensor, shape: Shape, rng: Generator) -> tuple[list[CleanLatents], Tensor]:
        """Images by their place → latents of the shape, and labels."""
        device, rows, label_B = self.space.mean.device, indices.cpu(), self.label_N[indices.cpu()]
        if self.mirror:
            mirrored_B = some(len(rows), rng, torch.device("cpu"))
            rows, label_B = rows + self.count * mirrored_B, self.mirror.labels(label_B, mirrored_B)
        bytes_BChw = torch.from_numpy(self.files[shape.cells][rows.numpy()])
        latent_BChw = bytes_BChw.view(getattr(torch, self.config.dtype)).to(device, torch.float32)
        x0_BChw = self.space.standardise(latent_BChw)
        return [CleanLatents(x0_BChw, [(shape.aspect, len(rows))], range(len(rows)))], label_B.to(device)


def canvas_of(size: int, cells: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of the frame of these cells around a square image; margins are whole pixels."""
    ratio = cells[1] / cells[0]
    long = size + 2 * round(size * (max(ratio, 1 / ratio) - 1) / 2)
    return (size, long) if ratio >= 1 else (long, size)


def fingerprint(space: LatentSpace, train: ImageSet, mirror: Mirror | None) -> str:
    """Of the resampler's weights, of the number of images, a sample of them and their labels, and of the mirror."""
    made = hashlib.sha256(repr((space.resampler and space.resampler.config, len(train), bool(mirror))).encode())
    places = torch.linspace(0, len(train) - 1, min(SAMPLED, len(train))).long()
    tensors = [train.images[places], train.labels[places]]
    tensors += space.resampler.state_dict().values() if space.resampler else []
    for tensor in tensors:
        made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()


def read_progress(path: Path, key: str) -> int:
    """Rows of a file that are done, 0 for those of other weights or data."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return known["done"] if known["key"] == key else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write(path: Path, value: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)
