"""What data were taken for, in lines to be read before training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

CLASSES = 20  # named with their counts
WIDTH = 40  # characters of a name


class MissingSplit(ValueError):
    """Data without the split that is asked for."""


def plural(count: int, thing: str = "image") -> str:
    if count == 1:
        return f"1 {thing}"
    return f"{count:,} {thing[:-1] + 'ie' if thing.endswith('y') else thing}{'es' if thing.endswith('s') else 's'}"


def split_line(data: str, sizes: dict[str, int], held_out: int) -> str:
    """Images by use. sizes: of the splits as they are stored; held_out: of the training set, to validate on."""
    count = sizes.get("train", 0)
    parts = []
    if count and "validation" in sizes:
        parts = [f"{plural(count)} to train on", f"{sizes['validation']:,} to validate on"]
    elif count and held_out == 0:
        parts = [f"{plural(count)} to train on, and to validate on too: there are so few"]
    elif count:
        parts = [f"{plural(count - held_out)} to train on", f"{held_out:,} more to validate on"]
    if "test" in sizes:
        parts.append(f"{sizes['test']:,} to test on")
    others = [f"{size:,} in {name}" for name, size in sizes.items() if name not in ("train", "validation", "test")]
    return f"{data}: {', '.join(parts + others)}"


def class_line(split: str, names: Sequence[str], labels_N: Tensor) -> str:
    """Classes with their counts among the labels, -1 for images without one."""
    if not names:
        return "no classes"
    counts = labels_N[labels_N >= 0].bincount(minlength=len(names)).tolist()
    named = [f"{name[:WIDTH]} ({count:,})" for name, count in zip(names, counts, strict=True)]
    if len(named) > CLASSES:
        rest = counts[CLASSES - 1 :]
        named = [*named[: CLASSES - 1], f"and {len(rest):,} more with {min(rest):,} to {max(rest):,} each"]
    without = int((labels_N < 0).sum())
    tail = f"; {plural(without)} without a class" if without else ""
    return f"{plural(len(names), 'class')} ({split}): {', '.join(named)}{tail}"
