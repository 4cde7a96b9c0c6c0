"""Where nothing starts eagerly, and first steps come in the loop's next turn: how much is started at once, as fits into a batch."""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from time import process_time
from typing import Final

from .._clock import time

# So many in the first batch, and so many at the most. What is made and done with 64 at a time is still in the processor's cache,
# and costs half of what it does with 1,024 (on 3.11).
_FIRST: Final = 16
_MOST: Final = 64

# A turn of the loop in which other threads had longer than this waits for them: twice the interpreter's switch interval.
_BUSY: Final = 0.01


class FirstSteps:
    """
    Counts, batch by batch, what is started and waits for its first step, and learns from how long those of the last batch took.

    For the loop's thread. Needed up to 3.11, and with a task factory of the user's: elsewhere starting *is* the first step, and a
    batch needs no more than a look at the time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, batch: float) -> None:
        self._loop = loop
        self._context = context
        self._batch = batch
        # How much waits for the next turn; and how much of that did so before this batch.
        self.waiting = 0
        self._before = 0
        self._limit = _FIRST
        # When the batch was over, and what other threads of the process had computed by then; how long its turn waited for them; and
        # the thread's own time when the second step began.
        self._over = 0.0
        self._others = 0.0
        self._turn = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """A batch begins."""
        self._before = self.waiting

    def add(self) -> bool:
        """One more waits. True if the batch is to end with it."""
        self.waiting += 1
        count = self.waiting - self._before
        if count == 2:
            # Not before the first: what is alone needs no measuring.
            self._loop.call_soon(self._measure, context=self._context)
        return count >= self._limit

    def end(self) -> None:
        """The batch is over."""
        count = self.waiting - self._before
        if count:
            self._over = time.perf_counter()
            self._others = process_time() - time.thread_time()
            self._loop.call_soon(self._taken, count, context=self._context)

    def _measure(self) -> None:
        # Unless other processes had the machine meanwhile: larger batches help against threads that hold the interpreter, and those alone.
        others = process_time() - time.thread_time() - self._others
        self._turn = time.perf_counter() - self._over if others > _BUSY else 0.0
        # Of this thread alone: what others do meanwhile, or the machine, is not the steps' fault.
        self._since = time.thread_time()

    def _taken(self, count: int) -> None:
        """All of a batch have taken their first step."""
        self.waiting -= count
        since, self._since = self._since, None
        if since is None:
            return
        took = time.thread_time() - since
        # Where other threads keep the interpreter busy each turn of the loop waits for it: then fewer of them, which may take as long
        # as that. (Four such threads, 20,000 no-ops on 3.11: 5 s, so 1.2.)
        time_limit, most = (self._batch, _MOST) if self._turn < _BUSY else (self._turn, sys.maxsize)
        if took > time_limit or count >= self._limit:
            self._limit = max(2, min(2 * count, int(count * time_limit / max(took, 1e-9)), most))
