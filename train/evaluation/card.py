"""The model card of exported weights: README.md with the Hub's front matter, every line of it taken from the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w
from huggingface_hub import ModelCardData

from r2id.config import PipelineConfig
from r2id.dataclass_io import from_dict
from r2id.hub import HUB_ID
from r2id.pipeline import Pipeline
from train.engine.recipe import (
    RESAMPLER_RECIPES,
    CrossAttentionRecipe,
    DenoiserRecipe,
    ResamplerRecipe,
    read_recipe,
)
from train.evaluation.tables import JUDGED

CONFIGS = Path(__file__).parents[1] / "configs"
Recipe = ResamplerRecipe | CrossAttentionRecipe | DenoiserRecipe
COLOURS = {1: "grey", 3: "colour"}
MAX_LABELS = 20  # that are listed
MAX_ROWS = 12  # of a table that is shown


@dataclass(frozen=True)
class Origin:
    """Where weights come from: what a card says beside what the pipeline itself knows."""

    folder: Path  # of the weights; its name is the model's
    hub_id: str | None  # where it is uploaded to
    stages: dict[str, dict]  # stage → `metadata` of its state
    licence: str | None  # identifier of the Hub's list; None: not said
    samples: int | None  # step of the sample sheet samples.png in the folder; None: there is none
    report: dict | None  # what `train.evaluate` wrote of these very weights

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def model_card(pipe: Pipeline, origin: Origin) -> str:
    """README.md of a folder of weights. Raises ValueError for a report that is none."""
    recipes = {stage: recipe_of(stage, metadata["recipe"]) for stage, metadata in origin.stages.items()}
    sections = [
        front_matter(pipe.config, origin, recipes),
        f"# {origin.name}",
        *introduction(pipe, origin),
        use(pipe, origin),
        *data(pipe.config, origin, recipes),
        *recipe_section(pipe, origin, recipes),
    ]
    if origin.report is not None:
        try:
            sections += figures(origin.report, origin.folder, recipes["denoiser"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"report.json: not one of train/evaluate.py ({error!r}); measure again") from error
    sections += [own_recipe(stage, recipe) for stage, recipe in recipes.items() if not shipped(recipe)]
    return "\n\n".join(sections) + "\n"


def recipe_of(stage: str, values: dict) -> Recipe:
    kind = DenoiserRecipe if stage == "denoiser" else RESAMPLER_RECIPES[values["architecture"]]
    return from_dict(kind, values, f"{stage} state")


def front_matter(config: PipelineConfig, origin: Origin, recipes: dict) -> str:
    tags = ["diffusion", "image-generation", config.architecture]
    if config.resampler:
        tags += ["resolution-invariant", "arbitrary-scale"]
    sets = dict.fromkeys(recipe.data for recipe in recipes.values() if is_hub_id(recipe.data))
    metadata = ModelCardData(
        license=origin.licence,
        library_name="r2id",
        pipeline_tag="unconditional-image-generation",  # the Hub has none for labels
        tags=tags,
        datasets=list(sets) or None,
    )
    return f"---\n{metadata.to_yaml()}\n---"


def introduction(pipe: Pipeline, origin: Origin) -> Iterator[str]:
    """What it is: the first lines of the systems' own descriptions, a sheet of samples, sizes and cost."""
    config = pipe.config
    parts = {"denoiser": pipe.denoiser} | ({"resampler": pipe.resampler} if pipe.resampler else {})
    yield "\n".join(f"- {description(type(part))}" for part in parts.values())
    if origin.samples is not None:
        steps = origin.stages["denoiser"]["step"]
        yield f"![Samples](samples.png)\n\n*Generated while training, after step {origin.samples:,} of {steps:,}.*"
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    low, high = config.trained_aspects
    cells = " to ".join(dict.fromkeys(str(count) for count in config.trained_cells))
    defaults, latent = config.defaults, f"{config.latent_channels} channels, {cells} cells a side"
    labels = [*config.labels[:MAX_LABELS], "…"] if len(config.labels) > MAX_LABELS else config.labels
    rows = {
        "parameters": ", ".join(f"{count:,} ({name})" for name, count in counts.items()),
        "images": f"{COLOURS.get(config.channels, config.channels)}, {config.encoder_size} pixels on the short side",
        "frames": f"width / height {low:.4g} to {high:.4g}" if low < high else "square",
        "latents": latent if config.resampler else f"the images themselves, {cells} pixels a side",
        "labels": f"{len(config.labels)}: {', '.join(labels)}" if labels else "none",
        "sampling": f"{defaults.steps} steps of {defaults.sampler}, guidance {defaults.guidance:g}, "
        f"latent {defaults.latent_size[0]} × {defaults.latent_size[1]}",
        "training": format_cost(asdict(config.training)) if config.training else "its cost was not counted",
    }
    yield table(("", ""), rows.items())


def use(pipe: Pipeline, origin: Origin) -> str:
    label = json.dumps(pipe.labels[0], ensure_ascii=False) if pipe.labels else None
    source, pinned = f"weights/{origin.name}", ""
    if origin.hub_id:
        source = origin.hub_id
        pinned = "\n\nWith `revision=`, a commit or a tag, what is uploaded later changes nothing for you."
    return f"""## Use

```python
from r2id import Pipeline
from r2id.image import to_pil

pipe = Pipeline.from_pretrained({json.dumps(source)})
latent = pipe.diffuse([{label}], seed=0)  # once
for size in ((64, 64), (256, 256), (180, 320)):  # (height, width)
    to_pil(pipe.resample(latent, size=size)[0]).save(f"{{size[0]}}x{{size[1]}}.png")
```{pinned}"""


