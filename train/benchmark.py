"""Measures weights on this machine: python -m train.benchmark weights/mnist [--alternatives] [--page] [--out FOLDER]

Prints tables; with --out also writes them as benchmark.md and benchmark.json, and their curves as benchmark.png. Each
time stands beside the rate of matrix products of the same minute (see train/engine/machine.py), since a shared machine
is not equally fast at all times: shares and ratios hold, milliseconds are of the day. Operations are those of products
and attention, counted, not estimated. `--plan SIZE` measures a recipe instead and says what to change to train at SIZE.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import torch
from matplotlib.figure import Figure

from r2id.allocator import raise_mmap_threshold
from r2id.layers import ATTENTIONS, Attention
from r2id.limits import MAX_BATCH, check_cells, check_int, check_size
from r2id.pipeline import Latent, Pipeline
from train.engine.machine import (
    ENOUGH,
    REPEATS,
    Shapes,
    bandwidth,
    beside_products,
    machine,
    median_seconds,
    memory_of,
    product_rate,
    products_of,
    square_rate,
)
from train.evaluation.comparison_tables import crossing
from train.evaluation.tables import Table
from train.profiling.alternatives import alternatives
from train.profiling.plan import BUDGET, RESAMPLER, plan

SIZES = (64, 128, 256, 512, 1024, 2048)
CELLS = (4, 8, 16, 32, 64)
BATCHES = (1, 4, 16)
MOST = 2**14  # cells of a batch that is diffused
STRIP_SIDE = 2**8
STRIP = STRIP_SIDE**2  # pixels whose operations are counted
TWICE = 64  # side to which a latent is resampled twice
PAGE_LIMIT = 120.0  # seconds
SHARES = {"GFLOP/s": "{:.1f}", "of the square product": "{:.0%}", "of its own products": "{:.0%}"}
IMPORTS = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import gradio
print(middle - start, time.perf_counter() - middle)
"""


def latent_of(pipe: Pipeline, side: int, batch: int = 1) -> Latent:
    return Latent(torch.randn(batch, pipe.config.latent_channels, side, side).tanh(), 1.0)


def limits(pipe: Pipeline) -> Table:
    cells = pipe.config.defaults.latent_size
    products = {
        f"all products of {STRIP:,} pixels": products_of_pixels(pipe, latent_of(pipe, max(cells)), STRIP_SIDE)[0],
        "all products of a guided step": products_of(lambda: diffuse(pipe, cells, guided(pipe), steps=1))[0],
    }
    rows = [("a large square product", f"{square_rate(pipe.device) / 1e9:.1f} GFLOP/s")]
    rows += [(what, f"{product_rate(shapes, pipe.device) / 1e9:.1f} GFLOP/s") for what, shapes in products.items()]
    rows.append(("a large copy, read and written", f"{bandwidth(pipe.device) / 1e9:.1f} GB/s"))
    return Table("Limits of the machine", dict.fromkeys(("what", "rate"), "{}"), rows)


