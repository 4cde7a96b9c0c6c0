"""Delivers log records to an async sink: logging only queues them, a task on the loop delivers them, the drain delivers the last."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from contextvars import Context, ContextVar
from threading import Lock
from typing import Final

from omniloop import OmniloopError, Runtime, Task
from omniloop._arguments import check_count
from omniloop._process import exit
from omniloop._shared import chosen
from omniloop._threads import time

Sink = Callable[[list[logging.LogRecord]], Awaitable[object]]

# Set while a sink runs, and inherited by the tasks and threads that it starts.
_in_sink: Final[ContextVar[bool]] = ContextVar("omniloop_in_sink", default=False)


# How often `flush` checks again for a delivery that another thread is starting, and the seconds between two checks.
_LOOKS: Final = 1_000
_PAUSE: Final = 0.001

# Seconds between two lines on stderr, at least.
_QUIET: Final = 1.0

# Seconds before each retry of the same records, after the sink has failed. Their sum is a guess at how long a collector takes to restart.
# After the last retry the records are dropped. From then on, until a success, each batch gets one try, with the last pause between.
_BACK_OFF: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
# How many parts of a count are replaced by their sum at a time.
_MANY: Final = 1_000
# Seconds between two checks, during a pause, whether the program is ending or waits in `flush`.
_LOOK: Final = 0.05


class AsyncHandler(logging.Handler):
    """
    A logging handler whose sink is async: ``async def sink(records)`` gets the records that gathered since its last call, in order.

    Logging a record never waits and takes no lock, and may be done anywhere: on the loop, in signal handlers and finalisers. Each
    record is formatted at once, by the handler's formatter, into `message`, as `logging.handlers.QueueHandler` does. At exit the
    runtime's drain delivers the last records; later ones go to stderr if they are warnings or worse.

    Records that the sink itself logs are left out, and so are those of the tasks and threads that it starts: they would come back to
    it for ever. When a sink raises, that is reported on stderr, as with any handler that fails; the records that it did not take
    count as dropped.

    Attributes:
        dropped: How many records were not delivered: the queue was full, the sink failed, or the time to drain was over.

    Args:
        sink: An async function of one list of records.
        capacity: How many records may wait. While the queue is full, new records are dropped.
        batch: How many records one call of the sink gets, at most.
        level: The level, as of every handler.
        runtime: Where the sink runs; by default the one that the whole process shares.

    Raises:
        ValueError: if *capacity* or *batch* is not a whole number of 1 or more.
        TypeError: if *sink* can't be called, or *runtime* is no `Runtime`.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        capacity: int = 10_000,
        batch: int = 100,
        level: int | str = logging.NOTSET,
        runtime: Runtime | None = None,
    ) -> None:
        for name, value in {"capacity": capacity, "batch": batch}.items():
            check_count(name, value)
        if not callable(sink):
            raise TypeError(f"sink={sink!r} can't be called. Pass an async function of one list of records.")
        super().__init__(level)
        self._dropped = _Count()
        self._sink = sink
        self._capacity = capacity
        self._batch = batch
        self._runtime = chosen(runtime)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._records: deque[logging.LogRecord] = deque()
        # Held while a delivery is scheduled or running.
        self._token = Lock()
        self._delivery: Task[None] | None = None
        # Held while a line on stderr is scheduled, or was written less than `_QUIET` seconds ago.
        self._quiet = Lock()
        self._told = _Count(self.dropped)
        self._dropped = _Count(self.dropped)
        self._failures = 0
        self._error: BaseException | None = None
        # One item for each thread in `flush`. While there is any, a batch that fails is dropped, not retried.
        self._flushing: list[None] = []

    @property
    def dropped(self) -> int:
        """How many records were not delivered."""
        return self._dropped.value

    def createLock(self) -> None:  # noqa: N802 - logging's name for it
        """Set no lock. A deque needs none, and a `flush` that held one would deadlock with a loop that waits for it in order to log."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record, if the filters let it pass."""
        # As the base class does it, without the lock.
        passed = self.filter(record)
        if isinstance(passed, logging.LogRecord):
            record = passed
        if passed:
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record, and start a delivery unless there is one. Does not wait."""
        if _in_sink.get():
            return
        if self._pid != os.getpid():
            # In a forked child: the parent delivers what was queued before the fork.
            self._begin()
        if len(self._records) >= self._capacity:
            self._dropped.add(1)
            self._tell_soon()
            return
        try:
            self._records.append(self.prepare(record))
        except Exception:
            self.handleError(record)
            return
        try:
            if self._token.acquire(False):
                # An empty context: the delivery would keep the context of the logging code alive.
                self._delivery = self._runtime.go(self._deliver(), name="log delivery", context=Context())
        except OmniloopError:
            self._give_token_back()
            # After the last drain `_rescue` shows warnings and worse. None of these records is reported as dropped.
            self._told.add(self._rescue())
        except BaseException:
            # Otherwise a signal handler that raises (Ctrl-C) would leave the token held for ever.
            self._give_token_back()
            raise

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a formatted copy of *record* without its arguments and traceback, which may change or be large."""
        message = self.format(record)
        record = copy.copy(record)
        record.message = record.msg = message
        record.args = record.exc_info = record.exc_text = record.stack_info = None
        return record

    def flush(self) -> None:
        """Wait until all queued records are delivered. On the loop's own thread, where that would never end, return at once."""
        self._flushing.append(None)
        try:
            self._wait()
        finally:
            self._flushing.pop()

    def _wait(self) -> None:
        for _ in range(_LOOKS):
            if not (self._records or self._token.locked()) or self._pid != os.getpid():
                return
            delivery = self._delivery
            if delivery is None or delivery.done():
                # Another thread is starting the next delivery.
                time.sleep(_PAUSE)
                continue
            try:
                delivery.exception()
            except CancelledError:
                pass
            except OmniloopError:
                return

    def close(self) -> None:
        """Deliver the queued records, report failures and drops that were not reported yet, and remove the handler from logging."""
        self.flush()
        self._tell()
        super().close()

    async def _deliver(self) -> None:
        _in_sink.set(True)
        records = self._records
        batch: list[logging.LogRecord] = []
        tries = 0
        try:
            while True:
                while records or batch:
                    batch = batch or [records.popleft() for _ in range(min(self._batch, len(records)))]
                    try:
                        await self._sink(batch)
                    except Exception as error:
                        self._failures += 1
                        self._error = error
                        hurry = self._in_a_hurry()
                        if hurry or tries >= len(_BACK_OFF):
                            self._dropped.add(len(batch))
                            batch = []
                        self._tell_soon()
                        await self._pause(_BACK_OFF[min(tries, len(_BACK_OFF) - 1)])
                        tries += 1
                    else:
                        batch = []
                        tries = 0
                self._give_token_back()
                # Check again after releasing the token: a thread that found it held relies on this check.
                if not records or not self._token.acquire(False):
                    return
        except BaseException:
            # Cancelled, because the time to drain has passed.
            self._dropped.add(len(batch))
            self._give_token_back()
            self._rescue()
            self._tell_soon()
            raise

    def _in_a_hurry(self) -> bool:
        return bool(self._flushing) or exit.draining()

    async def _pause(self, seconds: float) -> None:
        """Sleep for *seconds*, or until the program is ending or waits in `flush`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._in_a_hurry():
            await asyncio.sleep(_LOOK)

    def _tell_soon(self) -> None:
        """Have the loop write the next line on stderr, unless that is scheduled already. May be called anywhere, as `emit`."""
        if not self._quiet.acquire(False):
            return
        try:
            self._runtime.call_soon(self._tell_and_be_quiet, context=Context())
        except OmniloopError:
            # There is no loop any more: `close` writes the line.
            self._quiet.release()
        except BaseException:
            self._quiet.release()
            raise

    def _tell_and_be_quiet(self) -> None:
        if self._tell():
            asyncio.get_running_loop().call_later(_QUIET, self._tell_and_be_quiet)
            return
        self._quiet.release()
        # Check again after releasing, as in `_deliver`: a thread that found it held relies on this check.
        if self._has_news():
            self._tell_soon()

    def _has_news(self) -> bool:
        return self._failures > 0 or self.dropped > self._told.value

    def _tell(self) -> bool:
        """Report on stderr what happened since the last report. False if nothing did."""
        if not self._has_news():
            return False
        failures, self._failures = self._failures, 0
        error, self._error = self._error, None
        dropped = self.dropped - self._told.value
        self._told.add(dropped)
        said = []
        if failures:
            times = "" if failures == 1 else f" {failures} times, at last"
            said.append(f"The log sink failed{times}: {type(error).__name__}: {error}".replace("\n", " "))
        if dropped:
            said.append(f"{dropped:,} log records were dropped, {self.dropped:,} so far")
        # Like logging itself, silent if `raiseExceptions` is off or stderr is closed.
        if logging.raiseExceptions and sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(f"omniloop: {'; '.join(said)}.\n")
        return True

    def _give_token_back(self) -> None:
        try:
            self._token.release()
        except RuntimeError:
            # It was free already.
            pass

    def _rescue(self) -> int:
        """Drop the queued records, which nothing can deliver; show warnings and worse on stderr. Returns how many were dropped."""
        count = 0
        while self._records:
            record = self._records.popleft()
            self._dropped.add(1)
            count += 1
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
        return count


class _Count:
    """A counter that any thread may add to, and a signal handler in the middle of that, where `+=` would lose counts."""

    def __init__(self, value: int = 0) -> None:
        self._parts = [value]
        # Only ever tried: nothing waits for it.
        self._adding_up = Lock()

    def add(self, number: int) -> None:
        self._parts.append(number)
        if len(self._parts) > _MANY and self._adding_up.acquire(False):
            try:
                # One atomic step, so that the sum is right at every moment.
                self._parts[:_MANY] = [sum(self._parts[:_MANY])]
            finally:
                self._adding_up.release()

    @property
    def value(self) -> int:
        return sum(self._parts.copy())
