"""The benchmark's tables have what they promise, at tiny sizes; operations equal a hand count; shares are sane; bad
arguments end in one line."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace

import pytest
import torch
from digits import digit_bytes
from PIL import Image

from r2id import Pipeline
from r2id.layers import Attention
from train.benchmark import main
from train.engine import machine as measure
from train.engine.machine import (
    bandwidth,
    beside_products,
    faster_precision,
    median_seconds,
    memory_of,
    peak_memory,
    product_rate,
    products_of,
    reset_peak,
)
from train.profiling import baselines, speed
from train.profiling import page as app_page
from train.profiling.page import ROOT, page
from train.profiling.speed import latent_of, products_of_pixels, resampling_twice

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--sizes", "8", "16", "--cells", "2", "4", "--batches", "1", "2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 1)
    monkeypatch.setattr(measure, "SQUARE", 64)
    monkeypatch.setattr(measure, "COPIED", 2**16)


def tables_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Markdown → title: rows by column."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    tables = {}
    for title, block in zip(blocks, blocks[1:], strict=False):
        if block[0].startswith("|"):
            names, _, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in block)
            tables[title[0]] = [dict(zip(names, row, strict=True)) for row in cells]
    return tables


@pytest.fixture(scope="module")
def output(tiny_weights, tmp_path_factory):
    """The folder of a run with everything but the page."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REPEATS", 1)
        patch.setattr(measure, "SQUARE", 64)
        patch.setattr(measure, "COPIED", 2**16)
        patch.setattr(baselines, "PIXEL_SIDES", (16,))
        main([str(tiny_weights), *SMALL, "--decoder-dtype", "float32", "--baselines", "--out", str(out)])
    return out


def test_every_table_has_its_rows(output):
    tables = tables_of((output / "benchmark.md").read_text(encoding="utf-8"))
    sides = {title: [next(iter(row.values())) for row in rows] for title, rows in tables.items()}
    assert sides.pop("Limits of the machine")[-1] == "a large copy, read and written"
    assert sides.pop("One image: 4 × 4 cells, 4 guided steps") == ["float32"]
    assert sides.pop("Resampling one 4 × 4 latent to side × side, pixels in float32") == ["8", "16"]
    assert sides.pop("One latent resampled to 64 × 64, first and second time") == ["2 × 2", "4 × 4"]
    assert sides.pop("Diffusing with guidance, both conditions in one pass") == ["2", "2", "4", "4"]
    assert sides.pop("Cost of a pixel") == ["8", "16"]
    assert sides.pop("Diffusing one latent") == ["ours", "published"]
    assert sides.pop("Cost of an image, diffused once and shown; × against ours") == ["8", "16"]
    (title, rows) = sides.popitem()
    assert title.startswith("One attention of width 16: linear is ") and rows == ["2", "4"] and not sides


def test_times_and_shares_are_positive(output):
    plain, seen = json.loads((output / "benchmark.json").read_text(encoding="utf-8")), 0
    for table in plain["tables"]:
        for row in table["rows"]:
            for column, value in row.items():
                if "ms" in column.split() or column.startswith(("µs", "of the ", "of its ")):
                    assert isinstance(value, str) or value > 0
                    seen += 1
    assert seen > 30


def test_the_published_configuration_computes_more(output):
    plain = json.loads((output / "benchmark.json").read_text(encoding="utf-8"))
    rows = {table["title"]: table["rows"] for table in plain["tables"]}
    assert all(row["published, MFLOP"] > 3 for row in rows["Cost of a pixel"])
    assert rows["Diffusing one latent"][1]["steps"] == 100


def test_curves_are_drawn(output):
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_strip_counts_as_the_whole(tiny, monkeypatch):
    latent = latent_of(tiny, 4)
    _, counted = products_of_pixels(tiny, latent, 64)
    monkeypatch.setattr(speed, "STRIP", 16 * 64)
    assert products_of_pixels(tiny, latent, 64)[1] == pytest.approx(counted, rel=0.02)


def test_the_second_image_of_a_latent_makes_nothing_anew(tiny, monkeypatch):
    made, prepare = [], tiny.resampler.prepare
    monkeypatch.setattr(tiny.resampler, "prepare", lambda *inputs: made.append(1) or prepare(*inputs))
    resampling_twice(tiny, (4,))
    assert len(made) == 3  # first: to warm up and measured; second: once for all its calls


def test_a_system_without_a_resampler(tiny_pixels, tmp_path, capsys):
    tiny_pixels.save(tmp_path)
    main([str(tmp_path), *SMALL, "--baselines"])
    titles = tables_of(capsys.readouterr().out)
    assert not any("first and second" in title or "Cost" in title for title in titles)
    assert any(title.startswith("Diffusing") for title in titles)


