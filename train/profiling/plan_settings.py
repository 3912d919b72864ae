"""Rules of thumb: what to change in a pair of recipes to train at another size of image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from r2id.limits import MAX_CELLS
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe, ResamplerRecipe

LABELS = 10
ALL_PIXELS = 2**16  # as many cross-attention can see while training, of a larger image some
SOME_PIXELS = 2**14
HEAD_WIDTH = 32
MOST_CELLS = math.isqrt(MAX_CELLS)  # on a side
PIXELS_A_CELL = {ResamplerRecipe: 16, CrossAttentionRecipe: 8}  # on its side, of those that the encoder sees
MOST_HARMONICS = 8  # coefficients grow as their square

SAMPLED = "from half to twice the usual latent's side"
HEADS = f"{HEAD_WIDTH} channels each"
PARTS = "the fewest parts whose memory is within the budget"
PER_CELL = "grows with the pixels on a cell's side"
HARMONICS = f"half a wave is a pixel, but at most {MOST_HARMONICS}"
SHARED = {
    "shape_sampler.cells": SAMPLED,
    "model.width": PER_CELL,
    "model.heads": HEADS,
    "model.latent_channels": "a cell holds more: grow with the root of the pixels on its side",
}
RULES = {
    ResamplerRecipe: {
        "decoder_size": "the images' side",
        "encoder_size": "as many times smaller as before",
        **SHARED,
        "model.encoder_harmonics": HARMONICS,
        "model.octaves": "grow with the cells on a side",
        "optimisation.accumulate": PARTS,
    },
    CrossAttentionRecipe: {
        "training_size": "the images' side",
        **SHARED,
        "model.harmonics": HARMONICS,
        "model.octaves": "half a wave of the last is a pixel",
        "optimisation.phases.N.pixels_in": f"all (0) up to {ALL_PIXELS:,}; of more, {SOME_PIXELS:,} at random",
        "optimisation.phases.N.pixels_out": "grow with the side, at most 4,096",
        "optimisation.accumulate": PARTS,
    },
    DenoiserRecipe: {
        "shape_sampler.cells": SAMPLED,
        "cells_a_step": "as many images a step as before",
        "defaults.latent_size": f"16 pixels a cell, with cross-attention 8; at most {MOST_CELLS} cells on a side",
        "model.width": "grows with the root of the cells on a side",
        "model.heads": HEADS,
        "model.octaves": "grow with the cells on a side",
        "optimisation.accumulate": PARTS,
    },
}

AnyResampler = ResamplerRecipe | CrossAttentionRecipe


def sides_of(recipe: AnyResampler) -> tuple[int, int]:
    """Pixels on the side of an image, as the decoder is asked for it and as the encoder sees it."""
    if isinstance(recipe, CrossAttentionRecipe):
        return recipe.training_size, recipe.training_size
    return recipe.decoder_size, recipe.encoder_size


def adapted(first: AnyResampler, second: DenoiserRecipe, size: int) -> tuple[AnyResampler, DenoiserRecipe]:
    """The recipes for images of size × size. Raises ValueError for a size that their densities do not divide."""
    decoder_size, encoder_size = sides_of(first)
    factor = decoder_size // encoder_size
    if size % factor:
        raise ValueError(f"--plan {size}: must be a multiple of {factor}, the recipe's decoder_size / encoder_size")
    base, seen = max(second.defaults.latent_size), size // factor
    cells = min(MOST_CELLS, max(base, seen // PIXELS_A_CELL[type(first)]))
    before, after = encoder_size / base, seen / cells  # pixels on a cell's side
    shape_sampler = (max(1, cells // 2), min(MOST_CELLS, 2 * cells))
    if cells == base:
        samplers = first.shape_sampler, second.shape_sampler
    else:
        samplers = (replace(recipe.shape_sampler, cells=shape_sampler) for recipe in (first, second))
    first_sampler, second_sampler = samplers
    channels = first.model.latent_channels
    channels = channels if after == before else multiple(channels * math.sqrt(after / before), 8)
    shared = wider(first.model.width, after / before) | {"latent_channels": channels}
    if isinstance(first, CrossAttentionRecipe):
        first = of_cross_attention(first, size, shared, after / before)
    else:
        model = replace(
            first.model,
            **shared,
            encoder_harmonics=harmonics(first.model.encoder_harmonics, after / before),
            octaves=octaves(first.model.octaves, cells / base),
        )
        first = replace(first, decoder_size=size, encoder_size=seen, model=model)
    first = replace(first, shape_sampler=first_sampler)
    second = replace(
        second,
        model=replace(
            second.model,
            **wider(second.model.width, math.sqrt(cells / base)),
            octaves=octaves(second.model.octaves, cells / base),
            latent_channels=channels,
            num_classes=LABELS,
        ),
        shape_sampler=second_sampler,
        cells_a_step=second.cells_a_step and second.cells_a_step * cells**2 // base**2,
        defaults=replace(second.defaults, latent_size=(cells, cells)),
    )
    return first, second


def images_of_step(recipe: AnyResampler | DenoiserRecipe) -> int:
    """How many a step takes, a denoiser's at its default size."""
    batch = recipe.optimisation.batch
    if not isinstance(recipe, DenoiserRecipe) or not recipe.cells_a_step:
        return batch
    of_image = recipe.noise_per_image * math.prod(recipe.defaults.latent_size)
    return max(1, min(batch, recipe.cells_a_step // of_image))


def of_cross_attention(first: CrossAttentionRecipe, size: int, shared: dict, ratio: float) -> CrossAttentionRecipe:
    """shared: settings of the model; ratio: of the pixels on a cell's side to those before."""
    before = first.training_size
    pixels_in = 0 if size**2 <= ALL_PIXELS else SOME_PIXELS
    model = replace(
        first.model,
        **shared,
        harmonics=harmonics(first.model.harmonics, ratio),
        octaves=octaves(first.model.octaves, size / before),
    )
    phases = tuple(
        replace(
            phase,
            pixels_in=phase.pixels_in if size == before else pixels_in,
            pixels_out=phase.pixels_out and min(4096, round(phase.pixels_out * size / before)),
        )
        for phase in first.optimisation.phases
    )
    return replace(first, training_size=size, model=model, optimisation=replace(first.optimisation, phases=phases))


def multiple(value: float, of: int) -> int:
    return max(1, round(value / of)) * of


def wider(width: int, ratio: float) -> dict[str, int]:
    if ratio == 1:
        return {"width": width}
    width = multiple(width * ratio, HEAD_WIDTH)
    return {"width": width, "heads": width // HEAD_WIDTH}


def harmonics(old: int, ratio: float) -> int:
    return max(old, min(MOST_HARMONICS, round(old * ratio)))


def octaves(old: tuple[int, int], ratio: float) -> tuple[int, int]:
    return old[0], old[1] + math.ceil(math.log2(ratio))


def rules_of(recipe: AnyResampler | DenoiserRecipe) -> Iterator[tuple[str, str]]:
    """The settings of a stage and their rules, N being every phase."""
    for key, why in RULES[type(recipe)].items():
        phases = range(len(recipe.optimisation.phases)) if ".N." in key else (0,)
        yield from ((key.replace(".N.", f".{phase}."), why) for phase in phases)


def at(recipe: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        recipe = recipe[int(name)] if name.isdecimal() else getattr(recipe, name)
    return recipe


def toml(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
