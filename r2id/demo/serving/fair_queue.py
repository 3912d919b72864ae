"""Who may compute: of what one user sends at once, one call at a time, so that nobody waits behind all of it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

MAX_WAITING_PER_USER, MAX_WAITING = (
    24,
    96,
)  # calls that may wait, of one user and of all; each holds a thread of the server


class FairQueue:
    """A line for every user. The heads of all lines compute side by side, and the worker takes their pieces in turn:
    who sends twenty diffusions delays the first one of somebody else by no more than one."""

    def __init__(self):
        self._changed = threading.Condition()
        self._lines: defaultdict[Hashable, deque] = defaultdict(deque)

    @contextmanager
    def turn(self, user: Hashable) -> Iterator[None]:
        """Until this is the user's oldest call. Raises ValueError at once where too many wait."""
        with self._changed:
            for count, most, whose in (
                (len(self._lines[user]), MAX_WAITING_PER_USER, "yours"),
                (len(self), MAX_WAITING, "all users"),
            ):
                if count >= most:
                    raise ValueError(f"busy: {count} calls of {whose} are waiting, at most {most} may; try again soon")
            (line := self._lines[user]).append(call := object())
            self._changed.wait_for(lambda: line[0] is call)
        try:
            yield
        finally:
            with self._changed:
                line.remove(call)
                if not line:
                    del self._lines[user]
                self._changed.notify_all()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))