def data(config: PipelineConfig, origin: Origin, recipes: dict) -> Iterator[str]:
    lines = ["## Data\n"]
    for stage, recipe in recipes.items():
        where = f"`{recipe.data}`" if is_hub_id(recipe.data) else f"the local folder `{Path(recipe.data).name}`"
        count = origin.stages[stage].get("images")  # None for a stream
        size = f"{config.encoder_size} × {config.encoder_size}"
        if "resampler" in recipes and recipes["resampler"].native_aspect:
            size = f"at most {config.encoder_size} pixels on the short side, each in its own aspect ratio"
        lines.append(f"{where}: {f'{count:,} ' if count else ''}training images at {size} (bicubic, antialiased)")
    yield "\n".join(dict.fromkeys(lines))  # both stages usually have the same


def recipe_section(pipe: Pipeline, origin: Origin, recipes: dict) -> Iterator[str]:
    """The main figures of every stage, and the command lines that do it again."""
    lines, commands = [], []
    for number, (stage, recipe) in enumerate(recipes.items(), 1):
        name = "R2IR" if stage == "resampler" else type(pipe.denoiser).__name__
        lines.append(f"{number}. {name}: {'; '.join(summary(recipe, origin.stages[stage]))}.")
        file, local = shipped(recipe), not is_hub_id(recipe.data)
        path = f"train/configs/{file.name}" if file else f"{stage}.toml"
        other = file and read_recipe(type(recipe), file).data != recipe.data
        option = " --data PATH" if local else f" --data {recipe.data}" if other else ""
        commands.append(f"python -m train.train_{stage} --config {path}{option}")
    commands.append(f"python -m train.export runs/{recipe.name} weights/{origin.name}")
    yield "\n".join(["## Recipe\n", *lines])
    yield "\n".join(["```", *commands, "```"])
    if not all(map(shipped, recipes.values())):
        yield "Files named without a folder are at the end of this card."


def summary(recipe: Recipe, metadata: dict) -> Iterator[str]:
    optimisation, done = recipe.optimisation, metadata["step"]
    phases = recipe.phases if isinstance(recipe, DenoiserRecipe) else optimisation.phases
    total = sum(phase.steps for phase in phases)
    steps = f"{done:,} steps" if done == total else f"{done:,} of {total:,} steps"
    yield f"{steps} of up to {optimisation.batch} images, in {len(phases)} phase{'s' * (len(phases) > 1)}"
    rates = f"learning rate {phases[0].rate[0]:g} to {phases[-1].rate[1]:g}"
    yield f"AdamW, {rates}, weight decay {optimisation.weight_decay:g}, averaged weights of decay {optimisation.ema:g}"
    low, high = recipe.shape_sampler.cells
    yield f"latents of {low} to {high} cells a side" if low < high else f"latents of {low} cells a side"
    if isinstance(recipe, DenoiserRecipe):
        yield f"predicts {recipe.model.prediction_type}, {recipe.schedule.name} schedule"
        yield f"label dropout {recipe.label_dropout:g}"
    if cost := metadata.get("cost"):
        yield format_cost(cost)


def own_recipe(stage: str, recipe: Recipe) -> str:
    """A recipe that `train/configs` has not, without the place of local data."""
    public = recipe if is_hub_id(recipe.data) else replace(recipe, data=Path(recipe.data).name)
    return f"## {stage}.toml\n\n```toml\n{to_toml(asdict(public))}```"


def figures(report: dict, folder: Path, recipe: DenoiserRecipe) -> Iterator[str]:
    """The tables of a report, and those of its images that are in the folder."""
    setting = ", ".join(f"{key} {value}" for key, value in report["setting"].items() if key != "weights")
    yield f"## Figures\n\nBy `train.evaluate`: {setting}."
    if recipe.rollout.phases:
        yield JUDGED
    items = [item for section, items in report.items() if section not in ("setting", "protocol") for item in items]
    for item in items:
        title, rows = item["title"], item.get("rows", ())
        if "file" in item and (folder / item["file"]).is_file():
            yield f"![{title}]({item['file']})"
        elif len(rows) > MAX_ROWS:
            yield f"{title}: {len(rows)} rows in `report.json`."
        elif rows:
            yield f"{title}:\n\n{table(rows[0], (row.values() for row in rows))}"


def table(columns, rows) -> str:
    lines = [[cell(value) for value in row] for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def format_cost(cost: dict) -> str:
    work = f"{cost['operations'] / 1e12:,.3g} TFLOP forward and backward"
    return f"{cost['images']:,} images in {cost['steps']:,} steps, {work}, {cost['seconds'] / 60:,.1f} minutes"


def description(model_type: type) -> str:
    """The first line of the module that a model is in."""
    return sys.modules[model_type.__module__].__doc__.splitlines()[0]


def is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not os.path.isdir(name)


def shipped(recipe: Recipe) -> Path | None:
    """The file of `train/configs` that is this recipe, whatever the data."""
    for path in sorted(CONFIGS.glob("*.toml")):
        try:
            known = read_recipe(type(recipe), path)
        except ValueError:  # of another stage
            continue
        if replace(known, data=recipe.data) == recipe:
            return path
    return None


def to_toml(values: dict) -> str:
    """A recipe's values as a TOML file that `read_recipe` reads back; None is left out."""
    return tomli_w.dumps(without_none(values))


def without_none(value):
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, (list, tuple)) else value
