"""Hands log records to an async sink: a bounded queue takes them at once, a task on the loop delivers them, and the drain sees to the last."""

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
from omniloop._clock import time
from omniloop._process import exit
from omniloop._shared import chosen

Sink = Callable[[list[logging.LogRecord]], Awaitable[object]]

# Set while a sink runs, and inherited by the tasks and threads that it starts.
_in_sink: Final[ContextVar[bool]] = ContextVar("omniloop_in_sink", default=False)


# How often, and how long, `flush` looks again for a delivery that another thread is starting.
_LOOKS: Final = 1_000
_PAUSE: Final = 0.001

# Seconds between two lines on stderr, whatever happens.
_QUIET: Final = 1.0

# Seconds until a sink that failed is tried again with the same records: long enough together for a collector to be restarted,
# a guess. After the last, the records are dropped, and the next ones are tried once each, with that pause between.
_BACK_OFF: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
# So many parts of a count are added up into one.
_MANY: Final = 1_000
# How often a pause looks whether the program ends meanwhile, or waits in `flush`.
_LOOK: Final = 0.05


class AsyncHandler(logging.Handler):
    """
    A logging handler whose sink is async: ``async def sink(records)`` gets the records that gathered since its last call, in order.

    Logging a record never waits, takes no lock, and may be done wherever logging may: on the loop, in signal handlers and
    finalisers. The records are formatted at once, by the handler's formatter, into `message`, as
    `logging.handlers.QueueHandler` does. At exit the runtime's drain delivers the last ones; what comes after that, and is a
    warning or worse, goes to stderr.

    What the sink itself logs is left out, and so are records of the tasks and threads that it starts: they would come
    back to it for ever. A sink that raises is told of on stderr, as any handler that fails; its records count as dropped.

    Attributes:
        dropped: How many records were not delivered: the queue was full, the sink failed, or the time to drain was over.

    Args:
        sink: An async function of one list of records.
        capacity: So many records wait at the most; more are dropped, the newest first.
        batch: So many are handed over in one call at the most.
        level: As for every handler.
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
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of 1 or more.")
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
        # Held while a delivery is due or under way.
        self._token = Lock()
        self._delivery: Task[None] | None = None
        # Held while a line on stderr is due, or was just written.
        self._quiet = Lock()
        self._told = _Count(self.dropped)
        self._dropped = _Count(self.dropped)
        self._failures = 0
        self._error: BaseException | None = None
        # One for each thread that waits in `flush`: what fails is not tried again then.
        self._flushing: list[None] = []

    @property
    def dropped(self) -> int:
        """How many records were not delivered."""
        return self._dropped.value

    def createLock(self) -> None:  # noqa: N802 - logging's name for it
        """None: a deque needs no lock, and a `flush` that held one would wait for a loop that waits for it, to log."""
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
        """Queue the record, and see that it is delivered. Does not wait."""
        if _in_sink.get():
            return
        if self._pid != os.getpid():
            # A forked child: what was queued is the parent's to deliver.
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
                # Not the context of whoever logs: it would live as long as the delivery.
                self._delivery = self._runtime.go(self._deliver(), name="log delivery", context=Context())
        except OmniloopError:
            self._give_token_back()
            # Of what comes after the last drain, the bad is shown, and of the rest there is nothing to say.
            self._told.add(self._rescue())
        except BaseException:
            # A signal handler that raises (Ctrl-C) would else leave it taken for ever.
            self._give_token_back()
            raise

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a copy of *record* that is formatted, and holds on to nothing: its arguments may change, or be large."""
        message = self.format(record)
        record = copy.copy(record)
        record.message = record.msg = message
        record.args = record.exc_info = record.exc_text = record.stack_info = None
        return record

    def flush(self) -> None:
        """Wait until all that is queued is delivered. On the loop's own thread, where that would never end, return at once."""
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
                # Another thread is starting the next one.
                time.sleep(_PAUSE)
                continue
            try:
                delivery.exception()
            except CancelledError:
                pass
            except OmniloopError:
                return

    def close(self) -> None:
        """Deliver what is queued, say how many were dropped since that was last said, and forget the handler."""
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
                # Looking again after giving back: who found the token held relies on this look.
                if not records or not self._token.acquire(False):
                    return
        except BaseException:
            # Cancelled, because the time to drain is over.
            self._dropped.add(len(batch))
            self._give_token_back()
            self._rescue()
            self._tell_soon()
            raise

    def _in_a_hurry(self) -> bool:
        return bool(self._flushing) or exit.draining()

    async def _pause(self, seconds: float) -> None:
        """Wait that long, or until somebody is in a hurry."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._in_a_hurry():
            await asyncio.sleep(_LOOK)

    def _tell_soon(self) -> None:
        """Have the loop say what there is to say, unless that is due already. May be called anywhere, as `emit`."""
        if not self._quiet.acquire(False):
            return
        try:
            self._runtime.call_soon(self._tell_and_be_quiet, context=Context())
        except OmniloopError:
            # `close` says it.
            self._quiet.release()
        except BaseException:
            self._quiet.release()
            raise

    def _tell_and_be_quiet(self) -> None:
        if self._tell():
            asyncio.get_running_loop().call_later(_QUIET, self._tell_and_be_quiet)
            return
        self._quiet.release()
        # As with the other token: who found it held relies on this look.
        if self._has_news():
            self._tell_soon()

    def _has_news(self) -> bool:
        return self._failures > 0 or self.dropped > self._told.value

    def _tell(self) -> bool:
        """Say on stderr what happened since it was last said; False if nothing did."""
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
        # As logging itself, which is silent where this is off, or stderr is closed.
        if logging.raiseExceptions and sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(f"omniloop: {'; '.join(said)}.\n")
        return True

    def _give_token_back(self) -> None:
        try:
            self._token.release()
        except RuntimeError:
            # It was free.
            pass

    def _rescue(self) -> int:
        """Nothing can deliver what is queued: say at least, on stderr, what is bad. Returns how many there were."""
        count = 0
        while self._records:
            record = self._records.popleft()
            self._dropped.add(1)
            count += 1
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
        return count


class _Count:
    """A number that is added to from any thread, and in a signal handler in the middle of that, where += would lose some."""

    def __init__(self, value: int = 0) -> None:
        self._parts = [value]
        # Never waited for.
        self._adding_up = Lock()

    def add(self, number: int) -> None:
        self._parts.append(number)
        if len(self._parts) > _MANY and self._adding_up.acquire(False):
            try:
                # Replaced in one step, so that the sum is right at every moment.
                self._parts[:_MANY] = [sum(self._parts[:_MANY])]
            finally:
                self._adding_up.release()

    @property
    def value(self) -> int:
        return sum(self._parts.copy())
