"""Condition → latent (once) → images of any size: the public interface, its checks, device placement."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.checkpoint import load_config, load_module, save_config, save_module
from r2id.condition import mixture, named
from r2id.config import PipelineConfig
from r2id.denoisers import DENOISERS
from r2id.denoisers.output import DenoiserOutput
from r2id.hub import fetch
from r2id.image import as_images
from r2id.interpolation import Box, interpolate_tiles, resize, tile_boxes
from r2id.latent import Latent, check_latent, check_noise
from r2id.limits import (
    MAX_ASPECT,
    MAX_CELLS,
    MAX_GUIDANCE,
    MAX_IMAGE_CELLS,
    MAX_STEPS,
    SEEDS,
    check_cells,
    check_float,
    check_int,
    check_interval,
    check_size,
    items_of,
    row_parts,
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
from r2id.precision import usable_device
from r2id.resamplers import RESAMPLERS, architecture_of
from r2id.sampler import SampleStep, sample, solver_of

TILE_POINTS = {"cpu": 2**14, "other": 2**18}  # decoded at once, over the batch: bounds memory
MAX_POINTS = 2**20  # decoded at once where a single pixel is the mean of many
BATCH_CELLS = 2**18  # denoised at once
ENCODED_PIXELS = 2**22  # encoded at once
CACHED = 4  # latents whose context is kept


@dataclass(frozen=True)
class DiffusionStep:
    """One step of `diffuse_steps`: index 1…steps, and the estimate of the result; the last one's is the result."""

    index: int
    steps: int
    latent: Latent


