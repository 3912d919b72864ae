"""What reports share: tables, sheets of images, the check that data, model and judge match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from r2id.config import PipelineConfig
from r2id.image import contact_sheet
from r2id.pipeline import Pipeline
from train.evaluation.classifier import Classifier

# Latent sizes on a sheet of samples, in eighths of the default's side
SAMPLED = ((4, 4), (8, 8), (12, 12), (5, 8), (8, 5))
JUDGED = (
    "Accuracy, Fréchet distance, KID and diversity are by the judge, a small classifier of this project. The critics of"
    " rollout phases have its architecture and its data, from other seeds: figures of weights trained by them flatter."
)
GAP, LETTERS = 4, 13  # pixels between images, of a line of text


@dataclass(frozen=True)
class Table:
    title: str
    columns: dict[str, str]  # name → format of its values
    rows: list[tuple]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[f.format(v) for f, v in zip(self.columns.values(), row, strict=True)] for row in self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def plain(self) -> dict:
        return {"title": self.title, "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows]}


@dataclass(frozen=True)
class Sheet:
    name: str
    title: str
    image: Image.Image

    def markdown(self) -> str:
        return f"{self.title}\n\n![{self.title}]({self.name}.png)"

    def plain(self) -> dict:
        return {"title": self.title, "file": f"{self.name}.png"}


@dataclass(frozen=True)
class Note:
    """What a report says in place of a table."""

    title: str

    def markdown(self) -> str:
        return self.title

    def plain(self) -> dict:
        return {"title": self.title}


def name(size: Sequence[int]) -> str:
    return f"{size[0]}×{size[1]}"


def check_match(config: PipelineConfig, names: tuple[str, ...], judge: Classifier) -> None:
    """Raises ValueError unless the model has the labels of the data, and the judge their number and the channels."""
    if names != config.labels:
        given, own = (", ".join(labels) or "none" for labels in (names, config.labels))
        raise ValueError(f"data with the labels {given}: the model's are {own}; give the data it was trained on")
    classes = judge.head[-1].out_features
    if (judge.channels, classes) != (config.channels, len(names)):
        has, needed = f"{judge.channels} channels, {classes} classes", f"{config.channels} and {len(names)}"
        raise ValueError(
            f"classifier has {has}, not {needed}; train one with python -m train.train_judge --data PATH --out FILE"
        )


def sample_sheet(pipe: Pipeline) -> Image.Image:
    """Ten labels at every size of SAMPLED, contained in 64 × 64."""
    labels = [i % max(1, len(pipe.labels)) if pipe.labels else None for i in range(10)]
    multiple, side, rows = pipe.config.size_multiple, max(pipe.config.defaults.latent_size) / 8, []
    for eighths in SAMPLED:
        size = tuple(max(1, round(side * n / multiple)) * multiple for n in eighths)
        rows += pipe.resample(pipe.diffuse(labels, latent_size=size, seed=0), size=(64, 64))
    return contact_sheet(rows, columns=10)


def titled_sheet(
    rows: Mapping[str, Sequence[Image.Image | None]], columns: Mapping[str, float], *, height: int
) -> Image.Image:
    """Rows of images with their titles before and the columns' above, on mid-grey; None leaves a place empty.

    columns: title → width / height of its places. Every image is shown `height` pixels high: enlarged with hard
    pixels, or area-reduced.
    """
    font = ImageFont.load_default(LETTERS)
    margin = 2 * GAP + max(round(font.getlength(title)) for title in rows)
    widths = [round(height * aspect) for aspect in columns.values()]
    lefts = [margin + sum(widths[:index]) + GAP * index for index in range(len(widths) + 1)]
    sheet = Image.new("RGB", (lefts[-1], 2 * GAP + LETTERS + (height + GAP) * len(rows)), "gray")
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, columns, strict=False):
        draw.text((left, GAP // 2), title, "white", font)
    for index, (title, images) in enumerate(rows.items()):
        top = 2 * GAP + LETTERS + (height + GAP) * index
        draw.text((GAP, top + (height - LETTERS) // 2), title, "white", font)
        for left, width, image in zip(lefts, widths, images, strict=False):
            if image is not None:
                method = Image.Resampling.NEAREST if image.height <= height else Image.Resampling.BOX
                sheet.paste(image.resize((width, height), method), (left, top))
    return sheet
