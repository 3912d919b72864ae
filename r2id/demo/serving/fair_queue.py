"""Who may compute: of what one visitor sends at once, one call at a time, so that nobody waits behind all of it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

EACH, ALL = 24, 96  # calls that may wait, of one visitor and of all; each holds a thread of the server


class Turns:
    """A line for every visitor. The heads of all lines compute side by side, and the worker takes their pieces in turn:
    who sends twenty diffusions delays the first one of somebody else by no more than one."""

    def __init__(self):
        self._changed = threading.Condition()
        self._lines: defaultdict[Hashable, deque] = defaultdict(deque)

    @contextmanager
    def turn(self, visitor: Hashable) -> Iterator[None]:
        """Until this is the visitor's oldest call. Raises ValueError at once where too many wait."""
        with self._changed:
            for count, most, whose in ((len(self._lines[visitor]), EACH, "yours"), (len(self), ALL, "all visitors")):
                if count >= most:
                    raise ValueError(f"busy: {count} calls of {whose} are waiting, at most {most} may; try again soon")
            (line := self._lines[visitor]).append(call := object())
            self._changed.wait_for(lambda: line[0] is call)
        try:
            yield
        finally:
            with self._changed:
                line.remove(call)
                if not line:
                    del self._lines[visitor]
                self._changed.notify_all()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))
