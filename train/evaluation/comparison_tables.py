"""Tables, plot and sheet of a comparison, from the figures of its cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from train.evaluation.methods import Column
from train.evaluation.tables import JUDGED, Sheet, Table, titled_sheet

METHODS = ("native", "shaped", "resized")
HEIGHT = 96  # pixels of an image on the sheet
# How far a native image may be from the resized one: parts, width / height, size, share read as the label
PARTS, SHAPE, SCALE, READ = 1.3, 1.15, 1.25, 0.1


@dataclass
class Results:
    """Figures and images of the cells, by (system, method, column title), and of real images, by column title.

    systems: name → what it is and what it cost to train; the first is the reference.
    """

    systems: dict[str, dict[str, Any]]
    columns: list[Column]
    training_size: int
    cells: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    images: dict[tuple[str, str, str], Path] = field(default_factory=dict)
    real: dict[str, dict[str, float]] = field(default_factory=dict)

    def place(self, system: str, method: str, column: Column) -> tuple[str, str, str]:
        """A cell's key. At the training size the resized image is the native one."""
        as_trained = column.aspect == 1 and column.side == self.training_size
        return system, "native" if as_trained and method == "resized" else method, column.title

    def cell(self, system: str, method: str, column: Column) -> dict[str, Any]:
        """A cell's figures, "time" among them: its ms, had matrix products always run at their median rate."""
        cell = self.cells.get(self.place(system, method, column), {})
        return cell | {"time": cell["ms"] * cell["product_gflops"] / self.product_rate()} if "ms" in cell else cell

    def rows(self) -> list[tuple[str, str]]:
        """Systems and their methods."""
        measured = {place[:2] for place in self.cells}
        return [(system, method) for system in self.systems for method in METHODS if (system, method) in measured]

    def product_rate(self) -> float:
        return statistics.median(c["product_gflops"] for c in self.cells.values() if "product_gflops" in c)

    def curve(self, system: str, method: str, key: str) -> dict[int, float]:
        """Side of the square → figure, where there is one."""
        squares = sorted((column for column in self.columns if column.aspect == 1), key=lambda column: column.side)
        values = {column.side: self.cell(system, method, column).get(key) for column in squares}
        return {side: value for side, value in values.items() if value is not None}


