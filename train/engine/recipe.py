"""Recipes: TOML files read into frozen dataclasses, those of the models and those of training, which are here."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from r2id.config import Defaults
from r2id.cross_attention_resampler import CrossAttentionR2IRConfig
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.limits import check_choice
from r2id.resampler import R2IRConfig
from r2id.sampler import SAMPLERS
from r2id.schedule import Schedule
from train.data.buckets import ShapeSampler
from train.data.fonts import CAPITALS

DEVIATIONS = ("channel", "shared")
PRECISIONS = ("float32", "bfloat16", "auto")
CACHED = ("float16", "bfloat16")
TIMES = ("uniform", "logit-normal")


@dataclass(frozen=True)
class Phase:
    """A stretch of training: the learning rate falls along a cosine from rate[0] to rate[1]."""

    steps: int
    rate: tuple[float, float]
    cells: tuple[int, int] | None = None  # of a latent's side, in place of the recipe's
    ema: float | None = None  # decay of the averaged weights, in place of the recipe's
    # Share of the averaged weights that it began with in those that it ends with (network interpolation of Wang et al.
    # 2018): what a critic adds is detail and artefacts, and of the second more goes again.
    kept: float = 0.0

    @property
    def partial(self) -> bool:
        """Whether some of the model's parameters get no gradient."""
        return False

    @property
    def from_average(self) -> bool:
        """Whether it begins with the averaged weights, not the last ones."""
        return self.partial


@dataclass(frozen=True)
class AutoEncoderPhase(Phase):
    """What phases of both resamplers have. decoder_only: latents stay what they are."""

    decoder_only: bool = False

    @property
    def partial(self) -> bool:
        return self.decoder_only


@dataclass(frozen=True)
class ResamplerPhase(AutoEncoderPhase):
    """Decoded points against the image: see `ResamplerLoss`. latent_noise: of normal noise on the latents that are
    decoded, the largest standard deviation in their root mean square, so that a denoiser's small errors do not show.
    perceptual: weight of the distance in features of ImageNet, see `PerceptualLoss`. adversarial: weight of a critic of
    patches, see `AdversarialLoss`. lattice: in place of the recipe's; with either of these the side of the window that
    is compared, in pixels, a multiple of 32."""

    latent_noise: float = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    lattice: int | None = None


@dataclass(frozen=True)
class CrossAttentionPhase(AutoEncoderPhase):
    """Pixels are random ones of each image, 0 for all. consistency: see `CrossAttentionLoss`."""

    pixels_in: int = 0
    pixels_out: int = 0
    consistency: float = 0.0


@dataclass(frozen=True)
class DenoiserPhase(Phase):
    """Predictions on noisy latents: see `DenoiserLoss`. guide_only: the model's guide learns them, and nothing else."""

    guide_only: bool = False

    @property
    def partial(self) -> bool:
        return self.guide_only


@dataclass(frozen=True)
class RolloutPhase(Phase):
    """Images generated through the sampler: see `RolloutLoss`. Latents of `distill_cells` a side, where given, shall be
    denoised as they were when the phase began."""

    distill_cells: tuple[int, int] | None = None

    @property
    def from_average(self) -> bool:
        return True


