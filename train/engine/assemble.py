"""Training states → models: the resampler that a denoiser trains on, and the pipeline that is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from r2id.config import Defaults, PipelineConfig, Training
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.pipeline import Pipeline
from r2id.resamplers import RESAMPLERS
from r2id.schedule import Schedule
from train.engine.state import State, load_state


def resampler_of(state: State) -> tuple[Any, type[nn.Module]]:
    """The configuration of a resampler's run, and the type of its model."""
    config_type, model_type = RESAMPLERS[state.metadata["recipe"]["architecture"]]
    return from_dict(config_type, state.metadata["model"], "resampler state"), model_type


def trained_resampler(folder: Path) -> tuple[State, nn.Module]:
    """The newest state of a resampler's run, and the model with its averaged weights. Raises ValueError for none."""
    state = load_state(folder)
    if state is None:
        raise ValueError(f"{folder}: no trained resampler; run python -m train.train_resampler first")
    config, model_type = resampler_of(state)
    resampler = model_type(config).eval()
    resampler.load_state_dict(state.part("ema"))
    return state, resampler


def build_pipeline(stage_1: State | None, metadata: dict, denoiser_tensors: dict[str, Tensor]) -> Pipeline:
    """The resampler's state (None: pixel space), the denoiser's `metadata` and its weights → a pipeline on the CPU."""
    recipe, shape_sampler = metadata["recipe"], metadata["recipe"]["shape_sampler"]
    config_type, model_type = DENOISERS[recipe["architecture"]]
    denoiser_config = from_dict(config_type, metadata["model"], "denoiser state")
    resampler_config, resampler_type = resampler_of(stage_1) if stage_1 else (None, None)
    channels = resampler_config.channels if stage_1 else denoiser_config.latent_channels
    stages = [stage_1.metadata, metadata] if stage_1 else [metadata]
    first = stages[0]  # it saw the images
    cost = [stage.get("cost") for stage in stages]
    beyond = first["recipe"].get("outside_fraction", first["background"])  # whether there is anything beyond the frame
    own = first["recipe"].get("native_aspect", False)
    max_aspect = shape_sampler["max_aspect"] if own or shape_sampler["p_square"] < 1 else 1.0
    config = PipelineConfig(
        architecture=recipe["architecture"],
        labels=tuple(metadata["labels"]),
        channels=channels,
        background=tuple(first["background"] or (0.0,) * channels),
        encoder_size=first["recipe"].get("encoder_size") or first["recipe"]["training_size"],
        decoder_size=first["recipe"].get("decoder_size") or first["recipe"]["training_size"],
        trained_cells=tuple(shape_sampler["cells"]),
        trained_aspects=(1 / max_aspect, max_aspect),
        size_multiple=denoiser_config.size_multiple,
        fit="contain" if beyond else "cover",
        latent_mean=tuple(metadata["latent_mean"]),
        latent_std=tuple(metadata["latent_std"]),
        schedule=from_dict(Schedule, recipe["schedule"], "denoiser state: schedule"),
        defaults=from_dict(Defaults, recipe.get("defaults", {}), "denoiser state: defaults"),
        resampler=resampler_config,
        denoiser=denoiser_config,
        training=Training(**{key: sum(part[key] for part in cost) for key in cost[0]}) if all(cost) else None,
    )
    resampler, denoiser = resampler_config and resampler_type(resampler_config), model_type(denoiser_config)
    if resampler:
        resampler.load_state_dict(stage_1.part("ema"))
    denoiser.load_state_dict(denoiser_tensors)
    return Pipeline(config, resampler, denoiser, device="cpu")
