"""Times weights on this machine and prints a table: python train/benchmark.py weights/mnist [--page]

Every rate stands beside the rate of plain matrix products measured in the same process, since a shared machine is not
equally fast at all times. Peak memory is that of the process up to and with that row.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from r2id.pipeline import Latent, Pipeline

SIZES = (64, 256, 512, 1024, 2048)
REPEATS = 5
ENOUGH = 5.0  # seconds after which a measurement is not repeated
PAGE_LIMIT = 120.0  # seconds
CPU = torch.device("cpu")

Row = tuple[str, str, str, str]


def machine() -> str:
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def median_seconds(run: Callable[[], object]) -> float:
    """The median of REPEATS runs, of fewer once they took ENOUGH seconds together. Runs once before, to warm up."""
    run()
    taken = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def reset_peak(device: torch.device = CPU) -> None:
    """Sets the peak to what is held now; without effect where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what is free in the allocator is given back, else it would hide as much
        clear.write_text("5")


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes that this process has held at most, on the device; since `reset_peak` where that has an effect."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def product_seconds(n: int, k: int, m: int, device: torch.device) -> float:
    """Seconds of a matrix product n × k × m, 2nkm operations."""
    a, b = torch.randn(n, k, device=device), torch.randn(k, m, device=device)
    return median_seconds(lambda: (a @ b)[0, 0].item())


def row(what: str, seconds: float, rate: str = "") -> Row:
    return what, f"{1000 * seconds:.1f}", rate, f"{peak_memory() / 1e6:,.0f}"


def products(pipe: Pipeline) -> Iterator[Row]:
    """Matrix products: a large square, and what a tile of pixels meets in the resampler."""
    shapes = [(1024, 1024, 1024)]
    if resampler := pipe.config.resampler:
        shapes.append((2**14, resampler.width, 2 * resampler.width))
    for n, k, m in shapes:
        seconds = product_seconds(n, k, m, pipe.device)
        yield row(f"product {n} × {k} × {m}", seconds, f"{2 * n * k * m / seconds / 1e9:.1f} GFLOP/s")


def pipeline(pipe: Pipeline, cells: int, steps: int, sizes: tuple[int, ...]) -> Iterator[Row]:
    """One latent diffused with guidance, then resampled to every size."""
    guidance = pipe.config.defaults.guidance
    guidance = guidance if guidance != 1 else 1.5  # 1 would evaluate one condition, not two
    label = 0 if pipe.labels else None

    def diffuse() -> Latent:
        return pipe.diffuse(label, latent_size=(cells, cells), steps=steps, guidance=guidance, seed=0)

    what, seconds = f"diffuse {cells} × {cells}, {steps} steps, guidance {guidance:g}", median_seconds(diffuse)
    yield row(what, seconds, f"{1000 * seconds / steps:.1f} ms a step")
    latent = diffuse()
    for side in sizes:

        def resample(side=side):  # of a copy, since the pipeline remembers what it has decoded
            return pipe.resample(replace(latent, tensor=latent.tensor.clone()), size=(side, side))

        seconds = median_seconds(resample)
        yield row(f"resample to {side} × {side}", seconds, f"{1e6 * seconds / side**2:.2f} µs a pixel")


def page(weights: str) -> Row:
    """Seconds from starting the app to a page that answers."""
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
                    taken = 1000 * (time.perf_counter() - start)
                return "start of app.py to a page that answers", f"{taken:.0f}", "", ""
            except OSError:
                time.sleep(0.1)
    finally:
        app.terminate()
        app.wait()
    raise ValueError(f"app.py: no page after {seconds:.0f} s; run it by hand to see why: {' '.join(command[1:])}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="folder such as weights/mnist, or a Hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--cells", type=int, help="on a side of the latent (default: the model's own number)")
    parser.add_argument("--steps", type=int, default=20, help="of diffusion (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the outputs (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="also time the app's start; weights must be a folder")
    args = parser.parse_args(argv)
    pipe = Pipeline.from_pretrained(args.weights, device=args.device)
    print(f"{machine()}, device {pipe.device}\n\n| what | ms | rate | peak memory, MB |\n| --- | --- | --- | --- |")
    cells = args.cells or max(pipe.config.defaults.latent_size)
    for measured in (products(pipe), pipeline(pipe, cells, args.steps, tuple(args.sizes))):
        for line in measured:
            print(f"| {' | '.join(line)} |", flush=True)
    if args.page:
        print(f"| {' | '.join(page(args.weights))} |")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
