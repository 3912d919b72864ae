"""Systems side by side over sizes and shapes: `python -m train.evaluate --compare weights/a weights/b … --data PATH`.

`train/evaluation/methods.py` says how each makes an image. Image i has label i mod K and seed i, under each
configuration's own defaults. Every finished cell is written to comparison.json at once and holds as long as the
weights, the judge, the real images and the machine stay the same: to go on after a stop, run the same command.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from r2id.hub import fetch
from r2id.limits import BATCH
from r2id.pipeline import Latent, Pipeline
from train.data.images import ImageSet
from train.engine.machine import machine
from train.engine.progress import progress_bar
from train.evaluation.classifier import SIZE, Classifier, accuracy, to_classifier_size
from train.evaluation.comparison_tables import Results, write_report
from train.evaluation.methods import Cell, Column, cost_apart, diffuse, giga_operations, methods_of, show
from train.evaluation.metrics import bring_to, central_square, extent, frechet, ink, judge_features, parts
from train.evaluation.tables import check_match, name

BATCH_CELLS = 2**16  # diffused together: bounds the memory of large sizes


@dataclass(frozen=True)
class ComparisonProtocol:
    """Sides of square images with the number generated, frames (width, height) around a square of training size."""

    counts: dict[int, int] = field(default_factory=lambda: {16: 500, 32: 500, 64: 100, 128: 10, 256: 2})
    ratios: tuple[tuple[int, int], ...] = ((9, 16), (3, 4), (4, 3), (16, 9))
    ratio_count: int = 60
    frechet: int = 500  # images below which the distance is mostly bias
    shown: int = 3  # index of the image on the sheet

    def columns(self, training_size: int) -> list[Column]:
        squares = [Column(name((side, side)), 1.0, side, count) for side, count in self.counts.items()]
        return squares + [Column(f"{w}:{h}", w / h, training_size, self.ratio_count) for w, h in self.ratios]


PROTOCOL = ComparisonProtocol()


@dataclass
class Judging:
    """The judge, the real images, and what it sees in them at every size."""

    judge: Classifier
    real: ImageSet
    train: Callable[[int], ImageSet]  # the first n training images
    known: dict[int, Tensor] = field(default_factory=dict)

    def seen(self, images_NCHW: Tensor, side: int) -> Tensor:
        """Real images brought to a size, as the judge takes them."""
        batches = progress_bar(images_NCHW.split(BATCH), f"real images at {side}")
        return torch.cat([to_classifier_size(bring_to(part, side)) for part in batches])

    def distance(self, images_NCHW: Tensor, side: int) -> float:
        """Fréchet distance of images as the judge takes them to the real ones brought to that size."""
        if side not in self.known:
            self.known[side] = judge_features(self.judge, self.seen(self.real.images, side))
        return frechet(judge_features(self.judge, images_NCHW), self.known[side])

    def real_figures(self, column: Column, *, distance: bool) -> dict[str, float]:
        """The share of real images read right at a size, and the distance of as many training images."""
        seen_NCHW = self.seen(self.real.images, column.side)
        figures = {"accuracy": accuracy(self.judge, seen_NCHW, self.real.labels)}
        if distance:
            train_NCHW = self.train(column.count).images
            figures["frechet"] = self.distance(self.seen(train_NCHW, column.side), column.side)
        return figures


@dataclass
class System:
    """A pipeline and the latents it has diffused: those of the default size serve many cells."""

    name: str
    folder: Path
    pipe: Pipeline
    kept: dict[tuple, list[Latent]] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        files = [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]
        return fingerprint(*(file.read_bytes() for file in files))

    def metadata(self) -> dict[str, Any]:
        config, counts = self.pipe.config, {}
        for part in ("denoiser", "resampler"):
            module = getattr(self.pipe, part)
            counts[part] = sum(p.numel() for p in module.parameters()) if module else 0
        training, defaults = config.training and asdict(config.training), asdict(config.defaults)
        return {"architecture": config.architecture, "parameters": counts, "training": training, "defaults": defaults}

    def latents(self, cell: Cell) -> Iterator[Latent]:
        """cell.column.count rows in batches: row i has label i mod K and seed i."""
        rows = min(BATCH, max(1, BATCH_CELLS // (cell.latent[0] * cell.latent[1])))
        kept = self.kept.setdefault((cell.latent, cell.aspect), [])
        starts = range(0, cell.column.count, rows)
        for index, start in enumerate(progress_bar(starts, f"{self.name} {cell.method} {cell.column.title}")):
            if index == len(kept):
                labels = [i % len(self.pipe.labels) for i in range(start, start + rows)]
                kept.append(diffuse(self.pipe, cell, labels, seed=start))
            yield Latent(kept[index].tensor[: cell.column.count - start], cell.aspect)

    def judged(self, cell: Cell, judging: Judging, *, distance: bool) -> dict[str, Any]:
        """What the judge reads in the cell's images, and how many parts of what extent they show."""
        background_C, squares, counts, extents = torch.tensor(self.pipe.config.background), [], [], []
        for latent in self.latents(cell):
            images_BCHW = show(self.pipe, cell, latent)
            squares.append(to_classifier_size(central_square(images_BCHW) * 2 - 1))
            ink_BHW = ink(bring_to(images_BCHW, SIZE), background_C)
            counts.append(parts(ink_BHW))
            extents.append(extent(ink_BHW).clamp(min=1e-3).log())
        seen, labels_N = torch.cat(squares), torch.arange(cell.column.count) % len(self.pipe.labels)
        figures = {"accuracy": accuracy(judging.judge, seen, labels_N)}
        if distance:
            figures["frechet"] = judging.distance(seen, min(cell.size))
        figures["parts"] = torch.cat(counts).double().mean().item()
        return figures | {"extent": torch.cat(extents).mean(dim=0).exp().tolist()}  # geometric means, across and down

    def measure(
        self, cell: Cell, judging: Judging, protocol: ComparisonProtocol
    ) -> tuple[dict[str, Any], Image.Image | None]:
        """All figures of a cell and the image for the sheet; or why there are none."""
        try:
            label = protocol.shown % len(self.pipe.labels)
            figures, image = cost_apart(self.folder, str(self.pipe.device), cell, label, protocol.shown)
            figures["gflop"] = giga_operations(self.pipe, cell)
            return figures | self.judged(cell, judging, distance=cell.column.count >= protocol.frechet), image
        except (ValueError, RuntimeError, MemoryError) as error:  # too large for the system or the machine
            return {"refused": (str(error).splitlines() or [type(error).__name__])[0]}, None


