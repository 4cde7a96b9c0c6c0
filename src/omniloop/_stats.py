"""What a runtime tells of itself. Loaded when first asked for: making the type is a tenth of what importing the package costs."""

from __future__ import annotations

from typing import NamedTuple


class Stats(NamedTuple):
    """
    What a runtime has done in this process, and what it does now. Immutable.

    At every moment ``accepted == queue_depth + running + scheduled + finished + dropped``. While work comes and goes, a count may be
    behind by what comes and goes during the look, and never exceeds the truth. The first five, `handed_over` and `refused` never go
    down: they can be counters.

    Attributes:
        accepted: Submissions that were accepted, of every kind.
        finished: Those that are done, whatever came of them; but for those that were dropped.
        failed: Those that ended with an error, asked for or not.
        cancelled: Those that ended by cancellation.
        dropped: Submissions that the bounds of `configure` dropped.
        drain_time: Seconds that the last drain took, of `shutdown()` or at exit. 0 if there was none.
        running: Started and not done; daemons and periodic calls too.
        scheduled: Calls that are not due yet.
        queue_depth: Accepted and not started: the loop, or a worker thread, has not come to them yet.
        loop_lag: Seconds that the loop took to answer the last `stats()`, or that it has not answered for. 0 for the first.
        handed_over: Calls of `background(broker=…)` that their engine has taken.
        handing_over: Those that are on their way to it.
        refused: Those that were refused, because too many were on their way.

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
