"""A pytest plugin: runtimes whose leaks and lost errors fail the test, and a clock that the test moves instead of sleeping."""

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

import pytest

from omniloop import Failure, Runtime, WaitTimeoutError, WouldDeadlockError, shared_runtime
from omniloop._life.drain import describe

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long `Clock.advance` waits for what the clock can't move: a callback that runs, a worker thread. In real seconds.
_PATIENCE: Final = 5.0


class Clock:
    """
    The time of event loops, which stands still until `advance` moves it.

    For tests of `every`, `call_later`, `asyncio.sleep` and `asyncio.timeout`: an hour passes in a moment, and every turn of it is
    taken, in order. What waits in the caller's thread, `result(timeout)` for one, still waits in real seconds. So does the
    network: call `result()` or `flush()` for such work before you move on.
    """

    def __init__(self) -> None:
        self._now = time.monotonic()
        self._loops: list[_Loop] = []

    def time(self) -> float:
        """Return the time that `loop.time()` tells, and that `call_at` is told by. It starts at `time.monotonic()`."""
        return self._now

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop that lives by this clock: a `loop_factory`."""
        loop = _Loop(self.time)
        self._loops.append(loop)
        return loop

    def new_runtime(self, **settings: Any) -> Runtime:
        """Make a `Runtime` that lives by this clock."""
        runtime = Runtime(**settings, loop_factory=self.new_loop)
        runtime._clock = self.time
        return runtime

    def advance(self, seconds: float) -> None:
        """
        Move the time, from timer to timer, and run what becomes due; return when it waits again.

        Blocks; for the test's thread, not for the loop's own.

        Args:
            seconds: How far. 0 runs what is due already.

        Raises:
            ValueError: if *seconds* is not a number of seconds.
            WouldDeadlockError: if called on a loop that lives by this clock.
            TimeoutError: if something does not come to rest: a callback that blocks, a task that never really waits, or work in a
                worker thread.
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
        """Wait until every loop waits; return when the next timer is due."""
        self._loops = [loop for loop in self._loops if not loop.is_closed()]
        return min((loop.come_to_rest() for loop in self._loops), default=math.inf)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is told to it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._time = clock
        # Held by who waits for this loop to come to rest; asked for by its callback, so that all that came before has run.
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
            # Closed in this moment.
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
    """Waits for what is real; a timer is not: it tells how far off that is, and waits to be woken."""

    def __init__(self, at_rest: Callable[[float | None], None]) -> None:
        super().__init__()
        self._at_rest = at_rest

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        self._at_rest(timeout)
        return super().select(None)


# --- the plugin -------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "omniloop_timeout",
        "Seconds that work which a test leaves behind has until it counts as leaked.",
        default="5",
    )


def pytest_configure(config: pytest.Config) -> None:
    _timeout(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # After the fixtures, which may still submit.
    yield
    runtime = shared_runtime()
    if runtime._life.made:
        leaked = _flush(runtime, item.config)
        for task in _unfinished(runtime) if leaked else ():
            # Else it would be the next test's, and each after it.
            task.cancel()
        _complain(runtime, leaked, [])


@pytest.fixture
def omniloop_runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """
    A fresh `Runtime`, which lives by `omniloop_clock` if the test asks for that too.

    The test fails if it leaves work that does not end, or an error that nobody asked for; it is told where they were submitted.
    """
    failures: list[Failure] = []
    if "omniloop_clock" in request.fixturenames:
        runtime = request.getfixturevalue("omniloop_clock").new_runtime(on_error=failures.append)
    else:
        runtime = Runtime(on_error=failures.append)
    yield runtime
    _end(runtime, request.config, failures)


@pytest.fixture
def omniloop_shared(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The runtime of the module's functions, `go` and its kin: fresh, and as strict as `omniloop_runtime`."""
    if "omniloop_clock" in request.fixturenames:
        request.getfixturevalue("omniloop_clock")
    failures: list[Failure] = []
    runtime = shared_runtime()
    runtime.shutdown()
    former = runtime._settings.on_error
    runtime.configure(on_error=failures.append)
    yield runtime
    try:
        _end(runtime, request.config, failures)
    finally:
        runtime.configure(on_error=former)


@pytest.fixture
def omniloop_clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    """A `Clock` for the module's functions, and for `omniloop_runtime`: time stands still until the test calls `advance`."""
    clock = Clock()
    runtime = shared_runtime()
    runtime.shutdown()
    former = runtime._settings.loop_factory
    runtime.configure(loop_factory=clock.new_loop)
    runtime._clock = clock.time
    yield clock
    try:
        _end(runtime, request.config, [])
    finally:
        runtime._clock = time.monotonic
        runtime.configure(loop_factory=former)


def _timeout(config: pytest.Config) -> float:
    text = config.getini("omniloop_timeout")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise pytest.UsageError(f"omniloop_timeout={text!r}: give seconds as a number of 0 or more.")
    return seconds


def _flush(runtime: Runtime, config: pytest.Config) -> list[str]:
    """Wait for what is left; name what does not end."""
    try:
        runtime.flush(_timeout(config))
    except WaitTimeoutError as error:
        return [describe(task) for task in _unfinished(runtime)] or [f"  {error}"]
    return []


def _unfinished(runtime: Runtime) -> list[Any]:
    # Not daemons, nor what is not due: those are meant to be left behind.
    return runtime._life.ledger.waited_for()


def _end(runtime: Runtime, config: pytest.Config, failures: list[Failure]) -> None:
    leaked = _flush(runtime, config)
    # Reports what somebody still holds, too.
    runtime.shutdown(timeout=0)
    _complain(runtime, leaked, failures)


def _complain(runtime: Runtime, leaked: list[str], failures: list[Failure]) -> None:
    parts = []
    if leaked:
        parts.append(f"{len(leaked)} leaked in {runtime.name!r}, and cancelled:\n" + "\n".join(leaked))
    parts += [f"{failure}\n" + "".join(traceback.format_exception(failure.exception)).rstrip() for failure in failures]
    if parts:
        pytest.fail("\n".join(parts), pytrace=False)
