"""
Time that passes: the real clock, and the waits that block a thread.

A wait of ours looks up once a second, on every platform, however long it is: only between two calls in C does a thread see what was
meant for it meanwhile. That is Ctrl-C where the wait for a lock can't be interrupted (Windows), an exception that another thread has
set (dramatiq's time limits, a debugger), `sys.remote_exec`. It costs 0.1 ms of processor time a second. And it takes any number of
seconds, `inf` and 1e12 too, where a lock and a thread raise OverflowError.

The clock is bound here, once. What freezes time in a test (freezegun, a monkeypatch of `time.monotonic`) would freeze our deadlines
with it, and threads that the test knows nothing of would wait for ever.
"""

from __future__ import annotations

import math
import time as _time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, RLock
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:

    class Thread(Protocol):
        def join(self, timeout: float | None) -> None: ...
        def is_alive(self) -> bool: ...


# How long a wait sleeps at a time, in seconds.
LOOK_UP: Final = 1.0


class _Time:
    """The functions of `time`, as they are. In an object, because freezegun looks for them among the attributes of all modules."""

    __slots__ = ("monotonic", "perf_counter", "sleep", "thread_time")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = _time.monotonic
        if not isinstance(_time.monotonic, BuiltinFunctionType) and hasattr(_time, "clock_gettime"):
            # Frozen already, where omniloop is imported in the test itself.
            self.monotonic = lambda: _time.clock_gettime(_time.CLOCK_MONOTONIC)
        # For what takes a few milliseconds: the other clock stands still for 15.6 at a time, with Python 3.11 and 3.12 on Windows.
        self.perf_counter: Callable[[], float] = _time.perf_counter
        if not isinstance(_time.perf_counter, BuiltinFunctionType):
            self.perf_counter = self.monotonic
        self.sleep: Callable[[float], None] = _time.sleep
        # Not on Pyodide, where there are no threads.
        self.thread_time: Callable[[], float] = getattr(_time, "thread_time", _time.process_time)


# Imported in the place of the module: ``from .._clock import time``.
time: Final = _Time()


def slices(timeout: float | None) -> Iterator[float]:
    """The waits that one of *timeout* seconds is made of (None: without end), at least one, until somebody has had enough."""
    until = math.inf if timeout is None else time.monotonic() + timeout
    left = math.inf if timeout is None else timeout
    while True:
        yield max(0.0, min(left, LOOK_UP))
        left = until - time.monotonic()
        if left <= 0:
            return


def acquire(lock: Lock | RLock, timeout: float | None) -> bool:
    """Acquire *lock*; False if that took longer than *timeout* seconds. None waits without end."""
    return any(lock.acquire(timeout=seconds) for seconds in slices(timeout))


def let_through(gate: Lock) -> None:
    """Let through who waits at *gate*, or comes next; if it is open already, nobody has come since."""
    with suppress(RuntimeError):
        gate.release()


@contextmanager
def holding(lock: Lock | RLock) -> Iterator[None]:
    """As ``with lock``, by a wait of ours; an exception that comes while it is taken does not leave it taken."""
    taken: list[bool] = []
    try:
        for seconds in slices(None):
            # In one step: what was taken is noted.
            taken.extend(map(lock.acquire, (True,), (seconds,)))
            if True in taken:
                break
        yield
    finally:
        if True in taken:
            lock.release()


def join(thread: Thread, timeout: float | None) -> bool:
    """Join *thread*; False if that took longer than *timeout* seconds. None waits without end."""
    for seconds in slices(timeout):
        thread.join(seconds)
        if not thread.is_alive():
            return True
    return False