@dataclass(frozen=True)
class Optimisation:
    """How any model is trained."""

    phases: tuple[Phase, ...]
    batch: int = 48  # images a step, over all processes
    accumulate: int = 1  # parts, one after another, of each process's share: less memory, the same step
    compile: bool = False  # the model's blocks, by torch.compile, once for all shapes; that takes a minute
    precision: str = "float32"  # of products; "auto" times both on this machine when training begins
    seed: int = 0
    warmup: int = 100  # steps over which the rate rises from 0
    weight_decay: float = 0.01
    beta2: float = 0.99
    # Of the rate at which Muon (Jordan et al. 2024) trains the matrices of the model's blocks, to that of AdamW, which
    # trains all else. 0: AdamW trains all.
    muon: float = 0.0
    clip: float = 1.0  # of the gradient's norm
    ema: float = 0.999  # decay of the averaged weights
    evaluate_every: int = 500  # steps
    save_every: float = 120.0  # seconds

    def __post_init__(self):
        if not self.phases or min(phase.steps for phase in self.phases) < 1:
            raise ValueError("phases: there must be at least one, each of 1 step or more")
        if not all(0 <= phase.kept < 1 for phase in self.phases):
            raise ValueError("phases: kept must be at least 0 and less than 1")
        if self.batch < 1 or self.accumulate < 1:
            raise ValueError(f"batch {self.batch}, accumulate {self.accumulate}: must be 1 or more")
        check_choice(self.precision, "precision", PRECISIONS)

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, float]:
        """The phase of a step (from 0) and its learning rate."""
        start = 0
        for phase in self.phases:
            if step < start + phase.steps:
                break
            start += phase.steps
        high, low = phase.rate
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / phase.steps)))
        return phase, rate * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True)
class ResamplerOptimisation(Optimisation):
    """With phases of an `R2IR`."""

    phases: tuple[ResamplerPhase, ...]


@dataclass(frozen=True)
class CrossAttentionOptimisation(Optimisation):
    """With phases of a `CrossAttentionR2IR`."""

    phases: tuple[CrossAttentionPhase, ...]


@dataclass(frozen=True)
class DenoiserOptimisation(Optimisation):
    """With phases of a denoiser."""

    phases: tuple[DenoiserPhase, ...]


@dataclass(frozen=True)
class RolloutConfig:
    """How rollout phases, which follow all others, generate and compare. Guidance holds within the interval of the
    recipe's [defaults]."""

    phases: tuple[RolloutPhase, ...] = ()
    critics: int = 2  # classifiers, of the architecture and the data of the one that evaluates, from other seeds
    epochs: int = 5  # of their training
    images: int = 240  # of a step, at most; as many of each label
    cells: int = 10240  # of a step, at most, unless two images a label have more
    steps: tuple[int, int] = (6, 10)  # of DPM-Solver++, from fewest to most, chosen anew every step
    guidance: tuple[float, float] = (1.5, 1.9)  # likewise
    learned: tuple[float, float] = (0.3, 0.92)  # t of the calls that learn: those before give noise, those after detail
    real: int = 256  # real images a label that the generated ones are compared with
    distill_weight: float = 10.0  # of the mean square of what predictions at a phase's distill_cells have moved
    hinge_weight: float = 0.3  # of what the critics' logits for the label lack to be 1 above all others


@dataclass(frozen=True)
class CacheConfig:
    """Latents that are encoded once, of all images, and read from the run's folder in every step. Their frames have
    the shape of their cells."""

    cells: tuple[tuple[int, int], ...]  # (height, width) of each size; a step takes one of them
    dtype: str = "float16"

    def __post_init__(self):
        if not self.cells or min(map(min, self.cells)) < 1:
            raise ValueError(f"cells {self.cells}: give at least one (height, width), 1 or more each")
        check_choice(self.dtype, "dtype", CACHED)


