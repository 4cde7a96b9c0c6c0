"""How many coroutines are started in a batch where first steps come in the loop's next turn: up to 3.11, and with a task factory of the user's."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Final

from .._threads import time

# The size of the first batch, and the largest size: a turn of the loop costs as much as four first steps.
_FIRST: Final = 16
_MOST: Final = 64


class BatchSize:
    """
    Counts the coroutines of a batch that wait for their first step, and sets the next batch's size by the time that these steps took.

    For the loop's thread. Elsewhere starting *is* the first step, and a look at the time is enough to end a batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, seconds: float) -> None:
        self._loop = loop
        self._context = context
        # How long the first steps of a batch may take.
        self._seconds = seconds
        self._size = _FIRST
        # How many wait for their first step, and how many of them are of this batch.
        self.waiting = 0
        self._count = 0
        # The CPU time of the loop's thread when the second step of the batch began.
        self._since: float | None = None

    def add(self) -> bool:
        """Count one more coroutine that waits. True if the batch is to end with it."""
        self.waiting += 1
        self._count += 1
        if self._count == 2:
            # Not for the first: a single step needs no measuring.
            self._loop.call_soon(self._note_start, context=self._context)
        return self._count >= self._size

    def end(self) -> None:
        """End the batch."""
        count, self._count = self._count, 0
        if count:
            self._loop.call_soon(self._taken, count, context=self._context)

    def _note_start(self) -> None:
        # The CPU time of this thread alone: the steps are not to blame for other threads or a busy machine.
        self._since = time.thread_time()

    def _taken(self, count: int) -> None:
        """Note that all coroutines of a batch have taken their first step."""
        self.waiting -= count
        since, self._since = self._since, None
        if since is not None:
            took = max(time.thread_time() - since, 1e-9)
            if took > self._seconds or count >= self._size:
                self._size = max(2, min(2 * count, int(count * self._seconds / took), _MOST))
