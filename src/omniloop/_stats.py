"""Counts what a runtime does, off the hot path, and gives it out as one snapshot."""

from threading import RLock
from typing import Literal, NamedTuple


class Stats(NamedTuple):
    """
    What a runtime has done in this process, and what it does now. Immutable.

    When the runtime is quiet, ``accepted == finished + running + scheduled + queue_depth``; while work comes and goes, a count
    may be behind by what comes and goes during the look. The first six never go down, so that they can be counters.

    Attributes:
        accepted: Submissions that were accepted, of every kind.
        finished: Those that are done, whatever came of them.
        failed: Those that ended with an error, asked for or not.
        cancelled: Those that ended by cancellation.
        dropped: Submissions that the bounds of `configure` dropped.
        drain_time: Seconds that the last drain took, of `shutdown()` or at exit. 0 if there was none.
        running: Started and not done; daemons and periodic calls too.
        scheduled: Calls that are not due yet.
        queue_depth: Accepted and not started: the loop, or a worker thread, has not come to them yet.
        loop_lag: Seconds that the loop took to answer the last `stats()`, or that it has not answered for. 0 for the first.
    """

    accepted: int
    finished: int
    failed: int
    cancelled: int
    dropped: int
    drain_time: float
    running: int
    scheduled: int
    queue_depth: int
    loop_lag: float


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
