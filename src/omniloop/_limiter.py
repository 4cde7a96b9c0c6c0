"""
Starts coroutines and functions for the bridges, with the limit and the options that all bridges have in common.

A limit bounds how many run at once. The others wait in order of submission, each in its submitter's context.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import AbstractEventLoop, Semaphore
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial, update_wrapper
from types import FrameType
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from ._arguments import name_of
from ._errors import CannotStartError, NotAsyncError, can_be_thrown
from ._report import shown
from ._runtime import Runtime
from ._threads import new_thread, why_no_thread
from ._work.task import Kind, Task

T = TypeVar("T")


class Limiter:
    """
    Bounds how many coroutines run at once on one runtime.

    A waiting coroutine is already a task: the drain, a cancellation and a fork treat it as any other.
    """

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit={limit!r}: give a whole number of 1 or more, or None for no limit.")
        self._limit = limit
        # One for each loop, because a fork or a shutdown brings a new loop.
        self._semaphores: WeakKeyDictionary[AbstractEventLoop, Semaphore] = WeakKeyDictionary()

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        semaphore = self._semaphores.get(loop)
        if semaphore is None:
            semaphore = self._semaphores[loop] = Semaphore(self._limit)
        async with semaphore:
            return await coro


def limiter(limit: int | None) -> Limiter | None:
    """Make a limiter, or None for no limit; ValueError if *limit* is not a whole number of 1 or more."""
    return None if limit is None else Limiter(limit)


def go_limited(
    runtime: Runtime,
    limiter: Limiter | None,
    coro: Awaitable[T],
    frame: FrameType,
    name: str | None = None,
    *,
    timeout: float | None = None,
    **options: Any,
) -> Task[T]:
    """As `Runtime.go`, with a limit. The *options* are those of `Runtime._go`."""
    limit = None if limiter is None else limiter.run
    return runtime._go_within(timeout, coro, frame, name, limit=limit, **options)


def to_thread_limited(
    runtime: Runtime,
    limiter: Limiter | None,
    call: Callable[[], T],
    frame: FrameType,
    name: str,
    *,
    context: Context | None = None,
    daemon: bool = False,
    timeout: float | None = None,
) -> Task[T]:
    """As `Runtime.to_thread`, with a limit. A daemon gets a thread of its own; only a daemon can have a time limit."""
    if not daemon and limiter is None:
        return runtime._to_thread(call, (), {}, frame, name, context=context)

    async def make() -> T:
        if daemon:
            return await in_own_thread(runtime, call, name)
        return await runtime._to_thread(call, (), {}, sys._getframe(), name, "accept")

    kind = Kind.DAEMON if daemon else Kind.WORK
    return go_limited(runtime, limiter, make(), frame, name, context=context, kind=kind, timeout=timeout)


async def in_own_thread(runtime: Runtime, call: Callable[[], T], name: str, *, or_worker: bool = False) -> T:
    """
    Make a call that may block for ever in a daemon thread of its own, so that neither its caller nor the exit has to wait for it.

    A worker thread would not do: it is joined, and on 3.12 it may be the last one that serves while the interpreter ends. But on 3.12 no
    new thread can be started then, so *or_worker* falls back to a worker. Without *or_worker* the log names the thread if it is left.
    """
    loop, threads = asyncio.get_running_loop(), runtime._life.daemon_threads
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result((value, error))

    def make(context: Context) -> None:
        value = failure = None
        try:
            value = context.run(call)
        except BaseException as error:
            failure = can_be_thrown(error, name)
        # Before the result is delivered, so that the log does not name a call that is done.
        threads.pop(thread, None)
        with suppress(RuntimeError):
            # A closed loop: nobody waits any more.
            loop.call_soon_threadsafe(tell, value, failure)

    thread = new_thread(partial(make, copy_context()), name)
    try:
        if not or_worker:
            threads[thread] = []
        thread.start()
    except RuntimeError as error:
        threads.pop(thread, None)
        if or_worker:
            return await loop.run_in_executor(None, copy_context().run, call)
        raise CannotStartError(f"No thread can be started for {shown(name)}: {why_no_thread(error)}") from error
    value, failure = await ended
    try:
        if failure is not None:
            raise failure
        made: T = value
        return made
    finally:
        # The error's traceback refers to this frame: breaks the cycle.
        del failure


def by_result(runtime: Runtime, fn: Callable[..., Any]) -> Callable[..., Any]:
    """
    Wrap *fn* for a thread: if *fn* returns an awaitable, that is awaited on the loop.

    Only the result shows whether a lambda, a partial or a callable object is async. A `Task` is returned as it is.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            value = fn(*args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith(_NO_LOOP):
                raise
            raise NotAsyncError(
                f"{call.__qualname__} needs a running event loop in the call itself, and is called in a worker thread, because it does not say "
                "that it is async. Make it an async function."
            ) from error
        if isinstance(value, Task) or not inspect.isawaitable(value):
            return value
        return runtime._run(value, None, sys._getframe())

    update_wrapper(call, fn)
    call.__qualname__ = name_of(fn)
    return call


# How asyncio's messages for a missing event loop begin.
_NO_LOOP: Final = ("no running event loop", "There is no current event loop in thread")
