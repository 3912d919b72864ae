"""Progress of what takes long: a bar in a terminal, and a line a minute in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_EVERY = 60  # seconds between lines, where standard error is a file or a pipe


def progress_bar(
    items: Iterable | None = None, title: str | None = None, *, unit: str = "batch", leave: bool = False, **options
) -> tqdm:
    """tqdm's bar, whose options are taken. In a log it writes whole lines and seldom, since every redrawing stays."""
    if not sys.stderr.isatty():
        plain = "{desc}: {n_fmt}/{total_fmt} {elapsed}<{remaining}, {rate_fmt}{postfix}\n"
        options |= {"mininterval": LOG_EVERY, "maxinterval": LOG_EVERY, "bar_format": plain}
        options |= {} if leave else {"delay": LOG_EVERY}
    return tqdm(items, title, unit=unit, leave=leave, dynamic_ncols=True, **options)
