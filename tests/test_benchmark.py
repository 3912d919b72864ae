"""The benchmark prints its table; memory only grows down the rows; an app that does not start is an error."""

from __future__ import annotations

import pytest
import torch

from train import benchmark
from train.benchmark import main, median_seconds, page, peak_memory, product_seconds, reset_peak


def test_table(tiny_weights, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    main([str(tiny_weights), "--device", "cpu", "--cells", "4", "--steps", "2", "--sizes", "8", "16"])
    head, _, *table = capsys.readouterr().out.splitlines()
    assert "1 threads" in head and "device cpu" in head
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(row) for row in rows} == {4}
    assert [row[0] for row in rows[2:]] == [
        "product 1024 × 1024 × 1024",
        "product 16384 × 16 × 32",
        "diffuse 4 × 4, 2 steps, guidance 1.5",
        "resample to 8 × 8",
        "resample to 16 × 16",
    ]
    assert all(float(row[1]) > 0 for row in rows[2:])
    memory = [int(row[3].replace(",", "")) for row in rows[2:]]
    assert memory == sorted(memory) and memory[0] > 50


def test_a_system_without_a_resampler(tiny_pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    tiny_pixels.save(tmp_path)
    main([str(tmp_path), "--device", "cpu", "--steps", "2", "--sizes", "16"])
    rows = [line.strip("| ").split(" | ")[0] for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows == ["product 1024 × 1024 × 1024", "diffuse 8 × 8, 2 steps, guidance 1.5", "resample to 16 × 16"]


def test_peak_is_that_since_the_reset():
    torch.ones(50_000_000)
    reset_peak()
    held = peak_memory()
    torch.ones(10_000_000)
    assert 30e6 < peak_memory() - held < 80e6


def test_products_take_time():
    assert 0 < product_seconds(8, 8, 8, torch.device("cpu")) < product_seconds(512, 512, 512, torch.device("cpu"))


def test_median_leaves_out_the_first_run(monkeypatch):
    clock = iter((0, 1, 0, 3, 0, 2))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    runs = []
    assert median_seconds(lambda: runs.append(0)) == 2
    assert len(runs) == 4  # and stops when ENOUGH seconds are measured


def test_page_that_does_not_start_is_named(tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="app.py: no page after"):
        page("weights/none")


def test_page_is_timed_until_it_answers(tmp_path, monkeypatch):
    app = (
        "import sys, http.server as h; h.HTTPServer(('', int(sys.argv[4])), h.SimpleHTTPRequestHandler).serve_forever()"
    )
    (tmp_path / "app.py").write_text(app)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    assert float(page("weights/none")[1]) > 0
