"""Measures how long work takes to start and to finish, by name, if `timings` is on; if it is off, nothing is added to any path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .._stats import BOUNDS, Histogram, Timing
from .._threads import Guard, time

if TYPE_CHECKING:
    from .._work.task import Task

# Names with a histogram of their own; all further names share one. A user who names each task differently would get a label for each.
_MOST_NAMES: Final = 100
OTHER: Final = "(other)"

# Called with each measurement: name, seconds until it started, if it did, and seconds until it was done.
Listener = Callable[[str, float | None, float], object]


class _Growing:
    """A histogram, as it grows."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def read(self) -> Histogram:
        return Histogram(tuple(self.counts), self.sum)


class Timings:
    """The histograms of one runtime in this process. From any thread."""

    def __init__(self, listeners: list[Listener]) -> None:
        # Until the start, and until the end.
        self._by_name: dict[str, tuple[_Growing, _Growing]] = {}
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
            start, finish = self._by_name.get(name) or self._by_name.setdefault(name, (_Growing(), _Growing()))
            to_start = None if began is None else max(0.0, began - submitted)
            if to_start is not None:
                start.add(to_start)
            finish.add(now - submitted)
        for listener in self._listeners:
            listener(name, to_start, now - submitted)

    def read(self) -> dict[str, Timing]:
        """Return the measurements so far."""
        with self._lock:
            return {name: Timing(start.read(), finish.read()) for name, (start, finish) in self._by_name.items()}
