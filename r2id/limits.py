"""Limits of the public interface and of configurations. A bad value becomes one line with the limit."""

from __future__ import annotations

import operator
import reprlib
import secrets
from dataclasses import field, fields
from numbers import Real

MAX_SIDE = 8192  # pixels of an output
MAX_PIXELS = 2**26  # of an image
MAX_CELLS = 4096  # of a latent
MAX_IMAGE_CELLS = 2**18  # of a latent that is the image itself
MAX_STEPS = 1000
BATCH = 64  # rows that are computed together, at most; more are taken in parts
MAX_GUIDANCE = 100.0
MAX_ASPECT = 64.0  # of a frame, and its inverse
SEEDS = 2**32

# Ranges that fields of models' configurations share: well above any published model, and low enough that a model's
# outline is soon made and compared with its weights.
MAX_BLOCKS = 128
BLOCKS = (1, MAX_BLOCKS)
WIDTHS = (1, 2**14)
HEADS = (1, 1024)
RATIOS = (1, 64)  # width of an MLP's hidden layer over that of its tokens
OCTAVES = (-32, 32)


def ranged(default, low, high):
    """A field of a model's configuration with the range that `check_model` holds it to: whole numbers where the bounds
    are; every item of a tuple. None stays None."""
    return field(default=default, metadata={"range": (low, high)})


def short_repr(value) -> str:
    """Any value for an error message: short and on one line."""
    return " ".join(reprlib.repr(value).split())


def check_int(value, name: str, low: int, high: int) -> int:
    """`value`, a whole number of any integer type but bool, as an int. Raises ValueError unless it is low…high."""
    try:
        if not isinstance(value, bool) and low <= (integer := operator.index(value)) <= high:
            return integer
    except TypeError:
        pass
    raise ValueError(f"{name} {short_repr(value)}: must be a whole number, {low}…{high}")


def check_float(value, name: str, low: float, high: float) -> float:
    """`value`, a real number of any type but bool, as a float. Raises ValueError unless it is low…high."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # NaN is not
        raise ValueError(f"{name} {short_repr(value)}: must be a number, {low:g}…{high:g}")
    return float(value)


def check_choice(value, name: str, choices) -> None:
    """Raises ValueError, with the choices, for what is none of them; they are strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} {short_repr(value)}: must be one of {', '.join(choices)}")


def check_model(config) -> None:
    """Raises ValueError for a `ranged` field that is out of its range, or octaves out of order."""
    for each in fields(config):
        low, high = each.metadata.get("range", (None, None))
        value = getattr(config, each.name)
        for item in () if low is None or value is None else value if isinstance(value, tuple) else (value,):
            (check_int if isinstance(low, int) else check_float)(item, each.name, low, high)
        if each.name == "octaves" and value[0] > value[1]:
            raise ValueError(f"octaves {value}: must be (low, high)")


def check_heads(heads: int, **widths: int) -> None:
    """Raises ValueError for a width, by its name, that is no multiple of the number of heads."""
    for name, width in widths.items():
        if width % heads:
            raise ValueError(f"{name} {width}: must be a multiple of the {heads} heads")


def pair(value, name: str, high: int) -> tuple[int, int]:
    """A list or tuple (height, width) as ints. Raises ValueError unless both are 1…high."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name} {short_repr(value)}: must be (height, width)")
    sides = zip(("height", "width"), value, strict=True)
    return tuple(check_int(v, f"{name} {short_repr(tuple(value))}: {side}", 1, high) for side, v in sides)


def check_size(size) -> tuple[int, int]:
    """(height, width) of an output in pixels, 1…MAX_SIDE each."""
    return pair(size, "size", MAX_SIDE)


def check_cells(size, size_multiple: int, most: int = MAX_CELLS) -> tuple[int, int]:
    """(height, width) of a latent: multiples of `size_multiple`, and at most so many cells together."""
    h, w = pair(size, "latent_size", MAX_CELLS)
    if h * w > most:
        raise ValueError(f"latent_size {h} x {w}: {h * w:,} cells, at most {most:,}")
    if h % size_multiple or w % size_multiple:
        raise ValueError(f"latent_size {h} x {w}: both must be multiples of {size_multiple}")
    return h, w


def check_interval(interval) -> tuple[float, float]:
    """The times between which guidance acts, (low, high) in [0, 1]."""
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise ValueError(f"guidance_interval {short_repr(interval)}: must be (low, high)")
    low, high = (check_float(t, "guidance_interval", 0.0, 1.0) for t in interval)
    if low > high:
        raise ValueError(f"guidance_interval {(low, high)}: low must not exceed high")
    return low, high


def items_of(values) -> list | None:
    """The items of a list, tuple, range, or of an array or tensor of one axis; None for anything else, which is one."""
    several = isinstance(values, (list, tuple, range)) or getattr(values, "ndim", None) == 1
    return list(values) if several else None


def row_seeds(seed, rows: int) -> tuple[int, ...]:
    """The seed of every row: those given, or seed + i, from a random one for None."""
    if (seeds := items_of(seed)) is not None:
        if len(seeds) != rows:
            raise ValueError(f"{len(seeds)} seeds for {rows} labels: give one seed, or one for each")
        return tuple(check_int(s, "seed", 0, SEEDS - 1) for s in seeds)
    first = secrets.randbelow(SEEDS) if seed is None else check_int(seed, "seed", 0, SEEDS - 1)
    return tuple((first + i) % SEEDS for i in range(rows))


def row_parts(rows: int, most: int) -> list[slice]:
    """The rows in parts of at most so many and at most BATCH, and at least one each."""
    size = max(1, min(BATCH, most))
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
