"""Takes its turns at a fixed rate, without drift or overlap, whatever happens in one of them."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from .. import _cpython
from .._report import Failure, Site, shown

# A clock that stands still for longer than the first, in seconds, is a coarse one; none does for as long as the second. (15.6 ms, with
# Python 3.11 and 3.12 on Windows.)
_COARSE: Final = 0.001
COARSEST: Final = 0.02


def coarse_resolution(loop: asyncio.AbstractEventLoop) -> float:
    """
    The resolution of the loop's clock, in seconds, if it is a coarse one; else 0.

    asyncio takes a timer for due that is within it. Whoever is called early by less waits once more, for the rest and this, because the rest alone would be
    taken for due again at once.
    """
    resolution = _cpython.clock_resolution(loop)
    return resolution if resolution > _COARSE else 0.0


class Turns:
    """The turns of one function. All of it on the loop's thread."""

    def __init__(
        self,
        interval: float,
        fn: Callable[[], object],
        jitter: float,
        immediately: bool,
        daemon: bool,
        name: str,
        site: Site,
        report: Callable[[Failure], None],
    ) -> None:
        # As good as nothing, and the number of turns stays one.
        self._interval = max(interval, 1e-9)
        self._fn = fn
        self._jitter = jitter
        self._first = 0 if immediately else 1
        # Whether a turn that is under way at the end is cancelled.
        self.daemon = daemon
        self._name = name
        self._site = site
        self._report = report
        self._under_way = self._over = False

    async def run(self) -> None:
        """Call the function, and await what it returns, every *interval* seconds by the loop's clock, until cancelled or stopped."""
        # Here, because it would be a tenth of what the whole package costs to import.
        import random

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        _of[task] = self
        resolution = coarse_resolution(loop)
        start = loop.time()
        turn = self._first
        while not self._over:
            # Counted from the start, so that the length of a turn and the lateness of a timer do not add up.
            due = start + turn * self._interval + (random.uniform(0, self._jitter) if self._jitter else 0)
            await asyncio.sleep(max(0.0, due - loop.time()))
            while 0 < (left := due - loop.time()) < COARSEST:
                # asyncio takes for due what is within the resolution of its clock.
                await asyncio.sleep(left + resolution)
            await self._take(task)
            # What is past is left out: late turns do not pile up.
            turn = max(turn + 1, math.ceil((loop.time() - start) / self._interval))
        # As those are that are between two turns at the end.
        raise asyncio.CancelledError

    async def _take(self, task: asyncio.Task[object]) -> None:
        self._under_way = True
        try:
            value = self._fn()
            if inspect.isawaitable(value):
                await value
        except GeneratorExit:
            # Closed, not run: at the end of an interpreter that forgot its loop.
            raise
        except BaseException as error:
            # A cancellation may be the turn's own: that of something it waited for.
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise
            self._report(
                Failure(f"A turn of '{shown(self._name)}' failed; the next one comes", error, self._name, self._site)
            )
        finally:
            self._under_way = False

    def begin_no_more(self) -> bool:
        """Begin no other turn; True if one is under way."""
        self._over = True
        return self._under_way


# By the asyncio task that takes them.
_of: Final[WeakKeyDictionary[asyncio.Future[None], Turns]] = WeakKeyDictionary()


def turns_of(runner: asyncio.Future[None]) -> Turns | None:
    """The turns that *runner* takes; None if it is another's."""
    return _of.get(runner)
