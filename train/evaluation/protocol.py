"""What `train.evaluate` measures on: counts and sizes, and a pipeline with its real images, judge and latents.

One setting for a whole report: generated picture i has label i mod K and seed i, under the configuration's default
steps, guidance and sampler. The validation split is for choices, the test split for reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r2id.config import PipelineConfig
from r2id.limits import BATCH
from r2id.pipeline import Latent, Pipeline
from train.data.images import ImageSet
from train.evaluation.classifier import Classifier, to_classifier_size
from train.evaluation.metrics import to_multiple
from train.evaluation.tables import check_match, name, progress

FEW = 10  # times fewer pictures where an output has more than LARGE pixels a side
LARGE = 256


@dataclass(frozen=True)
class Protocol:
    """Counts and sizes of a report. Cells are (height, width), ratios width : height."""

    generated: int = 2000
    cells: tuple[tuple[int, int], ...] = ((4, 4), (6, 6), (8, 8), (10, 10), (12, 12), (16, 16), (6, 9), (9, 6))
    inputs: tuple[float, ...] = (0.5, 0.75, 1.5, 2)  # sizes of images to encode, of the training size
    generated_cells: tuple[tuple[int, int], ...] = ((4, 4), (6, 6), (8, 8), (10, 10), (12, 12), (16, 16))
    outputs: tuple[int, ...] = (12, 16, 28, 32, 64, 128, 256, 1024)
    ratios: tuple[tuple[int, int], ...] = (
        *((9, 16), (2, 3), (3, 4), (4, 5), (1, 1)),
        *((5, 4), (4, 3), (3, 2), (16, 9)),
    )
    enlargements: tuple[int, ...] = (2, 4, 8, 32)  # of the training size
    consistency: int = 200  # images
    loss: int = 512  # images
    steps: tuple[int, ...] = (4, 8, 12, 20, 50)
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)


PROTOCOL = Protocol()


def in_cells(protocol: Protocol, config: PipelineConfig) -> Protocol:
    """The protocol without latents to diffuse that the denoiser was not trained at."""
    fewest, most = config.trained_cells
    trained = tuple(cells for cells in protocol.generated_cells if fewest <= min(cells) <= max(cells) <= most)
    return replace(protocol, generated_cells=trained or (config.defaults.latent_size,))


def in_pixels(protocol: Protocol, config: PipelineConfig) -> Protocol:
    """The protocol for pixel space, where the latent is the picture: half, once and twice the training size."""
    cells = tuple((to_multiple(config.encoder_size * factor, config.size_multiple),) * 2 for factor in (0.5, 1, 2))
    return replace(protocol, cells=cells, generated_cells=cells)


@dataclass
class Evaluation:
    """A pipeline, real images, a judge, and the latents diffused so far: each is diffused once for all sections."""

    pipe: Pipeline
    real: ImageSet
    load: Callable[..., ImageSet]  # (split, limit=) → other real images of the same size
    judge: Classifier
    protocol: Protocol

    def __post_init__(self):
        config, names = self.pipe.config, self.real.names
        self.size, self.base, self.latents = config.encoder_size, config.defaults.latent_size, {}
        self.background_C = torch.tensor(config.background)
        check_match(config, names, self.judge)
        if self.protocol.generated < 2 * len(names):
            raise ValueError(f"generated {self.protocol.generated}: must be {2 * len(names)} or more, 2 a label")

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(self.protocol.generated) % len(self.pipe.labels)

    def generated(self, cells: tuple[int, int], aspect: float | None = None, **options) -> list[Latent]:
        """Batches of latents by the protocol; aspect: frame width / height, that of the cells where None; options: of
        `Pipeline.diffuse`, in place of the configuration's."""
        key = (cells, aspect, *sorted(options.items()))
        if key not in self.latents:
            batches = self.labels_N.split(BATCH)
            self.latents[key] = [
                self.pipe.diffuse(labels.tolist(), latent_size=cells, aspect=aspect, seed=index * BATCH, **options)
                for index, labels in enumerate(progress(batches, f"diffuse {name(cells)}"))
            ]
        return self.latents[key]

    def encoded(self, images_NCHW: Tensor, cells: tuple[int, int]) -> Iterator[Latent]:
        for part in progress(images_NCHW.split(BATCH), f"encode {name(cells)}"):
            yield self.pipe.encode((part + 1) / 2, latent_size=cells)

    def judged(self, latents: Iterable[Latent], size: tuple[int, int]) -> Tensor:
        """Latents → their pictures of `size`, as the judge takes them, in [-1, 1]."""
        pictures = (self.pipe.resample(latent, size=size) for latent in progress(latents, f"resample {name(size)}"))
        return torch.cat([to_classifier_size(picture * 2 - 1) for picture in pictures])

    def fewer(self, latents: list[Latent], side: int) -> list[Latent]:
        """The first of them, a tenth, for a large output."""
        if side <= LARGE:
            return latents
        rows = [latent[i] for latent in latents for i in range(len(latent))]
        return rows[: -(-len(rows) // FEW)]

    def frames(self, ratio: tuple[int, int]) -> list[tuple[int, int]]:
        """The cells that are diffused at a ratio: the default's number on the short side, and on the long side."""
        size_multiple, wide, side = self.pipe.config.size_multiple, ratio[0] / ratio[1], max(self.base)
        every = [
            tuple(to_multiple(side * bound(1, v), size_multiple) for v in (1 / wide, wide)) for bound in (max, min)
        ]
        return list(dict.fromkeys(every))
