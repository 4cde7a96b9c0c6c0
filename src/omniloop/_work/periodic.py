"""Calls a function at a fixed rate, without drift or overlap, whatever happens in one of the calls."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import Callable

from .._report import Failure, Site, shown
from .._threads import COARSEST, coarse_resolution
from .ledger import turns_of


class Turns:
    """The turns of one function. For the loop's thread."""

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
        # A smaller interval becomes this, so that the number of turns stays finite.
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
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        turns_of[task] = self
        resolution = coarse_resolution(loop)
        start = loop.time()
        turn = self._first
        while not self._over:
            # Counted from the start, so that the length of a turn and the lateness of a timer do not add up.
            due = start + turn * self._interval + (random.uniform(0, self._jitter) if self._jitter else 0)
            await asyncio.sleep(max(0.0, due - loop.time()))
            while 0 < (left := due - loop.time()) < COARSEST:
                # asyncio takes a timer for due that is less than the resolution of its clock away.
                await asyncio.sleep(left + resolution)
            await self._take(task)
            # Turns that are past are skipped, so that late turns do not pile up.
            turn = max(turn + 1, math.ceil((loop.time() - start) / self._interval))
        # Ends as cancelled, like calls that are between two turns at the end.
        raise asyncio.CancelledError

    async def _take(self, task: asyncio.Task[object]) -> None:
        self._under_way = True
        try:
            value = self._fn()
            if inspect.isawaitable(value):
                await value
        except GeneratorExit:
            # The coroutine is closed, not run: the interpreter ends and has forgotten the loop.
            raise
        except BaseException as error:
            # Without a request to cancel this task, the cancellation is of something that the turn awaited.
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
