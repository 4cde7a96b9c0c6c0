"""Tools for tests: a clock that the test moves instead of sleeping, and runtimes whose leaked work and lost errors fail the test."""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from threading import Lock
from typing import Any, Final, TypeVar, TypeVarTuple

from omniloop import Failure, Runtime, WaitTimeoutError, WouldDeadlockError, shared_runtime
from omniloop._life.shutdown import describe
from omniloop._report import shown

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Real seconds that `Clock.advance` waits for running callbacks and worker threads, which the clock can't move.
_PATIENCE: Final = 5.0


class Clock:
    """
    A clock for event loops; its time stands still until `advance` moves it.

    For tests of `every`, `call_later`, `asyncio.sleep` and `asyncio.timeout`: an hour passes in a moment, and every timer in it runs,
    in order. A wait in the caller's thread, such as `result(timeout)`, still takes real seconds. So does the network: call `result()` or
    `flush()` for such work before you move on.
    """

    def __init__(self) -> None:
        self._now = time.monotonic()
        self._loops: list[_Loop] = []

    def time(self) -> float:
        """Return the time of this clock, as `loop.time()` returns it and `call_at` takes it. It starts at `time.monotonic()`."""
        return self._now

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop that runs by this clock. Can be used as a `loop_factory`."""
        loop = _Loop(self.time)
        self._loops.append(loop)
        return loop

    def new_runtime(self, **settings: Any) -> Runtime:
        """Make a `Runtime` that runs by this clock."""
        runtime = Runtime(**settings, loop_factory=self.new_loop)
        runtime._clock = self.time
        return runtime

    def advance(self, seconds: float) -> None:
        """
        Move the time from timer to timer, and run everything that becomes due; return when all loops wait again.

        Blocks; for the test's thread, not for the loop's own.

        Args:
            seconds: How far to move. 0 runs only what is already due.

        Raises:
            ValueError: if *seconds* is not a number of seconds.
            WouldDeadlockError: if called on a loop that runs by this clock.
            TimeoutError: if a loop does not come to rest: a callback blocks, a task never really waits, or work in a worker thread goes
                on.
        """
        if not isinstance(seconds, (int, float)) or not 0 <= seconds <= sys.float_info.max:
            raise ValueError(f"seconds={seconds!r}: give seconds as a number of 0 or more.")
        if asyncio._get_running_loop() in self._loops:
            raise WouldDeadlockError(
                "advance() would wait, on the loop's own thread, for this very callback. Call it in the test."
            )
        until = self._now + seconds
        while (due := self._come_to_rest()) <= until:
            self._now = max(self._now, due)
        self._now = until
        self._come_to_rest()

    def _come_to_rest(self) -> float:
        """Wait until every loop is idle; return the time at which the next timer is due."""
        self._loops = [loop for loop in self._loops if not loop.is_closed()]
        return min((loop.come_to_rest() for loop in self._loops), default=math.inf)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time comes from a clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._time = clock
        # The lock on which a thread waits for this loop to come to rest. A callback sets it, so that earlier callbacks have run.
        self._gate: Lock | None = None
        self._due = math.inf
        self._in_threads = 0
        super().__init__(_Selector(self._at_rest))

    def time(self) -> float:
        return self._time()

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._came_back)
        return future

    def come_to_rest(self) -> float:
        gate = Lock()
        gate.acquire()
        try:
            self.call_soon_threadsafe(self._ask, gate)
        except RuntimeError:
            # The loop was closed at this moment.
            return math.inf
        if not gate.acquire(timeout=_PATIENCE):
            raise TimeoutError(
                f"The loop did not come to rest within {_PATIENCE:g} s: a callback blocks it, a task never really waits, or "
                f"{self._in_threads} call(s) in worker threads go on."
            )
        return self._due

    def _ask(self, gate: Lock) -> None:
        self._gate = gate

    def _came_back(self, future: object) -> None:
        self._in_threads -= 1

    def _at_rest(self, timeout: float | None) -> None:
        gate = self._gate
        if gate is not None and not self._in_threads:
            self._gate = None
            self._due = math.inf if timeout is None else self.time() + timeout
            gate.release()


class _Selector(selectors.DefaultSelector):
    """Waits for real events only. Instead of waiting for a timer it reports how far off the timer is, and waits until it is woken."""

    def __init__(self, at_rest: Callable[[float | None], None]) -> None:
        super().__init__()
        self._at_rest = at_rest

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        self._at_rest(timeout)
        return super().select(None)


# --- the pytest plugin's fixtures -------------------------------------------------------------------------------------


def judge(timeout: float) -> None:
    """Wait for the work that a test has left on the shared runtime, and fail the test if the work does not end."""
    runtime = shared_runtime()
    if runtime._life.loop is not None:
        leaked = _flush(runtime, timeout)
        for task in _unfinished(runtime) if leaked else ():
            # Cancelled, or it would fail every later test too.
            task.cancel()
        _complain(runtime, leaked, [])


def strict_runtime(clock: Clock | None, timeout: float) -> Iterator[Runtime]:
    """Implement the fixture `omniloop_runtime`."""
    failures: list[Failure] = []
    new = Runtime if clock is None else clock.new_runtime
    runtime = new(on_error=failures.append)
    yield runtime
    _end(runtime, timeout, failures)


def strict_shared(timeout: float) -> Iterator[Runtime]:
    """Implement the fixture `omniloop_shared`."""
    failures: list[Failure] = []
    yield from _shared(timeout, failures, on_error=failures.append)


def shared_by_clock(timeout: float) -> Iterator[Clock]:
    """Implement the fixture `omniloop_clock`."""
    clock = Clock()
    for runtime in _shared(timeout, [], loop_factory=clock.new_loop):
        runtime._clock = clock.time
        yield clock


def _shared(timeout: float, failures: list[Failure], **settings: Any) -> Iterator[Runtime]:
    """Yield a fresh shared runtime with other *settings*; afterwards end it, and restore the former settings."""
    runtime = shared_runtime()
    runtime.shutdown()
    former = {name: getattr(runtime._settings, name) for name in settings}
    runtime.configure(**settings)
    yield runtime
    try:
        _end(runtime, timeout, failures)
    finally:
        runtime._clock = time.monotonic
        runtime.configure(**former)


def _flush(runtime: Runtime, timeout: float) -> list[str]:
    """Wait for unfinished work; return a description of the work that does not end."""
    try:
        runtime.flush(timeout)
    except WaitTimeoutError as error:
        return [describe(task) for task in _unfinished(runtime)] or [f"  {error}"]
    return []


def _unfinished(runtime: Runtime) -> list[Any]:
    # Without daemons and work that is not due yet: those may be left behind.
    return runtime._life.ledger.waited_for()


def _end(runtime: Runtime, timeout: float, failures: list[Failure]) -> None:
    leaked = _flush(runtime, timeout)
    # Shutting down also reports errors whose handle is still referenced.
    runtime.shutdown(timeout=0)
    _complain(runtime, leaked, failures)


def _complain(runtime: Runtime, leaked: list[str], failures: list[Failure]) -> None:
    parts = []
    if leaked:
        parts.append(f"{len(leaked)} leaked in '{shown(runtime.name)}', and cancelled:\n" + "\n".join(leaked))
    parts += [f"{failure}\n" + "".join(traceback.format_exception(failure.exception)).rstrip() for failure in failures]
    if parts:
        import pytest

        pytest.fail("\n".join(parts), pytrace=False)
