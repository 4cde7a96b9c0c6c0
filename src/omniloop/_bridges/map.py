"""Results of one function for many items, only so many of which are on their way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Literal, TypeVar, overload

from .._arguments import check_function, check_timeout, close_unstarted, is_async, name_of
from .._caller import caller
from .._clock import time
from .._errors import ForkedError, WouldDeadlockError
from .._limiter import by_result, limiter
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import Task

A = TypeVar("A")
T = TypeVar("T")


@overload
def map(  # noqa: A001 - `omniloop.map`, as `Executor.map`
    fn: Callable[[A], Coroutine[Any, Any, T]],
    items: Iterable[A],
    *,
    limit: int | None = 32,
    ordered: bool = True,
    timeout: float | None = None,
    return_exceptions: Literal[False] = False,
    progress: Callable[[int, int | None], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[T]: ...
@overload
def map(  # noqa: A001 - `omniloop.map`, as `Executor.map`
    fn: Callable[[A], Coroutine[Any, Any, T]],
    items: Iterable[A],
    *,
    limit: int | None = 32,
    ordered: bool = True,
    timeout: float | None = None,
    return_exceptions: bool,
    progress: Callable[[int, int | None], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[T | Exception]: ...
@overload
def map(  # noqa: A001 - `omniloop.map`, as `Executor.map`
    fn: Callable[[A], T],
    items: Iterable[A],
    *,
    limit: int | None = 32,
    ordered: bool = True,
    return_exceptions: Literal[False] = False,
    progress: Callable[[int, int | None], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[T]: ...
@overload
def map(  # noqa: A001 - `omniloop.map`, as `Executor.map`
    fn: Callable[[A], T],
    items: Iterable[A],
    *,
    limit: int | None = 32,
    ordered: bool = True,
    return_exceptions: bool,
    progress: Callable[[int, int | None], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[T | Exception]: ...
def map(  # noqa: A001 - `omniloop.map`, as `Executor.map`
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    limit: int | None = 32,
    ordered: bool = True,
    timeout: float | None = None,
    return_exceptions: bool = False,
    progress: Callable[[int, int | None], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[Any]:
    """
    Iterate, in sync code, over the results of *fn* for each item; an async *fn* runs on the loop, a plain one in worker threads.

    What does not say that it is async (a lambda, a partial, an object that can be called) is called in a worker thread, and an
    awaitable that it returns is awaited on the loop.

    Items are taken one by one, as results are: no more than *limit* are on their way at any time. The first error comes out as
    it is; then, and when the iterator is closed or dropped early, what is on its way is cancelled, and its clean-up waited for
    (for `cancel_timeout` seconds at the most).

    Args:
        limit: So many are taken and not yet handed out, at the most: by default 32, which is kind to most servers, and enough to
            hide their latency. None takes all items at once.
        ordered: Results in the order of the items; else as they come.
        timeout: Seconds for each item, from its start. Then it is cancelled, and its error is a `TaskTimeoutError`. For an async
            *fn* alone: a thread can't be interrupted. None for no end.
        return_exceptions: Hand out the error of an item in the place of its result, and go on, instead of raising it.
        progress: Called, where the iterator is used, with the number of results so far, and of all if *items* has a length.
        runtime: Run on this one instead of the one that the process shares.

    Raises:
        NotAsyncError: if *fn* can't be called.
        TypeError: if *items* can't be iterated over, *progress* can't be called, or *runtime* is no `Runtime`.
        ValueError: if *limit* is below 1, or *timeout* is not a number of seconds, or *fn* is plain and has one.

    Example:
        >>> import asyncio
        >>> from omniloop import map
        >>> async def fetch(number):
        ...     await asyncio.sleep(60 if number == 2 else 0)
        ...     return f"page {number}"
        >>> for page in map(fetch, [1, 2, 3], timeout=0.5, return_exceptions=True):
        ...     print(type(page).__name__ if isinstance(page, Exception) else page)
        page 1
        TaskTimeoutError
        page 3
    """
    check_function(fn, "map", or_async=True)
    limiter(limit)
    check_timeout(timeout)
    if timeout is not None and not is_async(fn):
        raise ValueError(
            f"timeout={timeout!r}: {name_of(fn)} is a plain function, and runs in a thread, which nothing can interrupt. "
            "Pass an async function, or give what blocks in there a timeout of its own."
        )
    if progress is not None and not callable(progress):
        raise TypeError(f"progress={progress!r}: give a callable that takes two numbers, or None.")
    try:
        source = iter(items)
    except TypeError as error:
        close_unstarted(items)
        raise TypeError(f"items={items!r}: give an iterable; of an async one, iterate(items).") from error
    total = len(items) if isinstance(items, Sized) else None
    runtime = chosen(runtime)
    asynchronous = is_async(fn)
    call = fn if asynchronous else by_result(runtime, fn)
    # On their way: taken, and their results not handed out; in order of the items. And those that are done, if that is the order.
    pending: dict[Task[Any], None] = {}
    done: SimpleQueue[Task[Any]] | None = None if ordered else SimpleQueue()

    def submit(item: Any, frame: FrameType) -> None:
        if asynchronous:
            task = runtime._go_within(timeout, call(item), frame, from_start=True)
        else:
            task = runtime._to_thread(call, (item,), {}, frame)
        pending[task] = None
        if done is not None:
            task._when_done(partial(done.put, task))

    def results(is_finalizing: Callable[[], bool] = sys.is_finalizing) -> Iterator[Any]:
        count = 0
        more = True
        try:
            while True:
                while more and (limit is None or len(pending) < limit) and not _is_ready(pending, done):
                    try:
                        item = next(source)
                    except StopIteration:
                        more = False
                    else:
                        submit(item, caller())
                if not pending:
                    return
                value = _take(pending, done, return_exceptions)
                count += 1
                if progress is not None:
                    progress(count, total)
                yield value
        finally:
            # A generator that was not exhausted may live until this module is cleared; as a resource's finaliser.
            if not is_finalizing():
                _close(runtime, pending)

    return results()


def _is_ready(pending: dict[Task[Any], None], done: SimpleQueue[Task[Any]] | None) -> bool:
    """Tell whether the next result is there."""
    if done is not None:
        return not done.empty()
    return bool(pending) and next(iter(pending)).done()


def _take(pending: dict[Task[Any], None], done: SimpleQueue[Task[Any]] | None, return_exceptions: bool) -> Any:
    """Wait for the next result and return it, or raise the error."""
    task = next(iter(pending))
    # Waits without claiming, so that what Ctrl-C leaves behind is still on its way, and is cancelled.
    if done is None:
        task._wait_until_done(None)
    else:
        found: list[Task[Any]] = []

        def wait_here(seconds: float) -> bool:
            with suppress(Empty):
                found.append(done.get(timeout=seconds))
            return bool(found)

        task._wait_for(wait_here, None)
        task = found.pop()
    del pending[task]
    value, error = task._take(CancelledError)
    try:
        if error is None:
            return value
        if return_exceptions and isinstance(error, Exception):
            return error
        raise error
    finally:
        # This frame is in the traceback of an error that the task holds: a cycle, which would keep both alive.
        del task, error


def _close(runtime: Runtime, tasks: Iterable[Task[Any]]) -> None:
    """Cancel what is on its way and wait for its clean-up."""
    until = time.monotonic() + runtime._settings.cancel_timeout
    # In a forked child they are the parent's. Collected on the loop's own thread, for one: the drain waits for them.
    with suppress(ForkedError, WouldDeadlockError):
        for task in tasks:
            task.cancel()
        for task in tasks:
            task._wait_until_done(max(0.0, until - time.monotonic()))