class Pipeline:
    """A `Denoiser` and a `Resampler` (None in pixel space) with the configuration that both were trained under."""

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
        self.device = usable_device(device)
        self.resampler_device = self.device if resampler_device is None else usable_device(resampler_device)
        self.resampler = resampler and resampler.eval().requires_grad_(False).to(self.resampler_device)
        self.denoiser = denoiser.eval().requires_grad_(False).to(self.device)
        self.decoder_dtype = choose_decoder_dtype(decoder_dtype, self.resampler_device)
        self._contexts: list[tuple[weakref.ref, int | None, float, Any]] = []

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
        """Names of the labels, in the order of their indices."""
        return list(self.config.labels)

    @property
    def _most_cells(self) -> int:
        return MAX_CELLS if self.resampler else MAX_IMAGE_CELLS

    def _cells(self, latent_size) -> tuple[int, int]:
        size = self.config.defaults.latent_size if latent_size is None else latent_size
        return check_cells(size, self.config.size_multiple, self._most_cells)

    # diffuse

    def diffuse(self, labels, **options) -> Latent:
        """Labels → latents, one row each: the last step of `diffuse_steps`, which has the options."""
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
        noise: Tensor | None = None,
    ) -> Iterator[DiffusionStep]:
        """Labels → latents of latent_size = (h, w) cells, after every step.

        labels: any number of them, as a list, range, array or tensor; each an index, a name, None for no label, or
            {label: weight}. One alone may be given without a list.
        aspect: frame width / height; default: w / h of the cells.
        guidance: g of null + g·(cond - null), 1 for none, within guidance_interval in t. null is the prediction of the
            denoiser's guide where it has one.
        sampler: "dpm++" or "ddim"; eta: noise added between steps, with "ddim" only.
        seed: 0…2³²-1, row i uses seed + i; a list gives each row its own; default: a random one.
        noise: float32 (B, C, h, w) to start from in place of the seeds', see `seed_noise`; the latents name no seeds.

        Arguments left None use `config.defaults`; its guidance interval is mapped to times of equal noise at the
        requested size. Raises ValueError at once for anything out of range, and at a step whose result is NaN.
        """
        config, defaults = self.config, self.config.defaults
        rows = [labels] if (items := items_of(labels)) is None else items
        if not rows:
            raise ValueError("0 labels: give one or more, None for no label")
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
            same_noise = partial(config.schedule.time_at_equal_noise, cells=defaults.latent_size, at=latent_size)
            guidance_interval = tuple(map(same_noise, defaults.guidance_interval))
        solver = solver_of(defaults.sampler if sampler is None else sampler, check_float(eta, "eta", 0.0, 10.0))
        seeds = row_seeds(seed, len(rows))
        if noise is not None:
            check_noise(noise, (len(rows), config.latent_channels, *latent_size))
        how = {"guidance": guidance, "guidance_interval": check_interval(guidance_interval), "solver": solver}
        return self._diffused(weights, noise, latent_size=latent_size, aspect=aspect, steps=steps, seeds=seeds, **how)

    def _diffused(
        self,
        weights: list,
        noise: Tensor | None,
        *,
        latent_size: tuple[int, int],
        aspect: float,
        steps: int,
        seeds: tuple[int, ...],
        **options,
    ) -> Iterator[DiffusionStep]:
        """`diffuse_steps` of checked arguments. weights: of the labels, a row each. options: of `sample`."""
        config, shape = self.config, (self.config.latent_channels, *latent_size)
        mean, std = (
            torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (config.latent_mean, config.latent_std)
        )
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        sample_rows = partial(
            sample,
            self.denoise,
            positions=self.positions(latent_size, aspect).to(self.device),
            times=times,
            alpha_bars=config.schedule.alpha_bar(times, cells=latent_size),
            prediction_type=config.denoiser.prediction_type,
            clip=lambda x0: ((x0 * std + mean).clamp(-1, 1) - mean) / std,
            **options,
        )

        def sampled(part: slice) -> Iterator[SampleStep]:
            generators = [torch.Generator().manual_seed(s) for s in seeds[part]]

            def fresh() -> Tensor:  # by row and on the CPU: a seed means one image whatever the batch and the device
                return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

            weights_BL = torch.tensor(weights[part], device=self.device).view(len(generators), len(config.labels))
            with torch.no_grad():
                tokens_BND = self.denoiser.condition(weights_BL)
            start_BChw = fresh() if noise is None else noise[part].to(self.device)
            return sample_rows(start_BChw, tokens=tokens_BND, row_noise=fresh)

        names = tuple(named(row, config.labels) for row in weights)
        parts = row_parts(len(weights), BATCH_CELLS // math.prod(latent_size))
        for batch in zip(*map(sampled, parts), strict=True):
            tensor = torch.cat([(step.x0 * std + mean).clamp(-1, 1).cpu() for step in batch])
            index = batch[0].index
            if tensor.isnan().any():
                raise ValueError(f"step {index} of {steps}: the denoiser gave NaN; use other weights")
            yield DiffusionStep(index, steps, Latent(tensor, aspect, seeds if noise is None else None, names))

    def seed_noise(self, seed: int, latent_size: tuple[int, int] | None = None) -> Tensor:
        """The noise (C, h, w) that `diffuse` starts from at this seed and latent_size."""
        generator = torch.Generator().manual_seed(check_int(seed, "seed", 0, SEEDS - 1))
        return torch.randn((self.config.latent_channels, *self._cells(latent_size)), generator=generator)

    def denoise(
        self,
        noisy_BChw: Tensor,
        alpha_bar_B: Tensor,
        positions: Positions,
        conditions: Sequence[Tensor | None],
        recurrent_state=None,
    ) -> DenoiserOutput:
        """Every call of the denoiser, with the arguments of `Denoiser`. A subclass may compute it elsewhere, or
        together with the calls of others."""
        return self.denoiser(noisy_BChw, alpha_bar_B, positions, conditions, recurrent_state)

    def positions(self, latent_size: tuple[int, int], aspect: float) -> Positions:
        """The cells' centres. Where training moved them by jitter, features average over it (ipe_sigma)."""
        pitch = training_pitch(aspect, self.config.trained_cells[1])
        ipe_sigma = ipe_sigma_of(aspect, pitch, self.config.denoiser.jitter)
        return replace(grid_positions(latent_size, aspect), ipe_sigma=ipe_sigma)

    # resample

    def resample(self, latent: Latent, *, size: tuple[int, int], fit: str | None = None, region=FULL) -> Tensor:
        """Latents → images, float32 (B, C, H, W) in [0, 1] on the CPU, at size = (H, W).

        fit: which window of the frame's plane the whole image shows ("contain", "cover", "stretch"); None is
        `config.fit`. region = (left, top, right, bottom) in fractions of the whole image: that part of the image
        of size (H / (bottom - top), W / (right - left)). Raises ValueError for anything out of range.
        """
        tiles = self.resample_tiles(latent, size=size, fit=fit, region=region)
        image_BCHW = torch.empty(len(latent), self.config.channels, *map(int, size))
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
        parts = row_parts(len(latent), MAX_POINTS // (across * down))
        budget = TILE_POINTS[on] // (parts[0].stop * across * down)
        background_C11 = torch.tensor(self.config.background).view(-1, 1, 1)
        inside = [
            (window.coordinates(axis, range(points[1 - axis])).abs() <= reach).float()
            for axis, reach in enumerate(self.resampler.reach(latent.size))
        ]

        @torch.no_grad()
        def tiles():
            rows = [latent] if len(parts) == 1 else [latent[part] for part in parts]
            decoders = [
                self.resampler.grid_decoder(self._context(part), window, points, self.decoder_dtype) for part in rows
            ]
            for left, top, right, bottom in tile_boxes((height, width), budget):
                down_range, across_range = range(top * down, bottom * down), range(left * across, right * across)
                part = [each[r.start : r.stop] for each, r in zip(inside, (across_range, down_range), strict=True)]
                tile_parts = []
                for decode in decoders:
                    tile = (decode(down_range, across_range).clamp(-1, 1).cpu() + 1) / 2
                    if not all(each.all() for each in part):
                        tile = background_C11.lerp(tile, part[1][:, None] * part[0])
                    tile_parts.append(tile if (across, down) == (1, 1) else F.avg_pool2d(tile, (down, across)))
                tile = tile_parts[0] if len(parts) == 1 else torch.cat(tile_parts)
                yield (left, top, right, bottom), tile

        return tiles()

    def decoded_points(self, latent: Latent, *, size: tuple[int, int], fit: str | None = None, region=FULL) -> int:
        """How many points `resample` decodes, of all rows. Raises ValueError as it does."""
        _, (across, down) = self._window(latent, size, fit, region)
        return len(latent) * math.prod(map(int, size)) * across * down

    def _window(self, latent: Latent, size, fit: str | None, region) -> tuple[Window, tuple[int, int]]:
        """The window that `resample_tiles` decodes, checked, and the points of each of its pixels, (across, down)."""
        config = self.config
        latent = check_latent(latent, config.latent_channels, self._most_cells)
        height, width = check_size(size)
        output_frame = getattr(config.resampler, "output_frame", False)
        window = window_of(
            (height, width),
            aspect=latent.aspect,
            fit=config.fit if fit is None else fit,
            region=region,
            output_frame=output_frame,
        )
        if self.resampler is None:
            return window, (1, 1)
        across, down = points_per_pixel(window, aspect=latent.aspect, decoder_size=config.decoder_size)
        if across * down > MAX_POINTS:
            counted = f"{across * down:,} points decoded a pixel, at most {MAX_POINTS:,}"
            raise ValueError(f"size {height} x {width}: {counted}; ask for a larger size or another shape")
        return window, (across, down)

    def _interpolated(self, latent: Latent, window: Window, size: tuple[int, int]) -> Iterator[tuple]:
        """`resample_tiles` in pixel space."""
        image_BChw, background_C = latent.tensor.clamp(-1, 1), torch.tensor(self.config.background) * 2 - 1
        boxes = tile_boxes(size, max(1, TILE_POINTS["other"] // len(latent)))
        tiles = interpolate_tiles(image_BChw, window, width=size[1], background_C=background_C, boxes=boxes)
        return ((box, (tile + 1) / 2) for box, tile in tiles)

    def _context(self, latent: Latent) -> Any:
        """What decoding shares between tiles, sizes and calls; cached for the last few latents."""
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
        reduce = min(height, width) / config.encoder_size
        if self.resampler:
            height, width = round(height / reduce), round(width / reduce)

        def encoded(image_BCHW: Tensor) -> Tensor:
            colour_BCHW = image_BCHW * 2 - 1
            if self.resampler is None:
                return resize(colour_BCHW, latent_size)
            if reduce > 1:
                colour_BCHW = F.interpolate(colour_BCHW, size=(height, width), mode="area")
            colour_BCHW = resize(colour_BCHW, (height, width)).to(self.resampler_device)
            return self.resampler.encode_image(colour_BCHW, latent_size, aspect).cpu()

        parts = row_parts(len(image_BCHW), ENCODED_PIXELS // (height * width))
        latents = [encoded(image_BCHW[part]) for part in parts]
        return Latent(latents[0] if len(parts) == 1 else torch.cat(latents), aspect)