def test_cells_that_the_stride_excludes_are_left_out(tiny):
    wide = Pipeline(replace(tiny.config, size_multiple=4), tiny.resampler, tiny.denoiser, device="cpu")
    rows = speed.diffusing(wide, (2, 4), (1,)).rows
    assert [row[0] for row in rows] == [4]


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "give weights such as"),
        (["weights/mnist", "--plan", "64"], "one of them"),
        (["weights/mnist", "--step", "x.toml"], "one of them"),
        (["--plan", "64", "--data", "images"], "--data: goes with --step only"),
        (["--step", "train/configs/cifar10_resampler.toml"], "must be a recipe of the r2ir architecture"),
        (["--step", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["weights/mnist", "--sizes", "64", "8193"], "1…8192"),
        (["weights/mnist", "--cells", "0"], "1…4096"),
        (["weights/mnist", "--cells", "65"], "at most 4,096"),
        (["weights/mnist", "--batches", "65"], "batch 65: must be a whole number, 1…64"),
        (["weights/mnist", "--config", "x.toml"], "go with --plan only"),
        (["owner/name", "--page"], "no folder"),
        (["weights/nowhere"], "weights/nowhere"),
        (["--plan", "16"], "--plan 16: must be 32…8192"),
        (["--plan", "64", "--budget-memory", "-1"], "a number of GB above 0"),
        (["--plan", "64", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
    ],
)
def test_bad_arguments_end_in_one_line(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        main(argv)
    assert "\n" not in str(error.value)


def test_a_training_step_is_measured_by_its_parts(tmp_path, capsys):
    for number, pixels in enumerate(digit_bytes()[:12]):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{number}.png")
    config = ROOT / "train/configs/letters_resampler.toml"
    recipe = config.read_text(encoding="utf-8")
    for old, new in {"batch = 32": "batch = 4", "width = 160": "width = 16", "heads = 5": "heads = 2"}.items():
        recipe = recipe.replace(old, new)
    recipe = recipe.replace("encoder_size = 128", "encoder_size = 32").replace(
        "decoder_size = 1024", "decoder_size = 64"
    )
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    main(["--step", str(tmp_path / "recipe.toml"), "--data", str(tmp_path), "--device", "cpu"])
    ((title, rows),) = tables_of(capsys.readouterr().out).items()
    assert title.endswith("4 images, the encoder sees 32 × 32, targets 64 × 64, 2 × 2 cells")
    assert [row["part"] for row in rows] == ["load images", "forward", "backward, optimiser", "together"]
    counted = [float(row["GFLOP counted"]) for row in rows]
    assert counted[0] == 0 and 1.5 < counted[2] / counted[1] < 2.1  # two products of the gradient for one


# measuring


def test_memory_of_a_call_is_what_it_adds_to_the_peak(monkeypatch):
    reset, peaks, calls = [], iter((1000, 1400)), []
    monkeypatch.setattr(measure, "reset_peak", reset.append)
    monkeypatch.setattr(measure, "peak_memory", lambda device: next(peaks))
    assert memory_of(lambda: calls.append(len(reset))) == 400 and calls == [1]  # after the reset


def test_peaks_are_bytes_of_this_process():
    reset_peak()
    assert 2**20 < peak_memory() < 2**40


def test_rates_are_operations_and_bytes_by_seconds(monkeypatch):
    monkeypatch.setattr(measure, "median_seconds", lambda run, device: run() is None or 0.5)
    shapes = Counter({((2, 8), (8, 4)): 3, ((16, 8), (8, 8)): 1})
    assert product_rate(shapes) == (3 * 2 * 2 * 8 * 4 + 2 * 16 * 8 * 8) / (4 * 0.5)
    assert bandwidth(CPU) == 2 * 4 * 2**16 / 0.5


@pytest.mark.parametrize(("halves", "chosen"), [(0.5, "bfloat16"), (0.9, "float32"), (2.0, "float32")])
def test_a_precision_is_chosen_by_the_time_of_a_product(monkeypatch, halves, chosen):
    def seconds(run, device):
        return halves if run().dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(measure, "seconds_of", seconds)
    assert faster_precision() == (
        chosen,
        f"a 512 × 512 product takes 1e+03 ms in float32, {1e3 * halves:.2g} ms in bfloat16",
    )


def test_a_call_stands_beside_its_own_products():
    """Attention's two among them, at their shapes; and they are nearly all that it computes."""
    layer, x = Attention(16, heads=2), torch.randn(3, 64, 16)

    def run():
        return layer(x, layer.keys_values(x))

    shapes, count = products_of(run)
    heads = (3 * 2, 64, 8)  # of all rows
    assert sum(shapes.values()) == 5 and shapes[heads, (6, 8, 64)] == shapes[(6, 64, 64), heads] == 1
    assert count == sum(2 * math.prod(a) * b[-1] * times for (a, b), times in shapes.items())
    timed = beside_products(run, shapes)
    assert min(timed.seconds, timed.square, timed.own) > 0


def test_median_leaves_out_the_first_run(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 2)
    clock = iter((0, 9, 0, 3, 0, 2))
    monkeypatch.setattr(measure, "ENOUGH", 10)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    runs = []
    assert median_seconds(lambda: runs.append(0)) == 2.5
    assert len(runs) == 3


def test_a_long_run_is_measured_once(monkeypatch):
    clock = iter((0, 6))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert median_seconds(lambda: None) == 6


# page


def test_page_that_does_not_start_is_named(tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(app_page, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="app.py: no page after"):
        page("weights/none")


def test_page_is_timed_until_it_answers_and_broken_down(tmp_path, monkeypatch):
    app = (
        "import sys, http.server as h; h.HTTPServer(('', int(sys.argv[4])), h.SimpleHTTPRequestHandler).serve_forever()"
    )
    (tmp_path / "app.py").write_text(app)
    monkeypatch.setattr(app_page, "ROOT", tmp_path)
    monkeypatch.setattr(app_page, "IMPORTS", "print(0.25, 0.125)")
    rows = dict(page("weights/none").rows)
    assert rows["import torch"] == 0.25 and rows["together"] > 0
    assert rows["all else"] == pytest.approx(rows["together"] - 0.375)


def test_imports_are_timed_apart(monkeypatch):
    done = Namespace(stdout="1.5 2.5\n")
    monkeypatch.setattr(app_page, "page_seconds", lambda weights: 7.0)
    monkeypatch.setattr(app_page.subprocess, "run", lambda command, **_: done if command[0] == sys.executable else None)
    assert dict(page("weights/mnist").rows)["all else"] == 3.0
