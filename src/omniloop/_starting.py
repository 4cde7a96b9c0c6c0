"""
Starts the calls of all bridges, on the loop or in a thread; a limit bounds how many of them run at once.

`Runtime._go_within` starts a coroutine, and takes the limit that `limiter` makes.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import AbstractEventLoop, Semaphore
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import partial
from types import FrameType
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from ._arguments import check_count, is_async, name_of
from ._errors import CannotStartError, NotAsyncError, can_be_thrown
from ._report import shown
from ._runtime import Runtime
from ._steps import Items
from ._threads import new_thread, why_no_thread
from ._work.task import DAEMON, WORK, Task

T = TypeVar("T")

# Makes of a coroutine one that waits for its turn.
Limit = Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]


def limiter(limit: int | None) -> Limit | None:
    """
    Make what bounds how many coroutines run at once; None for no limit. ValueError if *limit* is not a whole number of 1 or more.

    The others wait in order of submission, each in its submitter's context. A waiting coroutine is already a task: the drain, a
    cancellation and a fork treat it as any other.
    """
    if limit is None:
        return None
    check_count("limit", limit, ", or None for no limit")
    # One for each loop, because a fork or a shutdown brings a new loop.
    semaphores: WeakKeyDictionary[AbstractEventLoop, Semaphore] = WeakKeyDictionary()

    async def in_turn(coro: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        async with semaphores.get(loop) or semaphores.setdefault(loop, Semaphore(limit)):
            return await coro

    return in_turn


def starting(
    runtime: Runtime,
    fn: Callable[..., Any],
    limit: int | None = None,
    name: str | None = None,
    context: Context | None = None,
    daemon: bool = False,
    timeout: float | None = None,
    from_start: bool = False,
) -> Callable[..., Task[Any]]:
    """
    Make what starts a call of *fn*, given the frame and the arguments: an async function on the loop, any other in a thread.

    Only the result shows whether a lambda, a partial or a callable object is async: an awaitable that is returned in the thread is awaited
    on the loop. A `Task` is returned as it is.
    """
    in_turn, kind, title = limiter(limit), DAEMON if daemon else WORK, name_of(fn)

    def start_async(frame: FrameType, /, *args: Any, **kwargs: Any) -> Task[Any]:
        coro = fn(*args, **kwargs)
        if timeout is None and in_turn is None:
            # A tenth of the time of a `map` over short work.
            return runtime._go(coro, frame, name, context, kind)
        return runtime._go_within(
            timeout, coro, frame, name, limit=in_turn, from_start=from_start, context=context, kind=kind
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            value = fn(*args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith(_NO_LOOP):
                raise
            raise NotAsyncError(
                f"{title} needs a running event loop in the call itself, and is called in a worker thread, because it does not say "
                "that it is async. Make it an async function."
            ) from error
        if isinstance(value, Task) or not inspect.isawaitable(value):
            return value
        return runtime._run(value, None, sys._getframe())

    def start(frame: FrameType, /, *args: Any, **kwargs: Any) -> Task[Any]:
        return start_in_thread(
            runtime, in_turn, call, args, kwargs, frame, name or title, context, daemon=daemon, timeout=timeout
        )

    return start_async if is_async(fn) else start


# How asyncio's messages for a missing event loop begin.
_NO_LOOP: Final = ("no running event loop", "There is no current event loop in thread")


def start_in_thread(
    runtime: Runtime,
    limit: Limit | None,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
    name: str,
    context: Context | None = None,
    *,
    daemon: bool = False,
    timeout: float | None = None,
) -> Task[T]:
    """As `Runtime.to_thread`, with options. A daemon gets a thread of its own; only a daemon can have a time limit."""
    if not daemon and limit is None:
        return runtime._to_thread(fn, args, kwargs, frame, name, None, context)

    async def in_worker() -> T:
        return await runtime._to_thread(fn, args, kwargs, sys._getframe(), name, "accept")

    work = in_own_thread(runtime, partial(fn, *args, **kwargs), name) if daemon else in_worker()
    kind = DAEMON if daemon else WORK
    return runtime._go_within(timeout, work, frame, name, limit=limit, context=context, kind=kind)


async def in_own_thread(runtime: Runtime, call: Callable[[], T], name: str, *, or_worker: bool = False) -> T:
    """
    Make a call that may block for ever in a daemon thread of its own, so that neither its caller nor the exit has to wait for it.

    A worker thread would not do: it is joined, and on 3.12 it may be the last one that serves while the interpreter ends. But on 3.12 no
    new thread can be started then, so *or_worker* falls back to a worker. Without *or_worker* the log names the thread if it is left.
    """
    threads, context = runtime._life.daemon_threads, copy_context()
    ended: Items[Future[T]] = Items()

    def make() -> None:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(context.run(call))
        except BaseException as error:
            outcome.set_exception(can_be_thrown(error, name))
        # Before the outcome is told, so that the log does not name a call that is done.
        threads.pop(thread, None)
        ended.put(outcome)
        # An error's traceback refers to this frame: breaks the cycle.
        del outcome

    ended.source = thread = new_thread(make, name)
    try:
        if not or_worker:
            threads[thread] = []
        thread.start()
    except RuntimeError as error:
        threads.pop(thread, None)
        if or_worker:
            return await asyncio.get_running_loop().run_in_executor(None, context.run, call)
        raise CannotStartError(f"No thread can be started for {shown(name)}: {why_no_thread(error)}") from error
    return (await ended.get()).result()
