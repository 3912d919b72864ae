"""Measures weights on this machine: python -m train.benchmark weights/mnist [--baselines] [--page] [--out FOLDER]

Prints tables; with --out also writes them as benchmark.md and benchmark.json, and their curves as benchmark.png. Each
time stands beside the rate of matrix products of the same minute (see train/engine/machine.py), since a shared machine
is not equally fast at all times: shares and ratios hold, milliseconds are of the day. Operations are those of products
and attention, counted, not estimated. `--plan SIZE` measures a recipe instead and says what to change to train at SIZE;
`--step CONFIG` times a training step of a recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from r2id.limits import BATCH, check_cells, check_int, check_size
from r2id.pipeline import Pipeline
from train.engine.cli import script
from train.engine.machine import ENOUGH, REPEATS, machine
from train.evaluation.tables import Table
from train.profiling.baselines import baselines
from train.profiling.page import ROOT, page
from train.profiling.plan import BUDGET, RESAMPLER, plan
from train.profiling.speed import attentions, diffusing, limits, one_image, plot, resampling, resampling_twice
from train.profiling.training import training_step

SIZES = (64, 128, 256, 512, 1024, 2048)
CELLS = (4, 8, 16, 32, 64)
BATCHES = (1, 4, 16)


def measured(pipe: Pipeline, args: argparse.Namespace) -> Iterator[tuple[str, Table]]:
    sizes, cells = tuple(args.sizes), tuple(args.cells)
    yield "limits", limits(pipe)
    yield "image", one_image(pipe, max(pipe.config.encoder_size, min(1024, max(sizes))))
    yield "resample", resampling(pipe, sizes)
    if pipe.resampler:
        yield "twice", resampling_twice(pipe, cells)
    yield "diffuse", diffusing(pipe, cells, tuple(args.batches))
    if hasattr(pipe.config.denoiser, "attention"):
        yield "attention", attentions(pipe, cells)
    if args.baselines:
        for table in baselines(pipe, sizes, ROOT):
            yield f"baselines, {table.title}", table
    if args.page:
        yield "page", page(args.weights)


def recipes(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Table]]:
    if args.step:
        yield "step", training_step(args.step, args.data, device)
        return
    for table in plan(args.plan, args.config or RESAMPLER, args.budget_memory or BUDGET, device):
        yield "plan", table


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what could not be measured."""
    if sum(given is not None for given in (args.weights, args.plan, args.step)) != 1:
        raise ValueError("give weights such as weights/mnist, --plan SIZE or --step CONFIG, one of them")
    if args.data and args.step is None:
        raise ValueError("--data: goes with --step only")
    if args.plan is None and (args.config or args.budget_memory):
        raise ValueError("--config and --budget-memory: go with --plan only")
    if args.page and not Path(args.weights).is_dir():
        raise ValueError(f"--page: {args.weights} is no folder; the app starts on folders of weights")
    for side in args.sizes:
        check_size((side, side))
    for side in args.cells:
        check_cells((side, side), 1)
    for batch in args.batches:
        check_int(batch, "batch", 1, BATCH)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("weights", nargs="?", help="folder such as weights/mnist, or a Hub id")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--decoder-dtype", default="auto", help="auto, float32, bfloat16 (default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=SIZES, help="sides of images, up to 8192 (default: %(default)s)")
    add("--cells", type=int, nargs="+", default=CELLS, help="on a side of latents (default: %(default)s)")
    add("--batches", type=int, nargs="+", default=BATCHES, help="latents diffused at once (default: %(default)s)")
    add("--baselines", action="store_true", help="also the published configuration, pixel space and interpolation")
    add("--page", action="store_true", help="also the app's start; weights must be a folder")
    add("--out", type=Path, help="folder for benchmark.md, benchmark.json and benchmark.png")
    add("--plan", type=int, metavar="SIZE", help="what to change to train on images of SIZE × SIZE")
    add("--step", type=Path, metavar="CONFIG", help="times a training step of a resampler's recipe")
    add("--data", help="with --step: images or fonts in place of the recipe's")
    add("--config", type=Path, help=f"with --plan: the resampler's recipe (default: {RESAMPLER.relative_to(ROOT)})")
    add("--budget-memory", type=float, metavar="GB", help=f"with --plan: of one device (default: {BUDGET:g})")
    args = parser.parse_args(argv)
    check(args)
    if args.weights is None:
        pipe, device = None, torch.device("cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu")
        device = device if args.device == "auto" else torch.device(args.device)
        tables = recipes(args, device)
    else:
        pipe = Pipeline.from_pretrained(args.weights, device=args.device, decoder_dtype=args.decoder_dtype)
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
    script(main)
