"""What `train.evaluate` measures on: counts and sizes, and a pipeline with its real images, judge and latents.

One setting for a whole report: generated image i has label i mod K and seed i, under the configuration's default
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
from train.data.images import Glyphs, ImageSet
from train.engine.progress import progress_bar
from train.evaluation.classifier import Classifier, to_classifier_size
from train.evaluation.metrics import bring_to, mean_square, to_multiple
from train.evaluation.tables import check_match, name

FEW = 10  # times fewer images where an output has more than LARGE pixels a side
LARGE = 256
FINEST = 2  # times the density of the decoder's targets: the largest output, where they are denser than the images


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
    outline: int = 200  # letters against their outlines
    outline_cells: tuple[tuple[int, int], ...] = ((8, 8), (12, 12), (16, 16))
    outline_sizes: tuple[int, ...] = (512, 1024, 2048)  # the last is a multiple of all
    patch_densities: tuple[int, ...] = (1, 2)  # of outputs that patches are of, in those of the decoder's targets
    loss: int = 512  # images
    steps: tuple[int, ...] = (4, 8, 12, 20, 50)
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)


PROTOCOL = Protocol()


def in_cells(protocol: Protocol, config: PipelineConfig) -> Protocol:
    """The protocol without latents to diffuse that the denoiser was not trained at. Where targets are denser than the
    images, all outputs up to LARGE are means of the same points, so those above the images' own size are left out, and
    enlargements to more than FINEST times the targets."""
    fewest, most = config.trained_cells
    trained = tuple(cells for cells in protocol.generated_cells if fewest <= min(cells) <= max(cells) <= most)
    protocol, size = replace(protocol, generated_cells=trained or (config.defaults.latent_size,)), config.encoder_size
    if config.decoder_size == size:
        return protocol
    outputs = tuple(side for side in protocol.outputs if side <= size or side > LARGE)
    enlargements = tuple(n for n in protocol.enlargements if n * size <= FINEST * config.decoder_size)
    return replace(protocol, outputs=outputs, enlargements=enlargements)


def in_pixels(protocol: Protocol, config: PipelineConfig) -> Protocol:
    """The protocol for pixel space, where the latent is the image: half, once and twice the training size."""
    cells = tuple((to_multiple(config.encoder_size * factor, config.size_multiple),) * 2 for factor in (0.5, 1, 2))
    return replace(protocol, cells=cells, generated_cells=cells)


def generated(pipe: Pipeline, labels_N: Tensor, cells: tuple[int, int], **options) -> Iterator[Latent]:
    """Batches of latents: image i with label i and seed i. options: of `Pipeline.diffuse`."""
    for index, labels in enumerate(progress_bar(labels_N.split(BATCH), f"diffuse {name(cells)}")):
        yield pipe.diffuse(labels.tolist(), latent_size=cells, seed=index * BATCH, **options)


def encoded(pipe: Pipeline, images_NCHW: Tensor, cells: tuple[int, int]) -> Iterator[Latent]:
    """Batches of latents of images in [-1, 1]."""
    for part in progress_bar(images_NCHW.split(BATCH), f"encode {name(cells)}"):
        yield pipe.encode((part + 1) / 2, latent_size=cells)


@dataclass
class Evaluation:
    """A pipeline, real images, a judge, and what was generated so far: once for all sections."""

    pipe: Pipeline
    real: ImageSet
    load: Callable[..., ImageSet]  # (split, limit=) → other real images of the same sizes
    judge: Classifier
    protocol: Protocol

    def __post_init__(self):
        config, names = self.pipe.config, self.real.names
        self.size, self.base, self.latents = config.encoder_size, config.defaults.latent_size, {}
        self.images, self.reconstructions = {}, {}
        self.dense = config.decoder_size > config.encoder_size  # so that outputs below LARGE cost as much as LARGE
        self.background_C = torch.tensor(config.background)
        check_match(config, names, self.judge)
        if self.protocol.generated < 2 * len(names):
            raise ValueError(f"generated {self.protocol.generated}: must be {2 * len(names)} or more, 2 a label")

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(self.protocol.generated) % len(self.pipe.labels)

    @property
    def glyphs(self) -> Glyphs | None:
        """The real images as glyphs, which can be drawn at any size; None for other data."""
        return self.real.targets if isinstance(self.real.targets, Glyphs) else None

    def generated(self, cells: tuple[int, int], aspect: float | None = None, **options) -> list[Latent]:
        """Batches of latents by the protocol; aspect: frame width / height, that of the cells where None; options: of
        `Pipeline.diffuse`, in place of the configuration's."""
        key = (cells, aspect, *sorted(options.items()))
        if key not in self.latents:
            self.latents[key] = list(generated(self.pipe, self.labels_N, cells, aspect=aspect, **options))
        return self.latents[key]

    def encoded(self, images_NCHW: Tensor, cells: tuple[int, int]) -> Iterator[Latent]:
        return encoded(self.pipe, images_NCHW, cells)

    def seen(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] as the judge takes them, in [-1, 1]."""
        return to_classifier_size(images_BCHW * 2 - 1, self.judge.side)

    def resampled(self, latents: Iterable[Latent], size: tuple[int, int]) -> Iterator[Tensor]:
        return (self.pipe.resample(latent, size=size) for latent in progress_bar(latents, f"resample {name(size)}"))

    def at_training_size(self, cells: tuple[int, int], **options) -> Tensor:
        """Generated images (N, C, size, size) in [0, 1]; options: as in `generated`. Those without are kept."""
        if options or cells not in self.images:
            latents = self.generated(cells, **options)
            images_NCHW = torch.cat(list(self.resampled(latents, (self.size, self.size))))
            if options:
                return images_NCHW
            self.images[cells] = images_NCHW
        return self.images[cells]

    def judged(self, cells: tuple[int, int], side: int, **options) -> Tensor:
        """Generated images of side × side pixels as the judge takes them, a tenth where they are large. Those that cost
        as much as larger ones, of whose points they are means, are reduced from these."""
        if side == self.size or (self.dense and side < self.size):
            images_NCHW = self.at_training_size(cells, **options)
            return torch.cat([self.seen(bring_to(part, side)) for part in images_NCHW.split(BATCH)])
        latents = self.fewer(self.generated(cells, **options), side)
        return torch.cat([self.seen(image_BCHW) for image_BCHW in self.resampled(latents, (side, side))])

    def reconstructed(self, cells: tuple[int, int]) -> tuple[float, Tensor]:
        """The mean square error of decoded real images in [0, 1]; and as many of them as are generated, as the judge
        takes them."""
        if cells not in self.reconstructions:
            total, seen, truth = 0.0, [], self.real.images.split(BATCH)
            for latent, truth_BCHW in zip(self.encoded(self.real.images, cells), truth, strict=True):
                image_BCHW = self.pipe.resample(latent, size=(self.size, self.size))
                total += mean_square([(image_BCHW, (truth_BCHW + 1) / 2)]) * len(image_BCHW)
                seen.append(self.seen(image_BCHW))
            self.reconstructions[cells] = total / len(self.real), torch.cat(seen)[: self.protocol.generated]
        return self.reconstructions[cells]

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
