"""Recipes: TOML files read into the frozen dataclasses that the models and the loop use."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from r2id.checkpoint import from_dict
from r2id.denoisers import SYSTEMS
from r2id.denoisers.r2id import R2IDConfig
from r2id.pipeline import Defaults
from r2id.resampler import R2IRConfig
from r2id.sampler import SAMPLERS
from r2id.schedule import Schedule
from train.loop import Optimisation
from train.losses import Law


@dataclass(frozen=True)
class ResamplerRecipe:
    name: str  # of the run: states go to runs/NAME/resampler
    optimisation: Optimisation
    data: str = "ylecun/mnist"
    training_size: int = 32
    jitter: str = "true"
    penalty: float = 0.003  # on the mean square before tanh, so that tanh stays unsaturated
    margin: float = 0.125  # share of the points out around the frame; 0 for sets without a known background
    law: Law = field(default_factory=Law)
    model: R2IRConfig = field(default_factory=R2IRConfig)


@dataclass(frozen=True)
class DenoiserRecipe:
    name: str  # of the run: states go to runs/NAME/denoiser, the resampler comes from runs/NAME/resampler
    optimisation: Optimisation
    data: str = "ylecun/mnist"
    system: str = "r2id"
    label_dropout: float = 0.12
    cells_a_step: int = 6144  # large latents take fewer images a step than `batch`, so that they cost no more
    law: Law = field(default_factory=Law)
    schedule: Schedule = field(default_factory=Schedule)
    model: R2IDConfig = field(default_factory=R2IDConfig)
    defaults: Defaults = field(default_factory=Defaults)  # of sampling, exported with the weights

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise ValueError(f"system {self.system!r}: must be one of {', '.join(SYSTEMS)}")
        if self.defaults.sampler not in SAMPLERS:
            raise ValueError(f"defaults.sampler {self.defaults.sampler!r}: must be one of {', '.join(SAMPLERS)}")


def read_recipe(kind: type, path: str | Path):
    """A TOML file as `kind`. Raises ValueError, one line, for a file that is missing, malformed or has unknown keys."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); train/configs/ has the recipes") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from None
    return from_dict(kind, values, path)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="recipe, a file of train/configs/")
    parser.add_argument("--data", help="Hub id, folder of parquet files or folder of images; default: the recipe's")
    parser.add_argument("--out", help="folder of the run; default: runs/NAME. Give the same one to resume")
    return parser