def fingerprint(*parts: bytes | str) -> str:
    hashes = [hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts]
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:16]


class Cache:
    """The measured cells of comparison.json, rewritten after each; images lie beside it in images/."""

    def __init__(self, folder: Path):
        self.path, self.images = folder / "comparison.json", folder / "images"
        try:
            self.report = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"cells": {}}
            self.cells: dict[str, dict] = self.report["cells"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path}: not a comparison; remove it, or give another --out") from None

    def image(self, key: str) -> Path:
        return self.images / f"{key.replace(' ', '_').replace(':', 'x')}.png"

    def keep(self, key: str, figures: dict, image: Image.Image | None = None) -> None:
        self.images.mkdir(parents=True, exist_ok=True)
        if image is not None:
            image.save(self.image(key))
        self.cells[key] = figures
        self.write()

    def write(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path)


def compare(
    weights: Sequence[str],
    judge: Classifier,
    load: Callable[..., ImageSet],
    split: str,
    folder: Path,
    *,
    device: str = "auto",
    limit: int | None = None,
    generated: int = 1000,
    protocol: ComparisonProtocol = PROTOCOL,
) -> None:
    """Measures what comparison.json in `folder` does not yet hold; then prints the tables and writes the report.

    weights: folders or Hub ids, the first is the reference. load: (split, size=, channels=, limit=) → images. limit:
    real images. generated: images a cell, at most. Raises ValueError for systems that cannot be compared.
    """
    names = [Path(path).name for path in weights]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"--compare {' '.join(weights)}: give two folders or more, of different names")
    folders = [fetch(path) for path in weights]
    systems = [System(n, f, Pipeline.from_pretrained(f, device=device)) for n, f in zip(names, folders, strict=True)]
    first = systems[0].pipe.config
    real = load(split, size=first.encoder_size, channels=first.channels, limit=limit)
    for system in systems:
        check_match(system.pipe.config, real.names, judge)
        if (size := system.pipe.config.encoder_size) != first.encoder_size:
            raise ValueError(f"{system.name} was trained at {size}, {names[0]} at {first.encoder_size}: must be alike")
    if generated < len(real.names):
        raise ValueError(f"generated {generated}: must be {len(real.names)} or more, one a label")
    counts = {side: min(count, generated) for side, count in protocol.counts.items()}
    protocol = replace(protocol, counts=counts, ratio_count=min(protocol.ratio_count, generated))
    chosen = {"size": first.encoder_size, "channels": first.channels}
    judging = Judging(judge.to(systems[0].pipe.device), real, lambda count: load("train", **chosen, limit=count))
    results = Results({s.name: s.metadata() for s in systems}, protocol.columns(first.encoder_size), first.encoder_size)
    cache = Cache(folder)
    measure(systems, judging, protocol, results, cache)
    heading = f"split {split}, {len(real):,} real images; label i mod {len(real.names)} and seed i; {machine()}"
    cache.report |= {"setting": heading, "systems": results.systems, **write_report(results, folder, heading)}
    cache.write()


def measure(
    systems: Sequence[System], judging: Judging, protocol: ComparisonProtocol, results: Results, cache: Cache
) -> None:
    """Fills the results, from the cache where it has them."""
    seen = (*judging.judge.state_dict().values(), judging.real.images, judging.real.labels)
    judged = fingerprint(*(tensor.cpu().numpy().tobytes() for tensor in seen))
    for column in progress_bar(results.columns, "sizes", unit="size"):
        distance = column.count >= protocol.frechet
        key = f"real {column.title} {fingerprint(judged, repr((column, distance)))}"
        if key not in cache.cells:
            cache.keep(key, judging.real_figures(column, distance=distance))
        results.real[column.title] = cache.cells[key]
        cells = [(system, cell) for system in systems for cell in methods_of(system.pipe.config, column)]
        for system, cell in progress_bar(cells, column.title, unit="cell"):
            metadata = repr((cell, distance, protocol.shown, system.pipe.device, machine()))
            key = f"{system.name} {cell.method} {column.title} {fingerprint(system.fingerprint, judged, metadata)}"
            if "ms" not in cache.cells.get(key, {}):
                cache.keep(key, *system.measure(cell, judging, protocol))
            place = system.name, cell.method, column.title
            results.cells[place] = cache.cells[key]
            if (image := cache.image(key)).exists():
                results.images[place] = image
