"""What measurements share: the machine and its limits, the time and the peak memory of a call.

A shared machine is not equally fast at all times. So a call's time stands beside the rate of plain matrix products
measured just before and after it, in the same process, and only ratios of the two say something.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REPEATS = 5
ENOUGH = 5.0  # seconds after which a measurement is not repeated
SQUARE = 1024  # side of the large product
COPIED = 2**26  # float32 values, more than caches hold
CPU = torch.device("cpu")


def machine() -> str:
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def seconds_of(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call, to the end of what it started on the device."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], device: torch.device = CPU) -> float:
    """The median of REPEATS runs, of fewer once they took ENOUGH seconds together. Runs once before, to warm up; where
    that alone takes so long, it is the measurement."""
    first = seconds_of(run, device)
    if first > ENOUGH:
        return first
    taken = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH:
        taken.append(seconds_of(run, device))
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


def memory_of(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Bytes by which a call raises the peak above what was held before it."""
    reset_peak(device)
    held = peak_memory(device)
    run()
    return peak_memory(device) - held


def product_seconds(n: int, k: int, m: int, device: torch.device) -> float:
    """Seconds of a matrix product n × k × m, 2nkm operations."""
    a, b = torch.randn(n, k, device=device), torch.randn(k, m, device=device)
    return median_seconds(lambda: torch.matmul(a, b), device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.zeros(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * COPIED / median_seconds(lambda: target.copy_(source), device)


@dataclass(frozen=True)
class Timed:
    """Seconds of a call and, of the same minute, operations a second of matrix products: a large square one, and a thin
    one as the model's are."""

    seconds: float
    square: float
    thin: float


def beside_products(run: Callable[[], object], thin: tuple[int, int, int], device: torch.device = CPU) -> Timed:
    """The median time of a call between two measurements of both products. thin: n, k, m."""
    shapes = ((SQUARE,) * 3, thin)

    def rates() -> list[float]:
        return [2 * n * k * m / product_seconds(n, k, m, device) for n, k, m in shapes]

    before, seconds, after = rates(), median_seconds(run, device), rates()
    return Timed(seconds, *(statistics.mean(pair) for pair in zip(before, after, strict=True)))
