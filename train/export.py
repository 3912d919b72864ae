"""Training state → weights: `python train/export.py runs/mnist weights/mnist` writes what `Pipeline.from_pretrained`
reads, from the averaged weights of the newest states."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from r2id.checkpoint import from_dict
from r2id.denoisers import SYSTEMS
from r2id.pipeline import FORMAT, Defaults, Pipeline, PipelineConfig, Training
from r2id.resampler import R2IR, R2IRConfig
from r2id.schedule import Schedule
from train.recipe import DenoiserRecipe, read_recipe
from train.state import State, load_state


def build_pipeline(stage_1: State | None, about: dict, denoiser_tensors: dict[str, Tensor]) -> Pipeline:
    """The resampler's state (None: pixel space), the denoiser's `about` and its weights → a pipeline on the CPU."""
    recipe, law = about["recipe"], about["recipe"]["law"]
    config_type, model_type = SYSTEMS[recipe["system"]]
    denoiser_config = from_dict(config_type, about["model"], "denoiser state")
    resampler_config = stage_1 and from_dict(R2IRConfig, stage_1.about["model"], "resampler state")
    channels = resampler_config.channels if stage_1 else denoiser_config.latent_channels
    stages = [stage_1.about, about] if stage_1 else [about]
    first = stages[0]  # it saw the pictures
    spent = [stage.get("spent") for stage in stages]
    beyond = first["recipe"].get("margin", first["background"])  # whether there is anything beyond the frame
    widest = law["widest"] if law["square"] < 1 else 1.0
    config = PipelineConfig(
        format=FORMAT,
        system=recipe["system"],
        labels=tuple(about["labels"]),
        channels=channels,
        background=tuple(first["background"] or (0.0,) * channels),
        training_size=first["recipe"]["training_size"],
        trained_cells=tuple(law["cells"]),
        trained_aspects=(1 / widest, widest),
        stride=denoiser_config.stride,
        fit="contain" if beyond else "cover",
        latent_mean=tuple(about["latent_mean"]),
        latent_std=tuple(about["latent_std"]),
        schedule=from_dict(Schedule, recipe["schedule"], "denoiser state: schedule"),
        defaults=from_dict(Defaults, recipe.get("defaults", {}), "denoiser state: defaults"),
        resampler=resampler_config,
        denoiser=denoiser_config,
        training=Training(**{key: sum(part[key] for part in spent) for key in spent[0]}) if all(spent) else None,
    )
    resampler, denoiser = resampler_config and R2IR(resampler_config), model_type(denoiser_config)
    if resampler:
        resampler.load_state_dict(stage_1.part("ema"))
    denoiser.load_state_dict(denoiser_tensors)
    return Pipeline(config, resampler, denoiser, device="cpu")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run, with denoiser/ and, but in pixel space, resampler/")
    parser.add_argument("weights", help="folder to write, such as weights/mnist")
    parser.add_argument("--config", help="denoiser recipe whose [defaults] to write; default: the run's own")
    args = parser.parse_args(argv)
    denoiser = newest_state(args.run, "denoiser")
    about = denoiser.about
    resampler = None
    if (trained_on := about["resampler_step"]) is not None:
        resampler = newest_state(args.run, "resampler")
        if trained_on != (step := resampler.about["step"]):
            seen = f"the denoiser was trained on the resampler of step {trained_on}, the newest is {step}"
            raise ValueError(f"{args.run}: {seen}; train the denoiser again")
    if args.config:
        about["recipe"]["defaults"] = asdict(read_recipe(DenoiserRecipe, args.config).defaults)
    build_pipeline(resampler, about, denoiser.part("ema")).save(args.weights)
    print(f"{args.weights}: resampler step {about['resampler_step']}, denoiser {about['step']}")


def newest_state(run: str, stage: str) -> State:
    state = load_state(Path(run) / stage)
    if state is None:
        raise ValueError(f"{run}/{stage}: no state there; train it first with train/train_{stage}.py")
    return state


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