def products_of_pixels(pipe: Pipeline, latent: Latent, side: int) -> tuple[Shapes, float]:
    """Matrix products of a strip of whole rows of a picture of side × side, and all operations of a pixel, both without
    what its latent costs once."""
    rows = min(side, max(1, STRIP // side))
    pipe.resample(latent, size=(8, 8))
    shapes, count = products_of(lambda: pipe.resample(latent, size=(rows, side), region=(0, 0, 1, rows / side)))
    return shapes, count / (rows * side)


def resampling(pipe: Pipeline, sizes: tuple[int, ...]) -> Table:
    latent = latent_of(pipe, max(pipe.config.defaults.latent_size))
    device, rows = pipe.resampler_device, []
    for side in sizes:

        def run(side=side):
            return pipe.resample(latent, size=(side, side))

        pipe.resample(latent, size=(8, 8))  # what is made once and kept is not the picture's
        output = 4 * pipe.config.channels * side**2 if device.type == "cpu" else 0
        memory = max(0, memory_of(run, device) - output)
        shapes, count = products_of_pixels(pipe, latent, side)
        timed = beside_products(run, shapes, device)
        pace, rate = timed.seconds / side**2, count * side**2 / timed.seconds
        shares = (rate / 1e9, rate / timed.square, rate / timed.own)
        rows.append((side, 1e3 * timed.seconds, 1e-6 / pace, 1e6 * pace, memory / 1e6, count / 1e6, *shares))
    columns = {"side": "{}", "ms": "{:.1f}", "Mpixel/s": "{:.3f}", "µs a pixel": "{:.2f}"}
    columns |= {"MB above model and output": "{:.0f}", "MFLOP a pixel": "{:.4f}", **SHARES}
    return Table(f"Resampling one {latent.size[0]} × {latent.size[1]} latent to side × side", columns, rows)


def resampling_twice(pipe: Pipeline, cells: tuple[int, ...]) -> Table:
    """Keys, values and coefficients are made with a latent's first picture."""
    rows = []
    for side in cells:
        latent = latent_of(pipe, side)

        def first(latent=latent):  # a new tensor is a new latent
            return pipe.resample(Latent(latent.tensor.clone(), 1.0), size=(TWICE, TWICE))

        def second(latent=latent):
            return pipe.resample(latent, size=(TWICE, TWICE))

        seconds = [median_seconds(run, pipe.resampler_device) for run in (first, second)]
        rows.append((f"{side} × {side}", *(1e3 * s for s in seconds), seconds[0] / seconds[1]))
    columns = {"latent": "{}", "first, ms": "{:.2f}", "second, ms": "{:.2f}", "ratio": "{:.2f}"}
    return Table(f"One latent resampled to {TWICE} × {TWICE}, first and second time", columns, rows)


def guided(pipe: Pipeline) -> float:
    """Guidance that evaluates two conditions."""
    guidance = pipe.config.defaults.guidance
    return 1.5 if guidance in (0, 1) else guidance


def diffuse(pipe: Pipeline, size: tuple[int, int], guidance: float, *, steps: int, batch: int = 1) -> Latent:
    labels = [0 if pipe.labels else None] * batch
    how = dict(latent_size=size, steps=steps, guidance=guidance, guidance_interval=(0.0, 1.0))
    return pipe.diffuse(labels, seed=0, **how)


def diffusing(pipe: Pipeline, cells: tuple[int, ...], batches: tuple[int, ...]) -> Table:
    rows, two = [], guided(pipe)
    for side in cells:
        for batch in batches:
            if side % pipe.config.size_multiple or batch * side**2 > MOST:
                continue

            def run(guidance=two, side=side, batch=batch):  # the second step and all later ones are alike
                return diffuse(pipe, (side, side), guidance, steps=2, batch=batch)

            shapes, count = products_of(run)
            timed = beside_products(run, shapes, pipe.device)
            alone = median_seconds(partial(run, 1.0), pipe.device)
            rate = count / timed.seconds
            shares = (rate / 1e9, rate / timed.square, rate / timed.own)
            step = timed.seconds / 2
            pace = step / (batch * side**2)
            rows.append((side, batch, 1e3 * step, 1e6 * pace, count / 2e9, *shares, timed.seconds / alone))
    columns = {"cells on a side": "{}", "batch": "{}", "ms a step": "{:.2f}", "µs a cell": "{:.2f}"}
    columns |= {"GFLOP a step": "{:.3f}", **SHARES, "against one condition": "{:.2f}"}
    return Table("Diffusing with guidance, both conditions in one pass", columns, rows)


def attentions(pipe: Pipeline, cells: tuple[int, ...]) -> Table:
    """One self-attention of the denoiser's width, of both kinds."""
    config, curves = pipe.config.denoiser, {kind: {} for kind in ATTENTIONS}
    layers = {kind: Attention(config.width, heads=config.heads, attention=kind).to(pipe.device) for kind in ATTENTIONS}
    for side in cells:
        tokens_BMD = torch.randn(1, side**2, config.width, device=pipe.device)
        for kind, layer in layers.items():
            with torch.no_grad():
                seconds = median_seconds(
                    lambda layer=layer, x=tokens_BMD: layer(x, layer.keys_values(x)),
                    pipe.device,
                )
            curves[kind][side**2] = 1e3 * seconds
    softmax, linear = curves["softmax"], curves["linear"]
    found = crossing(linear, softmax)
    where = f"faster from about {found:.0f} cells on" if found else f"not faster up to {max(linear)} cells"
    rows = [(round(n**0.5), n, softmax[n], linear[n], softmax[n] / linear[n]) for n in softmax]
    columns = {"cells on a side": "{}", "cells": "{}", "softmax, ms": "{:.3f}", "linear, ms": "{:.3f}"}
    return Table(
        f"One attention of width {config.width}: linear is {where}", columns | {"softmax / linear": "{:.2f}"}, rows
    )


def one_picture(pipe: Pipeline, side: int) -> Table:
    """The defaults in float32 and, on CUDA, under bfloat16 autocast."""
    defaults, label = pipe.config.defaults, 0 if pipe.labels else None
    latent, rows = latent_of(pipe, max(defaults.latent_size)), []
    for kind in (torch.float32, torch.bfloat16) if pipe.device.type == "cuda" else (torch.float32,):
        with torch.autocast(pipe.device.type, kind, enabled=kind != torch.float32):
            diffused = median_seconds(lambda: pipe.diffuse(label, guidance=guided(pipe), seed=0), pipe.device)
            resampled = median_seconds(lambda: pipe.resample(latent, size=(side, side)), pipe.device)
        rows.append((str(kind).removeprefix("torch."), 1e3 * diffused, 1e3 * resampled))
    shape = "{} × {}".format(*defaults.latent_size)
    columns = {"numbers": "{}", "diffused, ms": "{:.1f}", f"resampled to {side} × {side}, ms": "{:.1f}"}
    return Table(f"One picture: {shape} cells, {defaults.steps} guided steps", columns, rows)


def page_seconds(weights: str) -> float:
    """From starting the app to a page that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--host", "127.0.0.1", "--port", str(port), "--weights", weights]
    start = time.perf_counter()
    app = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while (seconds := time.perf_counter() - start) < PAGE_LIMIT and app.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PAGE_LIMIT):
                    return time.perf_counter() - start
            except OSError:
                time.sleep(0.1)
    finally:
        app.terminate()
        app.wait()
    raise ValueError(f"app.py: no page after {seconds:.0f} s; run it by hand to see why: {' '.join(command[1:])}")


def page(weights: str) -> Table:
    """Seconds from starting the app to its page, and how many of them Python's own imports take, in a process alone."""
    whole_seconds = page_seconds(weights)
    printed = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    libraries = dict(zip(("import torch", "import gradio"), map(float, printed.split()), strict=True))
    rows = [*libraries.items(), ("all else", whole_seconds - sum(libraries.values())), ("together", whole_seconds)]
    return Table("Start of app.py to a page that answers", {"what": "{}", "seconds": "{:.1f}"}, rows)


def plot(tables: dict[str, Table]) -> Figure:
    """The curves of what was measured, axes logarithmic."""
    panels = (
        ("resample", "side", "µs a pixel", None),
        ("resample", "side", "MB above model and output", None),
        ("diffuse", "cells on a side", "µs a cell", "batch"),
        ("attention", "cells on a side", "softmax / linear", None),
    )
    panels = [panel for panel in panels if panel[0] in tables]
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (name, x, y, by) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = tables[name].plain()["rows"]
        for value in dict.fromkeys(row.get(by) for row in rows):
            line = [(row[x], max(row[y], 1e-3)) for row in rows if row.get(by) == value]
            axes.loglog(*zip(*line, strict=True), marker="o", label=f"{by} {value}" if by else None)
        axes.set(xlabel=x, ylabel=y, title=name)
        axes.grid(alpha=0.3)
        if by:
            axes.legend()
    return figure


def measured(pipe: Pipeline, args: argparse.Namespace) -> Iterator[tuple[str, Table]]:
    sizes, cells = tuple(args.sizes), tuple(args.cells)
    yield "limits", limits(pipe)
    yield "picture", one_picture(pipe, max(pipe.config.encoder_size, min(1024, max(sizes))))
    yield "resample", resampling(pipe, sizes)
    if pipe.resampler:
        yield "twice", resampling_twice(pipe, cells)
    yield "diffuse", diffusing(pipe, cells, tuple(args.batches))
    if hasattr(pipe.config.denoiser, "attention"):
        yield "attention", attentions(pipe, cells)
    if args.alternatives:
        for table in alternatives(pipe, sizes, ROOT):
            yield f"alternatives, {table.title}", table
    if args.page:
        yield "page", page(args.weights)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what could not be measured."""
    if (args.plan is None) == (args.weights is None):
        raise ValueError("give weights such as weights/mnist, or --plan SIZE, not both")
    if args.plan is None and (args.config or args.budget_memory):
        raise ValueError("--config and --budget-memory: go with --plan only")
    if args.page and not Path(args.weights).is_dir():
        raise ValueError(f"--page: {args.weights} is no folder; the app starts on folders of weights")
    for side in args.sizes:
        check_size((side, side))
    for side in args.cells:
        check_cells((side, side), 1)
    for batch in args.batches:
        check_int(batch, "batch", 1, MAX_BATCH)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("weights", nargs="?", help="folder such as weights/mnist, or a Hub id")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--sizes", type=int, nargs="+", default=SIZES, help="sides of pictures, up to 8192 (default: %(default)s)")
    add("--cells", type=int, nargs="+", default=CELLS, help="on a side of latents (default: %(default)s)")
    add("--batches", type=int, nargs="+", default=BATCHES, help="latents diffused at once (default: %(default)s)")
    add("--alternatives", action="store_true", help="also the published configuration, pixel space and interpolation")
    add("--page", action="store_true", help="also the app's start; weights must be a folder")
    add("--out", type=Path, help="folder for benchmark.md, benchmark.json and benchmark.png")
    add("--plan", type=int, metavar="SIZE", help="what to change to train on pictures of SIZE × SIZE")
    add("--config", type=Path, help=f"with --plan: the resampler's recipe (default: {RESAMPLER.relative_to(ROOT)})")
    add("--budget-memory", type=float, metavar="GB", help=f"with --plan: of one device (default: {BUDGET:g})")
    args = parser.parse_args(argv)
    check(args)
    raise_mmap_threshold()
    if args.plan is not None:
        pipe, device = None, torch.device("cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu")
        device = device if args.device == "auto" else torch.device(args.device)
        tables = plan(args.plan, args.config or RESAMPLER, args.budget_memory or BUDGET, device)
        tables = (("plan", table) for table in tables)
    else:
        pipe = Pipeline.from_pretrained(args.weights, device=args.device)
        device, tables = pipe.device, measured(pipe, args)
    heading = f"{machine()}, device {device}; medians of {REPEATS} runs, of fewer after {ENOUGH:g} s"
    print(heading, flush=True)
    done = []
    for name, table in tables:
        done.append((name, table))
        print(f"\n{table.markdown()}", flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join([heading, *(table.markdown() for _, table in done)])
        (args.out / "benchmark.md").write_text(text + "\n", encoding="utf-8")
        plain = {"machine": heading, "tables": [{"name": name, **table.plain()} for name, table in done]}
        (args.out / "benchmark.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
        if pipe:
            plot(dict(done)).savefig(args.out / "benchmark.png", dpi=120)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
