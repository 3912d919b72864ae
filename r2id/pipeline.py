"""Condition → latent (once) → as many images as you like: the public interface, its checks, device placement."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.checkpoint import (
    fetch,
    load_config,
    load_module,
    save_config,
    save_module,
)
from r2id.condition import mixture
from r2id.config import PipelineConfig
from r2id.cross_attention_resampler import DecoderContext
from r2id.denoisers import DENOISERS
from r2id.denoisers.output import DenoiserOutput
from r2id.image import as_images
from r2id.interpolation import Box, interpolate_tiles, resize, tile_boxes
from r2id.latent import Latent, check_latent
from r2id.limits import (
    MAX_ASPECT,
    MAX_BATCH,
    MAX_CELLS,
    MAX_GUIDANCE,
    MAX_PICTURE_CELLS,
    MAX_PIXELS,
    MAX_STEPS,
    check_cells,
    check_float,
    check_int,
    check_size,
    row_seeds,
)
from r2id.position import (
    FULL,
    Positions,
    Window,
    grid_positions,
    ipe_sigma_of,
    points_per_pixel,
    training_pitch,
    window_of,
)
from r2id.precision import decoder_dtype as choose_decoder_dtype
from r2id.resamplers import RESAMPLERS, architecture_of
from r2id.sampler import sample, solver_of

TILE_POINTS = {"cpu": 2**14, "other": 2**18}  # decoded at once, over the batch: bounds memory
MAX_POINTS = 2**20  # decoded at once where a single pixel is the mean of many
CACHED = 4  # latents whose memory is kept


@dataclass(frozen=True)
class DiffusionStep:
    """One step of `diffuse_steps`: index 1…steps, and the estimate of the result; the last one's is the result."""

    index: int
    steps: int
    latent: Latent


