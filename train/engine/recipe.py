"""Recipes: TOML files read into the frozen dataclasses that the models and the loop use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from r2id.checkpoint import from_dict
from r2id.config import Defaults
from r2id.denoisers import SYSTEMS
from r2id.resampler import R2IRConfig
from r2id.sampler import SAMPLERS
from r2id.schedule import Schedule
from train.data.buckets import Law
from train.engine.loop import TRACKERS, Optimisation, Phase
from train.losses.rollout import Drawing

FRAMES = ("square", "own")
DEVIATIONS = ("channel", "shared")


@dataclass(frozen=True)
class ResamplerRecipe:
    name: str  # of the run: states go to runs/NAME/resampler
    optimisation: Optimisation
    data: str = "ylecun/mnist"
    training_size: int = 32
    frames: str = "square"  # or "own": pictures keep their aspect ratios, a short side of training_size or less
    jitter: str = "true"
    penalty: float = 0.003  # on the mean square before tanh, so that tanh stays unsaturated
    margin: float = 0.125  # share of the points out around the frame; 0 for sets without a known background
    direct_steps: int = 1500  # in which the model's direct path is fitted before all else
    law: Law = field(default_factory=Law)
    model: R2IRConfig = field(default_factory=R2IRConfig)

    def __post_init__(self):
        if self.frames not in FRAMES:
            raise ValueError(f"frames {self.frames!r}: must be one of {', '.join(FRAMES)}")


@dataclass(frozen=True)
class DenoiserRecipe:
    name: str  # of the run: states go to runs/NAME/denoiser, the resampler comes from runs/NAME/resampler
    optimisation: Optimisation
    data: str = "ylecun/mnist"
    system: str = "r2id"
    pixels: bool = False  # pixel space: no resampler, the latent is the picture
    training_size: int | None = None  # of the pictures, with `pixels` only: else it is the resampler's
    label_dropout: float = 0.12
    deviation: str = "channel"  # that latents are divided by: each channel's own, or "shared" by all
    warm_start: float = 0.0  # share of the steps that begin from the carry of a pass without gradient
    draws: int = 1  # of time and noise for each image of a step, which is encoded once for all of them
    # Of all draws. Large latents take fewer images a step than `batch`, so that they cost no more. None: a batch at the
    # default size.
    cells_a_step: int | None = None
    drawing: Drawing = field(default_factory=Drawing)  # of drawn phases
    law: Law | None = None  # None: any latent size, or in pixel space the square training picture alone
    schedule: Schedule = field(default_factory=Schedule)
    model: Any = field(default_factory=dict)  # the system's own configuration, as `SYSTEMS` names it
    defaults: Defaults = field(default_factory=Defaults)  # of sampling, exported with the weights

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise ValueError(f"system {self.system!r}: must be one of {', '.join(SYSTEMS)}")
        if self.deviation not in DEVIATIONS:
            raise ValueError(f"deviation {self.deviation!r}: must be one of {', '.join(DEVIATIONS)}")
        if isinstance(self.model, dict):
            object.__setattr__(self, "model", from_dict(SYSTEMS[self.system][0], self.model, "model"))
        if self.pixels != (self.training_size is not None):
            raise ValueError(f"training_size {self.training_size}: give it with pixels = true, and only then")
        if self.draws < 1:
            raise ValueError(f"draws {self.draws}: must be 1 or more")
        if not 0 <= self.warm_start <= 1:
            raise ValueError(f"warm_start {self.warm_start}: must be 0…1")
        if self.law is None:
            size = self.training_size
            law = Law(cells=(size, size), square=1.0, skewed=0.0) if self.pixels else Law()
            object.__setattr__(self, "law", law)
        stride = self.model.stride
        sizes = {"law": self.law.cells, "defaults.latent_size": self.defaults.latent_size}
        sizes |= {f"phases[{i}]": law_of(self, phase).cells for i, phase in enumerate(self.optimisation.phases)}
        for where, cells in sizes.items():
            if any(side % stride for side in cells):
                raise ValueError(f"{where}: cells {cells} must be multiples of {stride}, the model's stride")
        if self.defaults.sampler not in SAMPLERS:
            raise ValueError(f"defaults.sampler {self.defaults.sampler!r}: must be one of {', '.join(SAMPLERS)}")


def law_of(recipe: ResamplerRecipe | DenoiserRecipe, phase: Phase) -> Law:
    """The recipe's law, with the phase's cells where it has its own."""
    return replace(recipe.law, cells=phase.cells) if phase.cells else recipe.law


def read_recipe(kind: type, path: str | Path, settings: Sequence[str] = ()):
    """A TOML file as `kind`, with settings such as "model.width=128" in place of its own. Raises ValueError, one line,
    for a file that is missing, malformed or has unknown keys, and for a setting that is or does."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); train/configs/ has the recipes") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from None
    for setting in settings:
        put(values, setting)
    return from_dict(kind, values, " ".join([str(path), *(f"--set {setting}" for setting in settings)]))


def put(values: dict, setting: str) -> None:
    """Puts "dotted.key=VALUE" into the values of a TOML file: VALUE is TOML too, the items of a list go by number."""
    key, equals, text = (part.strip() for part in setting.partition("="))
    if not (key and equals):
        raise ValueError(f"--set {setting}: must be KEY=VALUE, such as model.width=128")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ValueError(f"--set {setting}: not a TOML value; text needs quotes: --set '{key}=\"{text}\"'") from None
    *path, last = key.split(".")
    at: Any = values
    for depth, name in enumerate([*path, last]):
        above = ".".join(path[:depth])
        if isinstance(at, list):
            if not name.isdecimal() or int(name) >= len(at):
                raise ValueError(f"--set {setting}: {above} has {len(at)} items, so a number from 0 must follow")
            name = int(name)
        elif not isinstance(at, dict):
            raise ValueError(f"--set {setting}: {above} is {at!r}, nothing can follow it")
        if depth == len(path):
            at[name] = value
        else:
            at = at[name] if isinstance(at, list) else at.setdefault(name, {})


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="recipe, a file of train/configs/")
    parser.add_argument("--data", help="Hub id, folder of parquet files or folder of images; default: the recipe's")
    parser.add_argument("--from", dest="start", metavar="WEIGHTS", help="exported weights that a new run begins with")
    parser.add_argument("--stream", action="store_true", help="read shards while training: sets larger than the disk")
    parser.add_argument("--out", help="folder of the run; default: runs/NAME. Give the same one to resume")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in place of the recipe's, as TOML: model.width=128, optimisation.phases.0.steps=100. Repeatable",
    )
    parser.add_argument("--track", default="tensorboard", choices=TRACKERS, help="where metrics go (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="measure a few steps, print the cost, write nothing")
    return parser
