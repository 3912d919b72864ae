"""Which device can be used here, and which precision is faster: products in bfloat16 take a quarter of the time on some
CPUs, and longer on others."""

from __future__ import annotations

import functools
import logging
import time

import torch

from r2id.limits import check_choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
POINTS, WIDTH, REPEATS = 2**13, 64, 3  # of the products that are timed: a few milliseconds in all
WORTH = 1.2  # times as fast that it has to be


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU. Raises ValueError where there is none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); use auto or cpu") from None
    return device


def decoder_dtype(choice: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the products of each pixel, for "auto", "float32", "bfloat16" or one of these dtypes.

    "auto" measures on CPUs and takes float32 elsewhere. Raises ValueError for anything else.
    """
    if choice == "auto":
        return torch.bfloat16 if device.type == "cpu" and bfloat16_speedup() > WORTH else torch.float32
    if choice in DTYPES.values():
        return choice
    check_choice(choice, "decoder_dtype", ("auto", *DTYPES))
    return DTYPES[choice]


@functools.cache
def bfloat16_speedup() -> float:
    """How many times as fast this CPU multiplies matrices in bfloat16 as in float32; measured once a process."""
    seconds = {}
    for name, dtype in DTYPES.items():
        points, weights = torch.ones(POINTS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
        times = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            points @ weights
            times.append(time.perf_counter() - start)
        seconds[name] = min(times[1:])
    speedup = seconds["float32"] / seconds["bfloat16"]
    logging.getLogger("r2id").info("bfloat16 products take 1 / %.1f of float32's time here", speedup)
    return speedup
