"""Limits how many coroutines are started in a batch where first steps come in the loop's next turn, because nothing starts eagerly."""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from time import process_time
from typing import Final

from .._clock import time

# The size of the first batch, and the largest size. What is made and done with 64 at a time is still in the processor's cache, and
# costs half of what it does with 1,024 (on 3.11).
_FIRST: Final = 16
_MOST: Final = 64

# If other threads computed for longer than this in a turn of the loop, the turn waits for them: twice the interpreter's switch
# interval.
_BUSY: Final = 0.01


class FirstSteps:
    """
    Counts the coroutines of a batch that wait for their first step, and sets the next limit by the time that the last batch's steps took.

    For the loop's thread. Needed up to 3.11, and with a task factory of the user's. Elsewhere starting *is* the first step, and a look at the
    time is enough to end a batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, batch: float) -> None:
        self._loop = loop
        self._context = context
        self._batch = batch
        # How many wait for the next turn; and how many of them did so before this batch.
        self.waiting = 0
        self._before = 0
        self._limit = _FIRST
        # Of the last batch: when it was over, the CPU time of the process's other threads by then, how long its turn waited for them,
        # and this thread's CPU time when the second step began.
        self._over = 0.0
        self._others = 0.0
        self._turn = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """Begin a batch."""
        self._before = self.waiting

    def add(self) -> bool:
        """Count one more coroutine that waits. True if the batch is to end with it."""
        self.waiting += 1
        count = self.waiting - self._before
        if count == 2:
            # Not for the first: a single step needs no measuring.
            self._loop.call_soon(self._measure, context=self._context)
        return count >= self._limit

    def end(self) -> None:
        """End the batch."""
        count = self.waiting - self._before
        if count:
            self._over = time.perf_counter()
            self._others = process_time() - time.thread_time()
            self._loop.call_soon(self._taken, count, context=self._context)

    def _measure(self) -> None:
        # Only if threads of this process were busy: larger batches help against threads that hold the interpreter, but not against
        # other processes.
        others = process_time() - time.thread_time() - self._others
        self._turn = time.perf_counter() - self._over if others > _BUSY else 0.0
        # The CPU time of this thread alone: the steps are not to blame for other threads or a busy machine.
        self._since = time.thread_time()

    def _taken(self, count: int) -> None:
        """Note that all coroutines of a batch have taken their first step."""
        self.waiting -= count
        since, self._since = self._since, None
        if since is None:
            return
        took = time.thread_time() - since
        # If other threads keep the interpreter busy, each turn of the loop waits for it. Then fewer turns are better, and a batch may
        # take as long as that wait. (With four such threads, 20,000 no-ops on 3.11 took 5 s, and take 1.2 this way.)
        time_limit, most = (self._batch, _MOST) if self._turn < _BUSY else (self._turn, sys.maxsize)
        if took > time_limit or count >= self._limit:
            self._limit = max(2, min(2 * count, int(count * time_limit / max(took, 1e-9)), most))