@dataclass(frozen=True)
class ResamplerRecipe:
    """Of R2IR. Densities are in pixels on the short side of the frame."""

    name: str  # of the run: states go to runs/NAME/resampler
    optimisation: ResamplerOptimisation
    architecture: str = "r2ir"
    data: str = "ylecun/mnist"
    encoder_size: int = 32  # density of what the encoder sees: area means of what the decoder is asked for
    decoder_size: int = 32  # density of the decoder's targets, a multiple of encoder_size
    native_aspect: bool = False  # images keep their aspect ratios, with a short side of decoder_size or less
    glyphs: str = CAPITALS  # of fonts
    lattice: int = 72  # rows, and columns, that are decoded of each image
    outside_fraction: float = 0.125  # share of them around the frame; 0 for sets without a known background
    shape_sampler: ShapeSampler = field(default_factory=ShapeSampler)
    model: R2IRConfig = field(default_factory=R2IRConfig)

    def __post_init__(self):
        if self.decoder_size % self.encoder_size:
            raise ValueError(
                f"decoder_size {self.decoder_size}: must be a multiple of encoder_size {self.encoder_size}"
            )
        if bool(self.outside_fraction) != bool(self.model.border_rings):
            raise ValueError(
                f"outside_fraction {self.outside_fraction:g}, model.border_rings {self.model.border_rings}: "
                "both are 0 where the data have no known background, else neither"
            )
        if self.native_aspect and self.decoder_size > self.encoder_size:
            raise ValueError("native_aspect: needs decoder_size and encoder_size to be the same")
        for number, phase in enumerate(self.optimisation.phases):
            lattice = phase.lattice or self.lattice
            name = "perceptual" if phase.perceptual else "adversarial" if phase.adversarial else None
            if name and (lattice % 32 or lattice > self.decoder_size):
                most = f"at most decoder_size, {self.decoder_size}"
                raise ValueError(f"phases[{number}].lattice {lattice}: {name} needs a multiple of 32, {most}")
            if name and (self.native_aspect or self.shape_sampler.p_square < 1):
                raise ValueError(f"phases[{number}].{name}: needs square frames; set shape_sampler.p_square = 1")

    @property
    def needs_background(self) -> bool:
        return bool(self.outside_fraction) or (self.shape_sampler.p_square < 1 and not self.native_aspect)


@dataclass(frozen=True)
class CrossAttentionRecipe:
    """Of the resampler that was published, whose pixels and cells attend to each other."""

    name: str  # of the run: states go to runs/NAME/resampler
    optimisation: CrossAttentionOptimisation
    architecture: str = "r2ir-cross-attention"
    data: str = "ylecun/mnist"
    training_size: int = 32
    native_aspect: bool = False  # images keep their aspect ratios, with a short side of training_size or less
    jitter: str = "true"
    pre_tanh_l2: float = 0.003  # on the mean square before tanh, so that tanh stays unsaturated
    outside_fraction: float = 0.125  # share of the points out around the frame; 0 for sets without a known background
    linear_codec_steps: int = 1500  # in which the model's linear codec is fitted before all else
    shape_sampler: ShapeSampler = field(default_factory=ShapeSampler)
    model: CrossAttentionR2IRConfig = field(default_factory=CrossAttentionR2IRConfig)

    @property
    def needs_background(self) -> bool:
        return bool(self.outside_fraction) or (self.shape_sampler.p_square < 1 and not self.native_aspect)


