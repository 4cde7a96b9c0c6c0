"""
The tools for threads: the real clock, waits that block, a lock that no interruption leaves locked, how a thread is made and joined.

Each of our waits wakes once a second, on every platform, however long it is: a thread sees what was meant for it only between two calls in
C. That is Ctrl-C where the wait for a lock can't be interrupted (Windows), an exception that another thread has set (dramatiq's time
limits, a debugger), or `sys.remote_exec`. It costs 0.1 ms of processor time a second. A wait takes any number of seconds, including `inf`
and 1e12, for which a lock and a thread raise OverflowError.

The clock is bound here, once. A test that freezes time (freezegun, a monkeypatch of `time.monotonic`) would otherwise freeze our deadlines
too, and threads outside the test would wait forever.

A `Guard` is a re-entrant lock that no exception from outside, such as Ctrl-C, leaves locked forever when `with` enters it. CPython raises
such exceptions at the end of each call. Up to 3.13, and from 3.15 on, `with` enters a lock written in C without such a point. 3.14 makes a
plain call of it: an exception raised there leaves the lock acquired and the block not begun. That happened in half of the interruptions of
a loop that does nothing else. So on 3.14 entering is written in Python. Leaving stays in C, because a Python function could be interrupted
before its first step.

Two things have that gap on every version: `threading.Condition`, which enters its lock in Python, and `if lock.acquire():` in front of a
`try`. So enter the lock of a condition by itself; and record, in one step in C, that a thread has acquired something, inside the block that
releases it.
"""

from __future__ import annotations

import contextvars
import math
import os
import sys
import threading
import time as _time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, RLock
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import _cpython

if TYPE_CHECKING:
    import asyncio
    from collections import deque

T = TypeVar("T")

# How long, in seconds, a wait sleeps at a time.
LOOK_UP: Final = 1.0

# How long, in seconds, to wait for the system to forget a thread that `Thread.join` says has ended: on 3.12.1 that returned earlier in 30 of
# 400 forks.
_GONE_TIMEOUT: Final = 0.1


# A clock with a resolution above the first, in seconds, is coarse; no clock's is as large as the second. (15.6 ms with Python 3.11 and
# 3.12 on Windows.)
_COARSE: Final = 0.001
COARSEST: Final = 0.02


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


# Imported instead of the module: ``from .._threads import time``.
time: Final = _Time()


def coarse_resolution(loop: asyncio.AbstractEventLoop) -> float:
    """
    Return the resolution of the loop's clock, in seconds, if the clock is coarse; else 0.

    asyncio takes a timer for due that is less than the resolution away. A call that is early by less waits again, for the rest and the
    resolution: after the rest alone, the timer would be taken for due at once.
    """
    resolution = _cpython.clock_resolution(loop)
    return resolution if resolution > _COARSE else 0.0


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


def emptied(queue: deque[T]) -> Iterator[T]:
    """Take the entries of *queue*, the oldest first, until it is empty. Other threads may take too, and add."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
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


# --- locks ----------------------------------------------------------------------------------------------------------

if sys.version_info[:2] == (3, 14) and sys.implementation.name == "cpython":
    import _thread

    # typeshed declares the base class final, which it is not.
    class Guard(_thread.RLock):  # pyright: ignore[reportGeneralTypeIssues]
        """An `RLock` that an exception in `with` never leaves locked."""

        __slots__ = ()

        def __enter__(self) -> bool:
            held: list[bool] = []
            try:
                # One step in C: if the lock is acquired, that is recorded too.
                held.extend(map(_thread.RLock.acquire, (self,)))
            except BaseException:
                if held:
                    self.release()
                raise
            return True

else:
    Guard = RLock  # pyright: ignore[reportAssignmentType]


# --- threads --------------------------------------------------------------------------------------------------------


def new_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """
    Return a daemon thread, not started yet, with an empty context.

    From 3.14 on a thread may inherit the context of the thread that starts it (without a GIL it does). It would keep whatever a request
    left there alive for as long as it lives itself.
    """
    options: dict[str, Any] = {"context": contextvars.Context()} if sys.version_info >= (3, 14) else {}
    return threading.Thread(target=target, name=name, daemon=True, **options)


def join(thread: threading.Thread, timeout: float | None) -> bool:
    """
    Join *thread*; False if that took longer than *timeout* seconds. None waits without end.

    One that is just being started, by another thread or below this call, ends when it looks, and is not waited for; nor is the calling thread.
    Also waits, up to `_GONE_TIMEOUT`, until the system has forgotten it: CPython's warning about forking with threads counts the threads that
    the system lists. Only Linux has such a list.
    """
    for seconds in slices(timeout):
        try:
            thread.join(seconds)
        except RuntimeError:
            return True
        if not thread.is_alive():
            break
    else:
        return False
    until = time.monotonic() + _GONE_TIMEOUT
    while (
        sys.platform == "linux" and os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < until
    ):
        time.sleep(0.0001)
    return True


def is_running_thread(thing: object) -> bool:
    """Tell whether *thing* is a thread that has not ended."""
    return isinstance(thing, threading.Thread) and thing.is_alive()


def why_no_thread(error: BaseException) -> str:
    """Say why no thread can be started here, as the end of a sentence, and the way out if there is one."""
    if "daemon threads are disabled" in str(error):
        # CPython's message from 3.12 on. The way to ask beforehand is private, and named differently in each version.
        return (
            "this is an isolated sub-interpreter, and those have no daemon threads. Use omniloop in the main interpreter, and "
            "asyncio.run() in this one."
        )
    return f"{error}."
