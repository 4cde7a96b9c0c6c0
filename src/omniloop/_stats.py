"""The type that `stats()` returns; `Life.stats` fills it in. Loaded on first use: it is a tenth of the cost of importing the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# The upper bounds of a histogram's buckets, in seconds. The last bucket has no bound.
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Histogram(NamedTuple):
    """
    How many measurements fell into each range.

    Attributes:
        counts: For each bound of `BOUNDS`, how many took no longer than it and longer than the one before; last, how many took longer than all.
        sum: The seconds of all together.
    """

    counts: tuple[int, ...]
    sum: float


class Timing(NamedTuple):
    """
    How long the tasks of one name took, from their submission.

    Attributes:
        to_start: Until they started. Tasks that never started are missing.
        to_finish: Until they were done, whichever way they ended.
    """

    to_start: Histogram
    to_finish: Histogram


class Stats(NamedTuple):
    """
    What a runtime has done in this process, and what it does now. Immutable.

    At every moment ``accepted == queue_depth + running + scheduled + finished + dropped``. A count may miss work that comes or goes during
    the look, and is never above the truth. The first five, `handed_over` and `refused` never go down: they can be counters.

    Attributes:
        accepted: Submissions that were accepted, of every kind.
        finished: Those that are done, whichever way they ended, except those that were dropped.
        failed: Those that ended with an error, asked for or not.
        cancelled: Those that ended by cancellation.
        dropped: Submissions that the bounds of `configure` dropped.
        drain_time: Seconds that the last drain took, of `shutdown()` or at exit. 0 if there was none.
        running: Started and not done; daemons and periodic calls too.
        scheduled: Calls that are not due yet.
        queue_depth: Accepted and not started: the loop, or a worker thread, has not come to them yet.
        loop_lag: Seconds that the loop took to answer the last `stats()`, or has not answered it so far. 0 on the first call.
        handed_over: Calls of `background(broker=…)` that their engine has taken.
        handing_over: Those that are on their way to their engine.
        refused: Those that were refused because too many were on their way.
        timings: With the setting `timings`, how long the tasks of each name took to start and to finish; else None. After the first hundred
            names, tasks of any other name are counted together as `(other)`.

    Example:
        >>> from omniloop import Runtime
        >>> with Runtime() as runtime:
        ...     runtime.call_soon(print, "hello").result(timeout=5)
        hello
        >>> runtime.stats().accepted, runtime.stats().failed
        (1, 0)
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
    handed_over: int = 0
    handing_over: int = 0
    refused: int = 0
    timings: Mapping[str, Timing] | None = None
