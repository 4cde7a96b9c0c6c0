"""
The real clock, and the waits that block a thread.

Each of our waits wakes once a second, on every platform, however long it is: a thread sees what was meant for it only between two calls in
C. That is Ctrl-C where the wait for a lock can't be interrupted (Windows), an exception that another thread has set (dramatiq's time
limits, a debugger), or `sys.remote_exec`. It costs 0.1 ms of processor time a second. A wait takes any number of seconds, including `inf`
and 1e12, for which a lock and a thread raise OverflowError.

The clock is bound here, once. A test that freezes time (freezegun, a monkeypatch of `time.monotonic`) would otherwise freeze our deadlines
too, and threads outside the test would wait forever.
"""

from __future__ import annotations

import math
import os
import time as _time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, RLock
from types import BuiltinFunctionType
from typing import Final

# How long, in seconds, a wait sleeps at a time.
LOOK_UP: Final = 1.0


class _Time:
    """The unfrozen functions of `time`. In an object, because freezegun searches the attributes of all modules for them."""

    __slots__ = ("monotonic", "perf_counter", "sleep", "thread_time")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = _time.monotonic
        if not isinstance(_time.monotonic, BuiltinFunctionType) and hasattr(_time, "clock_gettime"):
            # Already frozen, because the test itself has imported omniloop.
            self.monotonic = lambda: _time.clock_gettime(_time.CLOCK_MONOTONIC)
        # For durations of a few milliseconds: on Windows, with Python 3.11 and 3.12, the other clock advances only every 15.6 ms.
        self.perf_counter: Callable[[], float] = _time.perf_counter
        if not isinstance(_time.perf_counter, BuiltinFunctionType):
            self.perf_counter = self.monotonic
        self.sleep: Callable[[float], None] = _time.sleep
        # Not on Pyodide, where there are no threads.
        self.thread_time: Callable[[], float] = getattr(_time, "thread_time", _time.process_time)


# Imported instead of the module: ``from .._clock import time``.
time: Final = _Time()


# Called by a thread that has just handed work to the loop's thread and is about to wait for it. If both are on one core, the kernel lets the
# loop's thread run now, and short work is done before the wait: that saves the wait, and a switch between the threads. A round trip then
# takes three quarters of the time (3.13, 3.14), or two thirds (3.11). On another core it costs 0.3 µs.
give_way: Final[Callable[[], object]] = getattr(os, "sched_yield", lambda: _time.sleep(0))


def slices(timeout: float | None) -> Iterator[float]:
    """Split a wait of *timeout* seconds (None: without end) into short ones, at least one, for the caller to do until it is satisfied."""
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
    """Let the waiting thread, or the next one, through *gate*. If the gate is open already, no thread has come since."""
    with suppress(RuntimeError):
        gate.release()


def take(lock: Lock | RLock, timeout: float | None, taken: list[bool]) -> None:
    """
    Acquire *lock*, unless that takes longer than *timeout* seconds, and put True into *taken* if it is acquired.

    Called inside the `try` whose `finally` releases the lock if *taken* says so: then an exception in between does not leave it locked.
    """
    for seconds in slices(timeout):
        # One step in C: if the lock is acquired, that is recorded too.
        taken.extend(map(lock.acquire, (True,), (seconds,)))
        if True in taken:
            return


@contextmanager
def holding(lock: Lock | RLock) -> Iterator[None]:
    """Hold *lock* like ``with lock``, with a wait of ours; an exception while it is acquired does not leave it locked."""
    taken: list[bool] = []
    try:
        take(lock, None, taken)
        yield
    finally:
        if True in taken:
            lock.release()
