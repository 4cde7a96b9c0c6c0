"""Lets only so much run at once: the rest waits in order of submission, each in its submitter's context."""

from __future__ import annotations

import asyncio
import sys
from asyncio import AbstractEventLoop, Semaphore
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from types import FrameType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ._arguments import as_coroutine, check_function, close_unstarted
from ._runtime import Runtime
from ._work.task import Kind, Task

T = TypeVar("T")


class Limiter:
    """
    So many at once, on one runtime.

    What waits is a task like any other: the drain, a cancellation and a fork find it.
    """

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit={limit!r}: give a whole number of 1 or more, or None for no limit.")
        self._limit = limit
        # By the loop, because after a fork or a shutdown there is another.
        self._semaphores: WeakKeyDictionary[AbstractEventLoop, Semaphore] = WeakKeyDictionary()

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        semaphore = self._semaphores.get(loop)
        if semaphore is None:
            semaphore = self._semaphores[loop] = Semaphore(self._limit)
        async with semaphore:
            return await coro


def limiter(limit: int | None) -> Limiter | None:
    """None if there is no limit; ValueError if *limit* can't be one."""
    return None if limit is None else Limiter(limit)


def go_limited(
    runtime: Runtime,
    limiter: Limiter | None,
    coro: Awaitable[T],
    name: str | None,
    context: Context | None,
    kind: Kind,
    frame: FrameType,
    timeout: float | None = None,
) -> Task[T]:
    """`Runtime.go`, with a limit."""
    if limiter is None:
        if timeout is not None:
            return runtime._go_within(timeout, coro, name, context, kind, frame)
        return runtime._go(coro, name, context, kind, frame)
    inner = as_coroutine(coro, runtime._life.loop)
    title = name or getattr(inner, "__qualname__", None) or type(inner).__name__
    limited = None
    try:
        limited = limiter.run(inner)
        if timeout is not None:
            task = runtime._go_within(timeout, limited, title, context, kind, frame)
        else:
            task = runtime._go(limited, title, context, kind, frame)
    except BaseException:
        # Refused; or Ctrl-C at any point.
        close_unstarted(limited)
        close_unstarted(inner)
        raise
    # Cancelled or dropped before its turn came.
    task._when_done(lambda: close_unstarted(inner))
    return task


def to_thread_limited(
    runtime: Runtime,
    limiter: Limiter | None,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str | None,
    frame: FrameType,
) -> Task[T]:
    """`Runtime.to_thread`, with a limit."""
    if limiter is None:
        return runtime._to_thread(fn, args, kwargs, frame, name)
    check_function(fn, "to_thread")

    async def call() -> T:
        return await runtime._to_thread(fn, args, kwargs, sys._getframe(), name, "accept")

    title = name or getattr(fn, "__qualname__", None) or type(fn).__name__
    return go_limited(runtime, limiter, call(), title, None, Kind.WORK, frame)
