"""A comparison of two tiny systems, one of them in pixel space: every cell is there, measured once; crossings and
verdicts are right on made-up figures; bad input is named."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import digits
from grey import in_grey
from PIL import Image

from r2id import Pipeline
from r2id.config import Training
from train import evaluate
from train.data.images import ImageSet
from train.engine import machine as measure
from train.evaluation import comparison, methods
from train.evaluation.classifier import judge_of, load_classifier
from train.evaluation.comparison import ComparisonProtocol, System, compare, fingerprint
from train.evaluation.comparison_tables import Results, cost_plot, crossing, crossings, verdict
from train.evaluation.methods import Cell, Column, cost, cost_apart, diffuse, giga_operations, show
from train.evaluation.tables import titled_sheet

PROTOCOL = ComparisonProtocol(counts={4: 10, 8: 12, 16: 10}, ratios=((9, 16),), ratio_count=10, frechet=12)
COLUMNS = ["4×4", "8×8", "16×16", "9:16"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REPEATS", 1)
        patch.setattr(measure, "SQUARE", 64)
        patch.setattr(comparison, "cost_apart", cost)
        yield


@pytest.fixture(scope="module")
def grey_pixels(tiny_pixels) -> Pipeline:
    """It says what its training cost."""
    return in_grey(tiny_pixels, training=Training(images=60_000, steps=500, operations=75e12, seconds=1500.0))


@pytest.fixture(scope="module")
def folders(tiny_weights, grey_pixels, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("weights") / "pixels"
    grey_pixels.save(folder)
    return [str(tiny_weights), str(folder)]


def load(split: str, *, size: int, channels: int, limit: int | None) -> ImageSet:
    images, labels = digits(size)
    return ImageSet(images[:limit], labels[:limit], tuple("0123456789"), (0.0,))


def run(weights: list, out, **options) -> None:
    compare(weights, load_classifier(judge_of("mnist")), load, "test", out, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """The report's folder, after one whole run."""
    out = tmp_path_factory.mktemp("report")
    run(folders, out, protocol=PROTOCOL)
    return out


@pytest.fixture
def measured(monkeypatch):
    """The cells that would be measured, each by its system's name; their figures are made up."""
    cells = []

    def measure(self, cell, judging, protocol):
        cells.append((self.name, cell))
        if len(cells) == 4:
            raise KeyboardInterrupt
        if (self.name, cell.method, cell.column.side) == ("pixels", "native", 16):
            return {"refused": "too large"}, None
        figures = {"ms": 1.0, "product_gflops": 1.0, "memory_mb": 1.0, "gflop": 1.0}
        return figures | {"accuracy": 0.5, "parts": 1.0, "extent": [0.2, 0.2]}, Image.new("L", cell.size[::-1])

    monkeypatch.setattr(comparison.System, "measure", measure)
    return cells


def test_every_system_and_size_with_its_count(made):
    report, written = (
        json.loads((made / "comparison.json").read_text(encoding="utf-8")),
        (made / "comparison.md").read_text(encoding="utf-8"),
    )
    tables = {re.split("[,.:]", table["title"])[0]: table["rows"] for table in report["tables"]}
    read = tables["Read as their label by the judge"]
    counts = [f"{column}, n {n}" for column, n in zip(COLUMNS, (10, 12, 10, 10), strict=True)]
    assert list(read[0]) == ["weights", "method", *counts]
    rows = [("tiny", "native"), ("tiny", "shaped"), ("tiny", "resized"), ("pixels", "native"), ("pixels", "resized")]
    assert [(row["weights"], row["method"]) for row in read] == [("real images", ""), *rows]
    for title in ("Milliseconds of one image", "GFLOP of one image", "Peak memory of one image above the loaded"):
        (table,) = (rows for name, rows in tables.items() if name.startswith(title))
        missing = [(row["weights"], row["method"], column) for row in table for column in COLUMNS if row[column] == "—"]
        assert missing == [("tiny", "shaped", column) for column in COLUMNS[:3]]
    distances = tables["Fréchet distance in the judge's features"]
    assert list(distances[0]) == ["weights", "method", "8×8, n 12"]  # the others have too few images

    trained = {row["weights"]: row for row in tables["Training"]}
    assert trained["pixels"]["images shown"] == "60,000" and trained["pixels"]["TFLOP"] == "75.0"
    assert trained["pixels"]["minutes"] == "25" and trained["tiny"]["minutes"] == "—"
    assert trained["pixels"]["of them the resampler's"] == 0 < trained["tiny"]["of them the resampler's"]
    assert [row["against"] for row in tables["Side of the square from which on tiny is cheaper"]] == ["pixels"]

    assert all(table["title"] in written for table in report["tables"])
    files = re.findall(r"\((\w+\.png)\)", written)
    assert files == ["cost.png", "comparison.png"]
    for file in files:
        with Image.open(made / file) as image:
            assert min(image.size) > 100


