"""Finished runs without training: states of a pipeline's weights, with all that training writes beside them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from PIL import Image

from r2id import Pipeline
from train.data.buckets import ShapeSampler
from train.engine.recipe import (
    DenoiserOptimisation,
    DenoiserPhase,
    DenoiserRecipe,
    ResamplerOptimisation,
    ResamplerPhase,
    ResamplerRecipe,
)
from train.engine.state import State, save_state

STEPS = 30
COST = {"images": 1234, "steps": STEPS, "operations": 5e12, "seconds": 90.0}


def finished_run(folder: Path, pipe: Pipeline, *, step: int = STEPS, data: str = "owner/images") -> Path:
    """A run of STEPS steps, exported after `step` of them; its averaged weights are the pipeline's. → its folder."""
    config, pixels = pipe.config, pipe.resampler is None
    shared = {"name": "small", "data": data}
    shape_sampler = ShapeSampler(cells=config.trained_cells, p_square=1.0 if pixels else 0.5)
    recipes = {}

    def optimised(kind, phase):
        return kind(phases=(phase(10, (2e-3, 1e-3)), phase(STEPS - 10, (1e-3, 1e-5))), batch=6)

    if not pixels:
        recipes["resampler"] = ResamplerRecipe(
            **shared,
            optimisation=optimised(ResamplerOptimisation, ResamplerPhase),
            encoder_size=config.encoder_size,
            decoder_size=config.decoder_size,
            shape_sampler=shape_sampler,
            model=config.resampler,
        )
    recipes["denoiser"] = DenoiserRecipe(
        **shared,
        optimisation=optimised(DenoiserOptimisation, DenoiserPhase),
        architecture=config.architecture,
        pixels=pixels,
        training_size=config.encoder_size if pixels else None,
        shape_sampler=shape_sampler,
        schedule=config.schedule,
        model=config.denoiser,
        defaults=config.defaults,
    )
    for stage, recipe in recipes.items():
        model = getattr(pipe, stage)
        metadata = {
            "step": step,
            "cost": COST,
            "recipe": asdict(recipe),
            "model": asdict(model.config),
            "labels": config.labels,
            "background": config.background,
            "latent_mean": config.latent_mean,
            "latent_std": config.latent_std,
            "images": 64,
            "resampler_step": None if pixels else step,
        }
        save_state(folder / stage, State({f"ema.{key}": value for key, value in model.state_dict().items()}, metadata))
    for step_shown in (10, 20, STEPS):
        Image.new("L", (step_shown, 1)).save(folder / "denoiser" / f"samples-{step_shown:06d}.png")
    return folder
