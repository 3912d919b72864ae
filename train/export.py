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
from r2id.pipeline import FORMAT, Defaults, Pipeline, PipelineConfig
from r2id.resampler import R2IR, R2IRConfig
from r2id.schedule import Schedule
from train.recipe import DenoiserRecipe, read_recipe
from train.state import State, load_state


def build_pipeline(stage_1: State, about: dict, denoiser_tensors: dict[str, Tensor]) -> Pipeline:
    """The resampler's state, the denoiser's `about` and its weights → a pipeline on the CPU."""
    recipe, law = about["recipe"], about["recipe"]["law"]
    first = stage_1.about["recipe"]
    config_type, model_type = SYSTEMS[recipe["system"]]
    background = stage_1.about["background"]
    widest = law["widest"] if law["square"] < 1 else 1.0
    resampler_config = from_dict(R2IRConfig, stage_1.about["model"], "resampler state")
    config = PipelineConfig(
        format=FORMAT,
        system=recipe["system"],
        labels=tuple(about["labels"]),
        channels=resampler_config.channels,
        background=tuple(background or (0.0,) * resampler_config.channels),
        training_size=first["training_size"],
        trained_cells=tuple(law["cells"]),
        trained_aspects=(1 / widest, widest),
        stride=1,
        fit="contain" if first["margin"] else "cover",
        latent_mean=tuple(about["latent_mean"]),
        latent_std=tuple(about["latent_std"]),
        schedule=from_dict(Schedule, recipe["schedule"], "denoiser state: schedule"),
        defaults=from_dict(Defaults, recipe.get("defaults", {}), "denoiser state: defaults"),
        resampler=resampler_config,
        denoiser=from_dict(config_type, about["model"], "denoiser state"),
    )
    resampler, denoiser = R2IR(resampler_config), model_type(config.denoiser)
    resampler.load_state_dict(stage_1.part("ema"))
    denoiser.load_state_dict(denoiser_tensors)
    return Pipeline(config, resampler, denoiser, device="cpu")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run, with resampler/ and denoiser/")
    parser.add_argument("weights", help="folder to write, such as weights/mnist")
    parser.add_argument("--config", help="denoiser recipe whose [defaults] to write; default: the run's own")
    args = parser.parse_args(argv)
    stages = {}
    for name in ("resampler", "denoiser"):
        stages[name] = load_state(Path(args.run) / name)
        if stages[name] is None:
            raise ValueError(f"{args.run}/{name}: no state there; train it first with train/train_{name}.py")
    resampler, denoiser = stages.values()
    about, step = denoiser.about, resampler.about["step"]
    if about["resampler_step"] != step:
        seen = f"the denoiser was trained on the resampler of step {about['resampler_step']}, the newest is {step}"
        raise ValueError(f"{args.run}: {seen}; train the denoiser again")
    if args.config:
        about["recipe"]["defaults"] = asdict(read_recipe(DenoiserRecipe, args.config).defaults)
    build_pipeline(resampler, about, denoiser.part("ema")).save(args.weights)
    print(f"{args.weights}: resampler step {step}, denoiser {about['step']}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