def test_a_second_run_diffuses_nothing(made, folders, monkeypatch, tmp_path, capsys):
    out = shutil.copytree(made, tmp_path / "out")
    monkeypatch.setattr(Pipeline, "diffuse", None)
    run(folders, out, protocol=PROTOCOL)
    assert (
        (out / "comparison.md").read_text(encoding="utf-8")
        == (made / "comparison.md").read_text(encoding="utf-8")
        == capsys.readouterr().out
    )
    assert not list(out.glob("*.partial"))


def test_only_systems_that_changed_are_measured_again(made, folders, measured, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    other = Pipeline.from_pretrained(folders[1], device="cpu")
    torch.nn.init.normal_(other.denoiser.out.bias)
    other.save(tmp_path / "pixels")
    with pytest.raises(KeyboardInterrupt):
        run([folders[0], tmp_path / "pixels"], out, protocol=PROTOCOL)
    assert {name for name, _ in measured} == {"pixels"}


def test_what_was_done_before_a_stop_is_kept(folders, measured, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(folders, tmp_path / "out", protocol=PROTOCOL)
    run(folders, tmp_path / "out", protocol=PROTOCOL)
    assert measured[3] == measured[4]  # the one that was stopped
    assert len(measured) == 1 + len(set(measured)) == 1 + 8 + 7
    written = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| pixels | native | 16×16 | too large |" in written
    run(folders, tmp_path / "out", protocol=PROTOCOL)
    (again,) = measured[16:]  # what was refused is tried once more
    assert (again[0], again[1].method, again[1].column.side) == ("pixels", "native", 16)


def test_a_size_that_the_system_refuses_is_a_reason(folders, grey_pixels):
    huge = Cell(Column("huge", 1.0, 9000, 10), "native", (9000, 9000), (9000, 9000), 1.0)
    figures, image = System("pixels", Path(folders[1]), grey_pixels).measure(huge, None, PROTOCOL)
    assert image is None and re.fullmatch("latent_size.* 9000.*", figures["refused"])


def test_ways_of_a_size(tiny, grey_pixels):
    wide, trained = Column("16:9", 16 / 9, 8, 4), Column("8×8", 1.0, 8, 4)
    native, shaped, resized = methods.methods_of(tiny.config, wide)
    assert (native.size, native.latent, native.aspect) == ((8, 16), (4, 4), 1)
    assert (shaped.size, shaped.latent, shaped.aspect) == ((8, 16), (4, 7), 16 / 9)
    assert (resized.size, resized.latent, resized.aspect) == ((8, 16), (4, 4), 1)
    coarse = replace(grey_pixels.config, size_multiple=4)
    native, resized = methods.methods_of(coarse, Column("3:2", 1.5, 10, 4))
    assert (native.size, native.latent, native.aspect) == ((8, 16), (8, 16), 2)
    assert (resized.size, resized.latent) == ((10, 16), (8, 8))
    assert [cell.method for config in (tiny.config, coarse) for cell in methods.methods_of(config, trained)] == [
        "native",
        "native",
    ]


def test_resized_is_the_training_image_on_the_background(tiny, grey_pixels):
    for pipe in (tiny, grey_pixels):
        cell = Cell(Column("2:1", 2.0, 16, 4), "resized", (16, 32), pipe.config.defaults.latent_size, 1.0)
        latent = diffuse(pipe, cell, [3, 5], seed=0)
        image, trained = show(pipe, cell, latent), pipe.resample(latent, size=(8, 8))
        assert image.shape == (2, 1, 16, 32)
        assert image[..., :8].abs().max() < 1e-6 and image[..., -8:].abs().max() < 1e-6
        expected = torch.nn.functional.interpolate(trained, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(image[..., 8:-8], expected, atol=1e-5, rtol=0)


def test_cost_in_a_process_of_its_own(folders, grey_pixels):
    small, medium, large = (Cell(Column("", 1.0, n, 1), "native", (n, n), (n, n), 1.0) for n in (8, 24, 48))
    figures, image = cost_apart(folders[1], "cpu", large, 3, 3)
    assert image.size == (48, 48) and figures["ms"] > 0 and figures["product_gflops"] > 0.1
    assert 2304 * 16 * 4 / 1e6 < figures["memory_mb"] < 500  # at least one activation
    operations = [giga_operations(grey_pixels, cell) for cell in (small, medium)]
    assert 9 < operations[1] / operations[0] < 81  # some layers cost as the pixels, attention as their square
    steps = replace(grey_pixels.config, defaults=replace(grey_pixels.config.defaults, steps=6))
    longer = Pipeline(steps, None, grey_pixels.denoiser, device="cpu")
    assert giga_operations(longer, small) == pytest.approx(3 * operations[0], rel=0.05)


SIDES = (16, 32, 64, 128, 256)


def test_crossing_by_straight_lines_of_logarithms():
    flat, square = dict.fromkeys(SIDES, 100.0), {side: side**2 / 23 for side in SIDES}
    assert crossing(flat, square) == pytest.approx(2300**0.5)
    assert crossing(square, flat) is None  # dearer at the largest
    assert crossing(flat, {side: 100 + side for side in SIDES}) == 16
    assert crossing(flat, {64: 50.0, 128: 200.0}) == pytest.approx(64 * 2**0.5)  # over the sides that both have
    assert crossing(flat, {}) is None
    wavy = {16: 200.0, 32: 50.0, 64: 200.0, 128: 50.0, 256: 200.0}
    assert crossing(flat, wavy) == pytest.approx(128 * 2**0.5)  # the last one


def results(**curves: dict[int, float]) -> Results:
    made = Results(dict.fromkeys(curves, {}), [Column(f"{s}×{s}", 1.0, s, 10) for s in SIDES], 32)
    for system, curve in curves.items():
        for side, ms in curve.items():
            rate = 50.0 if side == 64 else 100.0  # the machine was slow for a while
            figures = {"ms": ms * 100 / rate, "product_gflops": rate, "gflop": ms, "memory_mb": 1.0}
            made.cells[system, "native", f"{side}×{side}"] = figures
    return made


def test_crossings_in_time_and_operations_at_one_speed():
    made = results(
        flat=dict.fromkeys(SIDES, 100.0),
        square={side: side**2 / 23 for side in SIDES},
        dear={side: 1000.0 * side for side in SIDES},
        cheap={side: 1.0 * side / 256 for side in SIDES},
    )
    rows = crossings(made).plain()["rows"]
    assert [row["by time"] for row in rows] == ["48", "16 or less", "above 256, if at all"]
    assert [row["by operations"] for row in rows] == [row["by time"] for row in rows]
    axes = cost_plot(made).axes[0]
    marks = [line for line in axes.lines if line.get_marker() == "X"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [pytest.approx((2300**0.5, 100))]


def test_verdicts():
    resized = {"parts": 1.1, "extent": [0.2, 0.2], "accuracy": 0.9}
    word = lambda **changes: verdict(resized | changes, resized).split(":")[0]  # noqa: E731
    assert word() == "held" and word(accuracy=0.81, extent=[0.19, 0.2]) == "held"
    assert word(parts=2.2, extent=[0.4, 0.2]) == "doubled"
    assert word(extent=[0.28, 0.2]) == word(extent=[0.2, 0.28]) == "squashed"
    assert word(extent=[0.1, 0.1]) == "scaled"
    assert word(accuracy=0.7) == "misread"
    assert verdict(resized | {"parts": 2.2, "extent": [0.3, 0.2]}, resized) == "doubled: 2.00, 1.50"


def test_fingerprint_tells_parts_apart():
    assert len({fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc"), fingerprint()}) == 4


def test_bad_input_is_named(folders, grey_pixels, tiny_pixels, tmp_path):
    def refused(message: str, *weights, **options):
        with pytest.raises(ValueError, match=message):
            run([str(path) for path in weights], tmp_path / "out", **options)

    refused("give two folders or more, of different names", folders[0])
    refused("of different names", folders[0], folders[0])
    refused("weights/missing", folders[0], "weights/missing")
    refused("generated 9: must be 10 or more, one a label", *folders, generated=9)
    tiny_pixels.save(tmp_path / "colour")
    refused("classifier has 1 channels, 10 classes, not 3", folders[0], tmp_path / "colour")
    larger = replace(grey_pixels.config, encoder_size=16)
    Pipeline(larger, None, grey_pixels.denoiser, device="cpu").save(tmp_path / "larger")
    refused("larger was trained at 16, tiny at 8: must be alike", folders[0], tmp_path / "larger")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text("{")
    refused("comparison.json: not a comparison; remove it", *folders)


def test_command_line(folders, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate, "present_split", lambda load, split: split)
    monkeypatch.setattr(evaluate, "compare", lambda *args, **options: calls.append((args, options)))
    evaluate.main(["--compare", *folders, "--data", "somewhere", "--generated", "20", "--count", "50"])
    ((weights, _, loader, split, folder), options) = calls[0]
    assert (weights, split, str(folder)) == (folders, "test", "runs/comparison")
    assert options == {"device": "auto", "limit": 50, "generated": 20}
    assert loader.args == ("somewhere",)
    with pytest.raises(ValueError, match="2 weights: one report is of one; add --compare"):
        evaluate.main(folders)


def test_sheet_shows_all_equally_high():
    white, large = Image.new("L", (4, 4), 255), Image.new("L", (320, 160), 255)
    sheet = titled_sheet({"one": [white, None], "another row": [None, large]}, {"square": 1.0, "2:1": 2.0}, height=80)
    pixels = (np.array(sheet)[..., 0] == 255).astype(int)
    rows, columns = pixels.sum(axis=1), pixels.sum(axis=0)
    assert (rows >= 80).sum() == 160 and (rows >= 160).sum() == 80  # 80 × 80 above, 160 × 80 below
    assert (columns >= 80).sum() == 240