@dataclass(frozen=True)
class DenoiserRecipe:
    name: str  # of the run: states go to runs/NAME/denoiser, the resampler comes from runs/NAME/resampler
    optimisation: DenoiserOptimisation
    data: str = "ylecun/mnist"
    architecture: str = "r2id"
    pixels: bool = False  # pixel space: no resampler, the latent is the image
    training_size: int | None = None  # of the images, with `pixels` only: else it is the resampler's
    label_dropout: float = 0.12
    deviation: str = "channel"  # that latents are divided by: each channel's own, or "shared" by all
    warm_start: float = 0.0  # share of the steps that begin from the recurrent state of a pass without gradient
    times: str = "uniform"  # how often each noise level is trained: see `DenoiserLoss`
    noise_per_image: int = 1  # of time and noise for each image of a step, which is encoded once for all of them
    # Of all draws. Large latents take fewer images a step than `batch`, so that they cost no more. None: a batch at the
    # default size.
    cells_a_step: int | None = None
    mirror: bool = False  # each image of a step or its mirror image, by chance
    mirror_labels: dict[str, str] = field(default_factory=dict)  # labels that change places when an image is mirrored
    ordered_labels: tuple[str, ...] = ()  # labels along a scale, at equal distances: blends mean what lies between
    cache_latents: CacheConfig | None = None  # None: images are encoded when a step needs them
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    # None: any latent size, or in pixel space that of the square training image alone
    shape_sampler: ShapeSampler | None = None
    schedule: Schedule = field(default_factory=Schedule)
    model: Any = field(default_factory=dict)  # the denoiser's own configuration, as `DENOISERS` names it
    defaults: Defaults = field(default_factory=Defaults)  # of sampling, exported with the weights

    def __post_init__(self):
        check_choice(self.architecture, "architecture", DENOISERS)
        check_choice(self.deviation, "deviation", DEVIATIONS)
        check_choice(self.times, "times", TIMES)
        if isinstance(self.model, dict):
            object.__setattr__(self, "model", from_dict(DENOISERS[self.architecture][0], self.model, "model"))
        if self.pixels != (self.training_size is not None):
            raise ValueError(f"training_size {self.training_size}: give it with pixels = true, and only then")
        if self.noise_per_image < 1:
            raise ValueError(f"noise_per_image {self.noise_per_image}: must be 1 or more")
        if self.mirror_labels and not self.mirror:
            raise ValueError("mirror_labels: need mirror = true")
        if bool(getattr(self.model, "guide", None)) != any(phase.guide_only for phase in self.optimisation.phases):
            raise ValueError("model.guide: learns in phases with guide_only = true; give both or neither")
        if not 0 <= self.warm_start <= 1:
            raise ValueError(f"warm_start {self.warm_start}: must be 0…1")
        if self.shape_sampler is None:
            size = self.training_size
            one = ShapeSampler(cells=(size, size), p_square=1.0, p_anisotropic=0.0) if self.pixels else ShapeSampler()
            object.__setattr__(self, "shape_sampler", one)
        size_multiple = self.model.size_multiple
        sizes = {"shape_sampler": self.shape_sampler.cells, "defaults.latent_size": self.defaults.latent_size}
        sizes |= {f"phases[{i}]": shape_sampler_of(self, phase).cells for i, phase in enumerate(self.phases)}
        if self.cache_latents:
            sizes |= {f"cache_latents.cells[{i}]": cells for i, cells in enumerate(self.cache_latents.cells)}
        for where, cells in sizes.items():
            if any(side % size_multiple for side in cells):
                raise ValueError(
                    f"{where}: cells {cells} must be multiples of {size_multiple}, the model's size_multiple"
                )
        check_choice(self.defaults.sampler, "defaults.sampler", SAMPLERS)

    @property
    def phases(self) -> tuple[DenoiserPhase | RolloutPhase, ...]:
        return (*self.optimisation.phases, *self.rollout.phases)


RESAMPLER_RECIPES = {"r2ir": ResamplerRecipe, "r2ir-cross-attention": CrossAttentionRecipe}


def shape_sampler_of(recipe: ResamplerRecipe | CrossAttentionRecipe | DenoiserRecipe, phase: Phase) -> ShapeSampler:
    """The recipe's, with the phase's cells where it has its own."""
    return replace(recipe.shape_sampler, cells=phase.cells) if phase.cells else recipe.shape_sampler


def read_resampler_recipe(path: str | Path, settings: Sequence[str] = ()) -> ResamplerRecipe | CrossAttentionRecipe:
    """The recipe of a resampler, of the kind that its key `architecture` names ("r2ir" without one)."""
    architecture = read_values(path, settings).get("architecture", "r2ir")
    check_choice(architecture, f"{path}: architecture", RESAMPLER_RECIPES)
    return read_recipe(RESAMPLER_RECIPES[architecture], path, settings)


def read_recipe(kind: type, path: str | Path, settings: Sequence[str] = ()):
    """A TOML file as `kind`, with settings such as "model.width=128" in place of its own. Raises ValueError, one line,
    for a file that is missing, malformed or has unknown keys, and for a setting that is or does."""
    values = read_values(path, settings)
    return from_dict(kind, values, " ".join([str(path), *(f"--set {setting}" for setting in settings)]))


def read_values(path: str | Path, settings: Sequence[str]) -> dict[str, Any]:
    """A TOML file with the settings in place of its own."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); train/configs/ has the recipes") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from None
    for setting in settings:
        put(values, setting)
    return values


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