class Pipeline:
    """A denoiser and a resampler (None in pixel space) with the configuration that both were trained under."""

    def __init__(
        self,
        config: PipelineConfig,
        resampler: nn.Module | None,
        denoiser: nn.Module,
        *,
        device="auto",
        resampler_device=None,
        decoder_dtype="auto",
    ):
        own, labels, channels = config.denoiser, len(config.labels), config.latent_channels
        if (own.num_classes, own.latent_channels) != (labels, channels):
            has = f"{own.num_classes} labels and {own.latent_channels} channels"
            raise ValueError(f"denoiser of {has}: the configuration names {labels} and its latents have {channels}")
        if (resampler is None) != (config.resampler is None):
            raise ValueError("resampler: must be given where the configuration has one, and be None in pixel space")
        self.config = config
        self.device = _device(device)
        self.resampler_device = self.device if resampler_device is None else _device(resampler_device)
        self.resampler = resampler and resampler.eval().requires_grad_(False).to(self.resampler_device)
        self.denoiser = denoiser.eval().requires_grad_(False).to(self.device)
        self.decoder_dtype = choose_decoder_dtype(decoder_dtype, self.resampler_device)
        self._contexts: list[tuple[weakref.ref, int, float, DecoderContext]] = []

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, device="auto", resampler_device=None, decoder_dtype="auto", revision=None
    ) -> Pipeline:
        """A model from a folder, or from the Hub repository `owner/name`.

        device: "auto" takes CUDA, then MPS, then the CPU. decoder_dtype: of the products of each decoded pixel, "auto",
        "float32" or "bfloat16"; "auto" takes bfloat16 on CPUs that measure faster with it, which moves 8-bit images by
        at most 2/255. Raises ValueError, one line that names the file and the fault.
        """
        folder = fetch(path_or_id, revision)
        config = PipelineConfig.from_json(load_config(folder), folder / "config.json")
        denoiser_type = DENOISERS[config.architecture][1]
        denoiser = load_module(lambda: denoiser_type(config.denoiser), folder / "denoiser.safetensors")
        resampler = None
        if config.resampler:
            resampler_type = RESAMPLERS[architecture_of(config.resampler)][1]
            resampler = load_module(lambda: resampler_type(config.resampler), folder / "resampler.safetensors")
        devices = {"device": device, "resampler_device": resampler_device, "decoder_dtype": decoder_dtype}
        return cls(config, resampler, denoiser, **devices)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes what `from_pretrained` reads; dtype: of the weights in the files, None for theirs."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.resampler:
            save_module(self.resampler, Path(folder) / "resampler.safetensors", dtype)
        save_module(self.denoiser, Path(folder) / "denoiser.safetensors", dtype)
        save_config(folder, self.config.to_json())

    @property
    def labels(self) -> list[str]:
        return list(self.config.labels)

    @property
    def _most_cells(self) -> int:
        return MAX_CELLS if self.resampler else MAX_PICTURE_CELLS

    def _cells(self, latent_size) -> tuple[int, int]:
        size = self.config.defaults.latent_size if latent_size is None else latent_size
        return check_cells(size, self.config.size_multiple, self._most_cells)

    # diffuse

    def diffuse(self, labels, **options) -> Latent:
        """Labels → latents, one row each: the last step of `diffuse_steps`, which see for the options."""
        return deque(self.diffuse_steps(labels, **options), maxlen=1).pop().latent

    def diffuse_steps(
        self,
        labels,
        *,
        latent_size: tuple[int, int] | None = None,
        aspect: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        seed: int | Sequence[int] | None = None,
    ) -> Iterator[DiffusionStep]:
        """Labels (a list; each an index, a name, None or {label: weight}) → latents of latent_size = (h, w) cells.

        aspect: frame width / height, w / h of the cells where None. guidance: g of null + g·(cond - null), 1 for none,
        within guidance_interval in t. sampler: "dpm++" or "ddim"; eta above 0 with "ddim" only. seed: 0…2³²-1, row i
        uses seed + i; a list gives each row its own; None draws one. What is None otherwise follows `config.defaults`,
        whose guidance_interval is that of its own latent_size: here t is such that the noise is the same.
        Raises ValueError at once for anything out of range, and at a step whose result is NaN.
        """
        config, defaults = self.config, self.config.defaults
        rows = list(labels) if isinstance(labels, (list, tuple)) else [labels]
        if not 1 <= len(rows) <= MAX_BATCH:
            raise ValueError(f"{len(rows)} labels: must be 1…{MAX_BATCH}")
        weights = [mixture(label, config.labels) for label in rows]
        latent_size = self._cells(latent_size)
        aspect = check_float(
            latent_size[1] / latent_size[0] if aspect is None else aspect, "aspect", 1 / MAX_ASPECT, MAX_ASPECT
        )
        steps = check_int(defaults.steps if steps is None else steps, "steps", 1, MAX_STEPS)
        guidance = check_float(
            defaults.guidance if guidance is None else guidance, "guidance", -MAX_GUIDANCE, MAX_GUIDANCE
        )
        if guidance_interval is None:
            same = partial(config.schedule.time_at_equal_noise, cells=defaults.latent_size, at=latent_size)
            guidance_interval = tuple(map(same, defaults.guidance_interval))
        eta = check_float(eta, "eta", 0.0, 10.0)
        seeds = row_seeds(seed, len(rows))
        names = tuple(_named(row, config.labels) for row in weights)

        generators = [torch.Generator().manual_seed(s) for s in seeds]
        shape = (config.latent_channels, *latent_size)

        def noise() -> Tensor:  # by row and on the CPU, so that a seed means one picture whatever the batch and device
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

        mean, std = (
            torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (config.latent_mean, config.latent_std)
        )
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        with torch.no_grad():
            tokens = self.denoiser.condition(
                torch.tensor(weights, device=self.device).view(len(rows), len(config.labels))
            )
        path = sample(
            self._denoise,
            noise(),
            positions=self.positions(latent_size, aspect).to(self.device),
            tokens=tokens,
            times=times,
            alpha_bars=config.schedule.alpha_bar(times, cells=latent_size),
            prediction_type=self.denoiser.config.prediction_type,
            guidance=guidance,
            guidance_interval=guidance_interval,
            solver=solver_of(defaults.sampler if sampler is None else sampler, eta),
            clip=lambda x0: ((x0 * std + mean).clamp(-1, 1) - mean) / std,
            row_noise=noise,
        )

        def steps_of() -> Iterator[DiffusionStep]:
            for step in path:
                tensor = (step.x0 * std + mean).clamp(-1, 1).cpu()
                if tensor.isnan().any():
                    raise ValueError(f"step {step.index} of {step.steps}: the denoiser gave NaN; use other weights")
                yield DiffusionStep(step.index, step.steps, Latent(tensor, aspect, seeds, names))

        return steps_of()

    def _denoise(self, *inputs) -> DenoiserOutput:
        return self.denoiser(*inputs)

    def positions(self, latent_size: tuple[int, int], aspect: float) -> Positions:
        """The cells' centres, with the footprint that training's jitter gave them, in cells of its finest grid."""
        pitch = training_pitch(aspect, self.config.trained_cells[1])
        ipe_sigma = ipe_sigma_of(aspect, pitch, self.config.denoiser.jitter)
        return replace(grid_positions(latent_size, aspect), ipe_sigma=ipe_sigma)

    # resample

    def resample(self, latent: Latent, *, size: tuple[int, int], fit: str | None = None, region=FULL) -> Tensor:
        """Latents → images, float32 (B, C, H, W) in [0, 1] on the CPU, at size = (H, W).

        fit: which window of the frame's plane the whole picture shows ("contain", "cover", "stretch", "published");
        None is `config.fit`. region = (left, top, right, bottom) in fractions of the whole picture: that part of the
        picture of size (H / (bottom - top), W / (right - left)). Raises ValueError for anything out of range.
        """
        tiles = self.resample_tiles(latent, size=size, fit=fit, region=region)
        image_BCHW = torch.empty(len(latent), self.config.channels, *size)
        for (left, top, right, bottom), tile in tiles:
            image_BCHW[:, :, top:bottom, left:right] = tile
        return image_BCHW

    def resample_tiles(
        self, latent: Latent, *, size: tuple[int, int], fit: str | None = None, region=FULL
    ) -> Iterator[tuple[Box, Tensor]]:
        """The same in tiles of bounded memory, in reading order: ((left, top, right, bottom) in pixels, tile)."""
        window, (across, down) = self._window(latent, size, fit, region)
        height, width = map(int, size)
        if self.resampler is None:
            return self._interpolated(latent, window, (height, width))
        window, points = window.supersample((across, down)), (height * down, width * across)
        on = "cpu" if self.resampler_device.type == "cpu" else "other"
        budget = TILE_POINTS[on] // (len(latent) * across * down)
        background_C11 = torch.tensor(self.config.background).view(-1, 1, 1)
        inside = [
            (window.coordinates(axis, range(points[1 - axis])).abs() <= reach).float()
            for axis, reach in enumerate(self.resampler.reach(latent.size))
        ]

        @torch.no_grad()
        def tiles():
            decode = self.resampler.grid_decoder(self._context(latent), window, points, self.decoder_dtype)
            for left, top, right, bottom in tile_boxes((height, width), budget):
                down_range, across_range = range(top * down, bottom * down), range(left * across, right * across)
                tile = (decode(down_range, across_range).clamp(-1, 1).cpu() + 1) / 2
                part = [each[r.start : r.stop] for each, r in zip(inside, (across_range, down_range), strict=True)]
                if not all(each.all() for each in part):
                    tile = background_C11.lerp(tile, part[1][:, None] * part[0])
                if (across, down) != (1, 1):
                    tile = F.avg_pool2d(tile, (down, across))
                yield (left, top, right, bottom), tile

        return tiles()

    def _window(self, latent: Latent, size, fit: str | None, region) -> tuple[Window, tuple[int, int]]:
        """What `resample_tiles` decodes, checked, and how many points of each pixel, (across, down)."""
        latent = check_latent(latent, self.config.latent_channels, self._most_cells)
        height, width = check_size(size, images=len(latent))
        window = window_of(
            (height, width), aspect=latent.aspect, fit=self.config.fit if fit is None else fit, region=region
        )
        if self.resampler is None:
            return window, (1, 1)
        across, down = points_per_pixel(window, aspect=latent.aspect, decoder_size=self.config.decoder_size)
        points = len(latent) * across * down
        if points > MAX_POINTS or points * height * width > MAX_PIXELS:
            limits = f"at most {MAX_POINTS:,}, and {MAX_PIXELS:,} for all pixels"
            counted = f"{len(latent)} x {across * down:,} points decoded a pixel, {limits}"
            raise ValueError(f"size {height} x {width}: {counted}; ask for a larger size, another shape or fewer rows")
        return window, (across, down)

    def _interpolated(self, latent: Latent, window: Window, size: tuple[int, int]) -> Iterator[tuple]:
        """`resample_tiles` in pixel space."""
        if not window.framed:
            raise ValueError("fit 'published': needs a resampler, this model has none; use contain, cover or stretch")
        image_BChw, background_C = latent.tensor.clamp(-1, 1), torch.tensor(self.config.background) * 2 - 1
        boxes = tile_boxes(size, TILE_POINTS["other"] // len(latent))
        tiles = interpolate_tiles(image_BChw, window, width=size[1], background_C=background_C, boxes=boxes)
        return ((box, (tile + 1) / 2) for box, tile in tiles)

    def _context(self, latent: Latent) -> DecoderContext:
        """What decoding shares between tiles, sizes and calls, kept for the last few latents."""
        tensor = latent.tensor
        version = None if tensor.is_inference() else tensor._version  # None: changes would go unseen, never reused
        key = (version, latent.aspect)
        self._contexts = [entry for entry in self._contexts if entry[0]() is not None]
        for reference, *known, context in self._contexts:
            if reference() is tensor and tuple(known) == key and version is not None:
                return context
        context = self.resampler.prepare(tensor.to(self.resampler_device), latent.aspect)
        self._contexts = [(weakref.ref(tensor), *key, context), *self._contexts[: CACHED - 1]]
        return context

    # encode

    @torch.no_grad()
    def encode(self, image, *, latent_size: tuple[int, int] | None = None) -> Latent:
        """Images → latents: float (B, C, H, W) or (C, H, W) in [0, 1], or one or a list of PIL images of one size.

        The frame is the image's own. It is first brought to the density of the training images: area-reduced if it is
        denser, else interpolated; in pixel space the latent is the image resized with antialiasing.
        """
        config = self.config
        latent_size = self._cells(latent_size)
        image_BCHW = as_images(image, config.channels, config.background)
        height, width = image_BCHW.shape[2:]
        aspect = check_float(width / height, "image width / height", 1 / MAX_ASPECT, MAX_ASPECT)
        if self.resampler is None:
            return Latent(resize(image_BCHW * 2 - 1, latent_size), aspect)
        reduce, colour_BCHW = min(height, width) / config.encoder_size, image_BCHW * 2 - 1
        height, width = round(height / reduce), round(width / reduce)
        if reduce > 1:
            colour_BCHW = F.interpolate(colour_BCHW, size=(height, width), mode="area")
        colour_BCHW = resize(colour_BCHW, (height, width)).to(self.resampler_device)
        return Latent(self.resampler.encode_image(colour_BCHW, latent_size, aspect).cpu(), aspect)


def _device(device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); use auto or cpu") from None
    return device


def _named(weights: list[float], names: tuple[str, ...]):
    """Normalised weights as a label: its name, None, or {name: weight}."""
    named = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
    return next(iter(named), None) if len(named) < 2 else named
