"""Counts what a runtime does, off the hot path."""

from __future__ import annotations

from threading import RLock
from typing import Literal


class Tally:
    """What was counted of a runtime since its process began. Outlives the runtime's lives."""

    __slots__ = ("_accepted", "_finished", "_lock", "cancelled", "dropped", "failed", "in_threads", "started")

    def __init__(self) -> None:
        # On the hot path, and so without the lock: by the loop's thread alone.
        self.started = 0
        # From any thread, by `count`.
        self.in_threads = 0
        self.failed = 0
        self.cancelled = 0
        self.dropped = 0
        self._accepted = 0
        self._finished = 0
        # Re-entrant, because a signal handler may submit in the middle of a count.
        self._lock = RLock()

    def count(self, what: Literal["in_threads", "failed", "cancelled", "dropped"]) -> None:
        """One more. From any thread."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def totals(self, taken: int, running: int, scheduled: int, queued: int) -> tuple[int, int]:
        """
        How many were accepted, and finished, ever.

        *taken* must be read before the others: then each total is behind the truth at worst, and what was said before is not taken back.
        """
        with self._lock:
            self._finished = max(self._finished, taken - running - scheduled)
            self._accepted = max(self._accepted, taken + queued)
            return self._accepted, self._finished