def crossing(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """Curves of cost by side → the side from which on ours is the lower one, between measured sides by a straight line
    of logarithms; the lowest common side where it always is, None where it is not at the largest."""
    sides = sorted(ours.keys() & theirs.keys())
    gaps = [math.log(ours[side] / theirs[side]) for side in sides]
    if not sides or gaps[-1] > 0:
        return None
    above = max((index for index, gap in enumerate(gaps) if gap > 0), default=None)
    if above is None:
        return float(sides[0])
    low, high = math.log(sides[above]), math.log(sides[above + 1])
    return math.exp(low + (high - low) * gaps[above] / (gaps[above] - gaps[above + 1]))


def verdict(native: dict[str, Any], resized: dict[str, Any]) -> str:
    """What became of the things shown when the size changed, against images resized: a word and how far off they are
    in parts and in width / height."""
    more = native["parts"] / max(resized["parts"], 1e-9)
    across, down = (ours / theirs for ours, theirs in zip(native["extent"], resized["extent"], strict=True))
    word = "held" if native["accuracy"] > resized["accuracy"] - READ else "misread"
    if more > PARTS:
        word = "doubled"
    elif not 1 / SHAPE < across / down < SHAPE:
        word = "squashed"
    elif not 1 / SCALE < math.sqrt(across * down) < SCALE:
        word = "scaled"
    return f"{word}: {more:.2f}, {across / down:.2f}"


# tables


def tables(results: Results) -> Iterator[Table]:
    yield trained(results)
    yield shapes(results)
    numbered = {column.title: f"{column.title}, n {column.count:,}" for column in results.columns}
    yield figures(results, "Read as their label by the judge", "accuracy", "{:.1%}", numbered, real="real images")
    if enough := {title: text for title, text in numbered.items() if "frechet" in results.real[title]}:
        title = "Fréchet distance in the judge's features, where there are enough images"
        yield figures(results, title, "frechet", "{:.2f}", enough, real="training images (the floor)")
    titles = {column.title: column.title for column in results.columns}
    yield figures(results, "Milliseconds of one image", "ms", "{:,.0f}", titles)
    reference = next(iter(results.systems))
    if one := results.curve(reference, "native", "time").get(results.training_size):
        title = f"Time of one image against {reference}'s at {results.training_size}, at one rate of matrix products"
        yield figures(results, title, "time", "{:.2f}", titles, unit=one)
    yield figures(results, "GFLOP of one image, interpolation aside", "gflop", "{:,.1f}", titles)
    yield figures(results, "Peak memory of one image above the loaded model, MB", "memory_mb", "{:,.0f}", titles)
    yield crossings(results)
    if refused := [(*place, cell["refused"]) for place, cell in results.cells.items() if "refused" in cell]:
        yield Table("Refused", dict.fromkeys(("system", "method", "size", "reason"), "{}"), refused)


def trained(results: Results) -> Table:
    """What every system is and cost."""
    rows = []
    for name, metadata in results.systems.items():
        training, defaults = metadata["training"] or {}, metadata["defaults"]
        sampled = f"{defaults['steps']} × {defaults['sampler']}, guidance {defaults['guidance']:g}"
        cost = [shown(training.get("images"), "{:,}"), shown(training.get("steps"), "{:,}")]
        cost += [shown(training.get("operations"), "{:.1f}", 1e12), shown(training.get("seconds"), "{:.0f}", 60)]
        counts = metadata["parameters"]
        rows.append((name, metadata["architecture"], sum(counts.values()), counts["resampler"], *cost, sampled))
    columns = {"weights": "{}", "system": "{}", "parameters": "{:,}", "of them the resampler's": "{:,}"}
    columns |= dict.fromkeys(("images shown", "steps", "TFLOP", "minutes", "generates with"), "{}")
    return Table("Training, all stages together", columns, rows)


def shapes(results: Results) -> Table:
    """The verdict on every image that is not resized."""
    rows = []
    for system, method in results.rows():
        if method != "resized":
            pairs = [[results.cell(system, w, column) for w in (method, "resized")] for column in results.columns]
            rows.append(
                (system, method, *(verdict(*pair) if all("parts" in c for c in pair) else "—" for pair in pairs))
            )
    title = "What images show, against images resized from the training size: parts, width / height. "
    title += f"Doubled: parts off by more than {PARTS - 1:.0%}; squashed: width / height, by {SHAPE - 1:.0%}; "
    title += f"scaled: size, by {SCALE - 1:.0%}; misread: {READ:.0%} fewer read right"
    return Table(title, dict.fromkeys(("weights", "method", *(column.title for column in results.columns)), "{}"), rows)


def figures(
    results: Results, title: str, key: str, form: str, titles: dict[str, str], *, unit: float = 1.0, real: str = ""
) -> Table:
    """One figure of all cells; titles: columns → how they are headed. real: what the row of real images is called."""
    columns, rows = [column for column in results.columns if column.title in titles], []
    if real:
        rows.append((real, "", *(shown(results.real[column.title].get(key), form) for column in columns)))
    for system, method in results.rows():
        values = [shown(results.cell(system, method, column).get(key), form, unit) for column in columns]
        rows.append((system, method, *values))
    return Table(title, dict.fromkeys(("weights", "method", *titles.values()), "{}"), rows)


def crossings(results: Results) -> Table:
    """From which side on the reference is the cheaper one."""
    reference, *others = results.systems
    rows, title = [], f"Side of the square from which on {reference} is cheaper, both native"
    for other in others:
        row = [other]
        for key in ("time", "gflop", "memory_mb"):
            ours, theirs = (results.curve(system, "native", key) for system in (reference, other))
            side, sides = crossing(ours, theirs), ours.keys() & theirs.keys()
            known = "—" if not sides else f"above {max(sides)}, if at all" if side is None else f"{side:.0f}"
            row.append(f"{known} or less" if sides and side == min(sides) else known)
        rows.append(tuple(row))
    return Table(title, dict.fromkeys(("against", "by time", "by operations", "by memory"), "{}"), rows)


def shown(value: float | None, form: str, unit: float = 1.0) -> str:
    return "—" if value is None else form.format(value if unit == 1 else value / unit)


# images


def cost_plot(results: Results) -> Figure:
    """Time against the side of the square, with the crossings."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes, reference = figure.add_subplot(), next(iter(results.systems))
    ours = results.curve(reference, "native", "time")
    for index, system in enumerate(results.systems):
        for method, style in (("native", "o-"), ("resized", ":")):
            curve = results.curve(system, method, "time")
            axes.plot(curve.keys(), curve.values(), style, color=f"C{index}", label=f"{system}, {method}")
        theirs = results.curve(system, "native", "time")
        side = crossing(ours, theirs) if system != reference else None
        if side is not None and side > min(ours.keys() & theirs.keys()):
            height = at(ours, side)
            axes.plot([side], [height], "X", color=f"C{index}", markeredgecolor="black", markersize=11)
            axes.annotate(f"{side:.0f}", (side, height), (0, -16), textcoords="offset points", ha="center")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sides = sorted(ours)
    axes.set_xticks(sides, map(str, sides))
    axes.set_xlabel("side of the image, pixels")
    axes.set_ylabel(f"milliseconds an image, at {results.product_rate():.0f} GFLOP/s of matrix products")
    axes.set_title(f"✕ from here on {reference} is cheaper")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def at(curve: dict[int, float], side: float) -> float:
    """A curve between its sides, by straight lines of logarithms."""
    low = max(s for s in curve if s <= side)
    high = min(s for s in curve if s >= side)
    share = math.log(side / low) / math.log(high / low) if high > low else 0.0
    return math.exp((1 - share) * math.log(curve[low]) + share * math.log(curve[high]))


def sheet(results: Results) -> Sheet:
    """The same label and seed, all systems and methods down, sizes and the outermost frames across."""
    wide = sorted((column for column in results.columns if column.aspect != 1), key=lambda column: column.aspect)
    columns = [column for column in results.columns if column.aspect == 1] + [*wide[:1], *wide[1:][-1:]]
    rows = {}
    for system, method in results.rows():
        paths = [results.images.get(results.place(system, method, column)) for column in columns]
        rows[f"{system}, {method}"] = [path and Image.open(path) for path in paths]
    titles = {column.title.replace("×", "x"): column.aspect for column in columns}  # PIL's own font has no ×
    image = titled_sheet(rows, titles, height=HEIGHT)
    return Sheet("comparison", "One label and seed, every size shown equally high", image)


def write_report(results: Results, folder: Path, heading: str) -> dict[str, Any]:
    """Prints the tables, writes comparison.md, comparison.png and cost.png; the tables as plain data."""
    made, drawn = list(tables(results)), sheet(results)
    drawn.image.save(folder / f"{drawn.name}.png")
    cost_plot(results).savefig(folder / "cost.png", dpi=150)
    plot = "![Milliseconds an image against its side](cost.png)"
    text = "\n\n".join(
        [f"# Comparison\n\n{heading}\n\n{JUDGED}", *(table.markdown() for table in made), plot, drawn.markdown()]
    )
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    return {"tables": [table.plain() for table in made]}
