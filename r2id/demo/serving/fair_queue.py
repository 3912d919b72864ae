"""Admits one call per user at a time, so that nobody waits behind everything that another user has queued."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

# Queued calls. Each one occupies a thread of the server.
MAX_WAITING_PER_USER = 24
MAX_WAITING = 96


class FairQueue:
    """One first-in-first-out line per user. The oldest calls of all users run concurrently, and the worker interleaves
    their pieces: a user with twenty queued jobs delays another user's first job by at most one."""

    def __init__(self):
        self._changed = threading.Condition()
        self._lines: defaultdict[Hashable, deque] = defaultdict(deque)

    @contextmanager
    def turn(self, user: Hashable) -> Iterator[None]:
        """Waits until this is the user's oldest call, and holds the turn until the block ends.

        Raises ValueError immediately if too many calls are queued.
        """
        with self._changed:
            self._check(len(self._lines[user]), MAX_WAITING_PER_USER, "yours")
            self._check(len(self), MAX_WAITING, "all users")
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
        """Calls that run or wait."""
        return sum(map(len, self._lines.values()))

    @staticmethod
    def _check(count: int, limit: int, whose: str) -> None:
        if count >= limit:
            raise ValueError(f"busy: {count} calls of {whose} are waiting, at most {limit} may; try again soon")
