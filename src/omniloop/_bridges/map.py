"""Maps a function over many items in sync code, with a bound on how many run at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, overload

from .._arguments import check_function, check_timeout, close_unstarted, is_async, name_of
from .._errors import ForkedError, WouldDeadlockError
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._starting import limiter, starting
from .._steps import next_in
from .._threads import time
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

    A callable that does not say whether it is async (a lambda, a partial, a callable object) is called in a worker thread; if it
    returns an awaitable, that is awaited on the loop.

    Items are taken as results are handed out: no more than *limit* are pending at any time. The first error is raised unchanged.
    After an error, or when the iterator is closed or dropped early, the pending items are cancelled, and the iterator waits for their
    clean-up (for `cancel_timeout` seconds at most).

    Args:
        limit: The most items that are taken and not yet handed out: by default 32, which is kind to most servers, and enough to
            hide their latency. None takes all items at once.
        ordered: True gives the results in the order of the items, False as they come.
        timeout: Seconds for each item, from its start. An item that takes longer is cancelled, and its error is a
            `TaskTimeoutError`. Only for an async *fn*: a thread can't be interrupted. None for no limit.
        return_exceptions: Hand out the error of an item in place of its result, and go on, instead of raising it.
        progress: Called in the thread that uses the iterator, with the number of results so far, and with the number of items, or
            None if *items* has no length.
        runtime: Run on this runtime instead of the one that the process shares.

    Raises:
        NotAsyncError: if *fn* can't be called.
        TypeError: if *items* can't be iterated over, *progress* can't be called, or *runtime* is no `Runtime`.
        ValueError: if *limit* is below 1, or if *timeout* is not a number of seconds or is given for a plain *fn*.

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
    start = starting(runtime, fn, timeout=timeout, from_start=True)
    # `pending` has the tasks whose results are not handed out yet, in the order of the items. `done` has the finished ones in the order
    # in which they finished, unless *ordered*.
    pending: dict[Task[Any], None] = {}
    done: SimpleQueue[Task[Any]] = SimpleQueue()

    def is_ready() -> bool:
        return next(iter(pending)).done() if ordered and pending else not done.empty()

    def results(is_finalizing: Callable[[], bool] = sys.is_finalizing) -> Iterator[Any]:
        count = 0
        more = True
        try:
            while True:
                while more and (limit is None or len(pending) < limit) and not is_ready():
                    if (item := next(source, done)) is done:
                        more = False
                        break
                    task = start(caller(), item)
                    pending[task] = None
                    if not ordered:
                        task._when_done(partial(done.put, task))
                    # An error's traceback refers to this frame: a cycle with the task, which holds the error.
                    del task
                if not pending:
                    return
                value = _take(pending, None if ordered else done, return_exceptions)
                count += 1
                if progress is not None:
                    progress(count, total)
                yield value
        finally:
            # A generator that was not exhausted may live until the interpreter clears this module. So the function is bound as a default
            # argument, as in `Resource.__del__`.
            if not is_finalizing():
                _close(runtime, pending)

    return results()


def _take(pending: dict[Task[Any], None], done: SimpleQueue[Task[Any]] | None, return_exceptions: bool) -> Any:
    """Wait for the next result and return it, or raise the error."""
    task = next(iter(pending))
    if done is not None:
        task = next_in(done, task, None).pop()
    # Waits before it takes the task out of `pending`: a task that Ctrl-C leaves behind is then still cancelled.
    task._wait_until_done(None)
    del pending[task]
    value, error = task._take(CancelledError)
    try:
        if error is None:
            return value
        if return_exceptions and isinstance(error, Exception):
            return error
        raise error
    finally:
        # The task holds the error, and the error's traceback refers to this frame: a cycle, which would keep both alive.
        del task, error


def _close(runtime: Runtime, tasks: Iterable[Task[Any]]) -> None:
    """Cancel the unfinished tasks and wait for their clean-up."""
    until = time.monotonic() + runtime._settings.cancel_timeout
    # ForkedError: in a forked child the tasks are the parent's. WouldDeadlockError: the generator was collected on the loop's own
    # thread, for example; the drain waits for the tasks then.
    with suppress(ForkedError, WouldDeadlockError):
        for task in tasks:
            task.cancel()
        for task in tasks:
            task._wait_until_done(max(0.0, until - time.monotonic()))
