"""What measurements share: the machine and its limits, the time and the peak memory of a call.

A shared machine is not equally fast at all times. So a call's time stands beside the rate of plain matrix products
measured just before and after it, in the same process, and only ratios of the two say something. A call's *own*
products are those that it computes itself, at their shapes: what it would take if all else were free.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from train.engine.flops import count_flops

REPEATS = 5
SQUARE = 1024  # side of the large product
ENOUGH = 5.0  # seconds after which a measurement is not repeated
TRIED, TRIES = 512, 10  # side and number of the products by which a precision is chosen
COPIED = 2**26  # float32 values, more than caches hold
CPU = torch.device("cpu")
MULTIPLIED = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # of torch.ops.aten → place of the first factor
Shapes = Counter[tuple[tuple[int, ...], tuple[int, ...]]]  # of the factors of matrix products, and how many


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
        clear.write_text("5", encoding="utf-8")


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes that this process has held at most, on the device; since `reset_peak` where that has an effect."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if "VmHWM" in line)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Bytes by which a call raises the peak above what was held before it."""
    reset_peak(device)
    held = peak_memory(device)
    run()
    return peak_memory(device) - held


def product_seconds(*shapes: tuple[int, ...], device: torch.device = CPU) -> float:
    """Seconds of a matrix product of two tensors of these shapes."""
    a, b = (torch.randn(shape, device=device) for shape in shapes)
    return median_seconds(lambda: torch.matmul(a, b), device)


def product_rate(shapes: Shapes, device: torch.device = CPU) -> float:
    """Operations a second of these products, one after the other."""
    count = sum(2 * math.prod(a) * b[-1] * times for (a, b), times in shapes.items())
    return count / sum(product_seconds(a, b, device=device) * times for (a, b), times in shapes.items())


def square_rate(device: torch.device = CPU) -> float:
    """The same of a large square product."""
    return product_rate(Counter([((SQUARE, SQUARE),) * 2]), device)


def faster_precision(device: torch.device = CPU) -> tuple[str, str]:
    """The precision, float32 or bfloat16, whose products take less time on this device, and why in words. bfloat16 must
    win by a quarter, since it is less exact and much of a step stays float32."""
    taken, factor = {}, torch.randn(TRIED, TRIED, device=device)
    for _ in range(TRIES):  # in turns, and the shortest of each: others may use the machine meanwhile
        for name in ("float32", "bfloat16"):
            a = factor.to(getattr(torch, name))
            taken[name] = min(taken.get(name, math.inf), seconds_of(lambda a=a: torch.matmul(a, a), device))
    chosen = "bfloat16" if 1.25 * taken["bfloat16"] < taken["float32"] else "float32"
    times = ", ".join(f"{1e3 * seconds:.2g} ms in {name}" for name, seconds in taken.items())
    return chosen, f"a {TRIED} × {TRIED} product takes {times}"


class Products(TorchDispatchMode):
    """Notes the shapes of the matrix products that are computed meanwhile."""

    def __init__(self):
        super().__init__()
        self.shapes: Shapes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (first := MULTIPLIED.get(function.overloadpacket.__name__)) is not None:
            self.shapes[tuple(tuple(factor.shape) for factor in args[first : first + 2])] += 1
        return function(*args, **(kwargs or {}))


def products_of(run: Callable[[], object]) -> tuple[Shapes, int]:
    """The shapes of a call's matrix products, attention's among them, and all its floating-point operations."""
    with Products() as products, count_flops() as counter:
        run()
    return products.shapes, counter.get_total_flops()


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.zeros(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * COPIED / median_seconds(lambda: target.copy_(source), device)


@dataclass(frozen=True)
class Timed:
    """Seconds of a call and, of the same minute, operations a second of matrix products: a large square one, and its
    own."""

    seconds: float
    square: float
    own: float


def beside_products(run: Callable[[], object], shapes: Shapes, device: torch.device = CPU) -> Timed:
    """The median time of a call, repeated like `median_seconds` does, and the medians of what the products took before
    each. shapes: of the call's own."""
    seconds_of(run, device)
    taken, rates = [], []
    while len(taken) < REPEATS and sum(taken) < ENOUGH:
        rates.append((square_rate(device), product_rate(shapes, device)))
        taken.append(seconds_of(run, device))
    return Timed(statistics.median(taken), *map(statistics.median, zip(*rates, strict=True)))
