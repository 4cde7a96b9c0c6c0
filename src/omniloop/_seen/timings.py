"""Measures how long work takes to start and to finish, by name, if `timings` is on; if it is off, nothing is added to any path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .._clock import time
from .._locks import Guard
from .._stats import BOUNDS, Histogram, Timing

if TYPE_CHECKING:
    from .._work.task import Task

# Names with a histogram of their own; all further names share one. A user who names each task differently would get a label for each.
_MOST_NAMES: Final = 100
OTHER: Final = "(other)"

# Called with each measurement: name, seconds until it started, if it did, and seconds until it was done.
Listener = Callable[[str, float | None, float], object]


class _Series:
    """The histograms of one name, as they grow."""

    __slots__ = ("finish", "finish_sum", "start", "start_sum")

    def __init__(self) -> None:
        self.start = [0] * (len(BOUNDS) + 1)
        self.start_sum = 0.0
        self.finish = [0] * (len(BOUNDS) + 1)
        self.finish_sum = 0.0


class Timings:
    """The histograms of one runtime in this process. From any thread."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._by_name: dict[str, _Series] = {}
        self._listeners = listeners
        # Re-entrant, because a signal handler may submit work that is done at once.
        self._lock = Guard()

    def measure(self, task: Task[Any], batch_began: Callable[[], float]) -> None:
        """Measure *task* from now on. *batch_began* returns when the loop began the batch that it is starting."""
        task._when_done(partial(self._done, task, time.monotonic(), batch_began))

    def _done(self, task: Task[Any], submitted: float, batch_began: Callable[[], float]) -> None:
        now = time.monotonic()
        # Work that is done in its first step has not noted when it began.
        began: float | None = getattr(task, "_since", None)
        if began is None and not task.cancelled():
            began = min(max(submitted, batch_began()), now)
        name = task.get_name()
        with self._lock:
            if name not in self._by_name and len(self._by_name) >= _MOST_NAMES:
                name = OTHER
            series = self._by_name.get(name)
            if series is None:
                series = self._by_name[name] = _Series()
            to_start = None if began is None else max(0.0, began - submitted)
            if to_start is not None:
                series.start[bisect_left(BOUNDS, to_start)] += 1
                series.start_sum += to_start
            series.finish[bisect_left(BOUNDS, now - submitted)] += 1
            series.finish_sum += now - submitted
        for listener in self._listeners:
            listener(name, to_start, now - submitted)

    def read(self) -> dict[str, Timing]:
        """Return the measurements so far."""
        with self._lock:
            return {
                name: Timing(
                    Histogram(tuple(series.start), series.start_sum), Histogram(tuple(series.finish), series.finish_sum)
                )
                for name, series in self._by_name.items()
            }
