"""A report: sections of tables and sheets, printed, and written as report.json, report.md and images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from train.data.images import ImageSet, MissingSplit
from train.evaluation import detail, sections
from train.evaluation.protocol import Evaluation
from train.evaluation.tables import JUDGED, Note, Sheet, Table


def sheets(e: Evaluation) -> Iterator[Sheet]:
    yield from sections.sheets(e)
    yield from detail.detail_sheets(e)


SECTIONS: dict[str, Callable[[Evaluation], Iterator[Table | Sheet | Note]]] = {
    "reconstruction": sections.reconstruction,
    "consistency": sections.consistency,
    "accuracy": sections.read_as_label,
    "aspects": sections.aspects,
    "shape": sections.shape,
    "fidelity": sections.fidelity,
    "sampler": sections.sampler,
    "loss": sections.loss,
    "outline": detail.outline,
    "patches": detail.patches,
    "reader": detail.reader,
    "closest": detail.closest,
    "sheets": sheets,
}


def evaluate(e: Evaluation, chosen: Sequence[str], folder: Path, setting: dict) -> None:
    """Runs the sections; prints every table at once and rewrites the report after each section."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = ", ".join(f"{key} {value}" for key, value in setting.items())
    report, lines = {"setting": setting, "protocol": asdict(e.protocol)}, [f"# Evaluation\n\n{settings}\n\n{JUDGED}\n"]
    print(lines[0])
    for section in chosen:
        report[section] = []
        lines.append(f"## {section.capitalize()}\n")
        for item in SECTIONS[section](e):
            if isinstance(item, Sheet):
                item.image.save(folder / f"{item.name}.png")
            report[section].append(item.plain())
            lines.append(item.markdown() + "\n")
            print(lines[-1], flush=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def present_split(load: Callable[..., ImageSet], split: str) -> str:
    """The split, or "validation" for data without a test split, which is said."""
    try:
        load(split, limit=1)
    except MissingSplit as error:
        if split != "test":
            raise
        print(f"{error}. Measured on validation images, which choices were made by")
        return "validation"
    return split
