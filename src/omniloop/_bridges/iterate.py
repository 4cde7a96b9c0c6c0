"""Iterates across the border: over an async iterable in sync code, over a blocking iterator in async code."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Final, Generic, Self, TypeVar, final

import janus

from .._arguments import close_unstarted
from .._caller import caller
from .._clock import slices
from .._errors import ForkedError, NotAsyncError
from .._limiter import in_own_thread
from .._report import say, shown
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import Kind, Task

T = TypeVar("T")

# Seconds for which the closing of `aiterate` waits for a source that blocks.
_CLOSING_TIME: Final = 1.0


def iterate(source: AsyncIterable[T], *, buffer: int = 1, runtime: Runtime | None = None) -> Iteration[T]:
    """
    Iterate over an async iterable in sync code: ``for line in iterate(stream()): …``.

    The source runs on the loop, in one task and in a copy of the caller's context, and is at the most *buffer* items and one more
    ahead of the consumer. What it raises is raised here. When the iteration is dropped (an early `break`, an error, a garbage
    collection) a generator is closed on the loop, and its `finally` blocks run; a `with` around it waits for them. Cancelled at
    exit: whoever still wants the items would have to be waiting for them.

    Args:
        source: An async generator, or another async iterable.
        buffer: How many items may wait for the consumer.
        runtime: Where the source runs; by default on the shared one.

    Raises:
        NotAsyncError: if *source* is no async iterable.
        ValueError: if *buffer* is not a whole number of 1 or more.
        TypeError: if *runtime* is no `Runtime`.
        WouldDeadlockError: if called on the loop's own thread. Use `async for` there.
        ClosedError: if the runtime is shut down, or the interpreter ends.
        CannotStartError: if this was the first use, and no thread can be started here.

    Example:
        >>> import asyncio
        >>> from omniloop import iterate
        >>> async def numbers():
        ...     for number in range(3):
        ...         await asyncio.sleep(0)
        ...         yield number
        >>> [number for number in iterate(numbers())]
        [0, 1, 2]
    """
    _check_buffer(buffer)
    if not isinstance(source, AsyncIterable):
        raise NotAsyncError(_not_async_iterable(source))
    return Iteration(source, buffer, chosen(runtime), caller())


@final
class Iteration(Generic[T]):
    """
    A sync iterator over an async iterable; made by `iterate`. As a context manager it is closed at the end.

    For one thread at a time, and not for the loop's own.

    Example:
        >>> import asyncio, itertools
        >>> from omniloop import iterate
        >>> async def ticks():
        ...     for number in itertools.count():
        ...         yield number
        >>> with iterate(ticks()) as numbers:
        ...     next(numbers), next(numbers)
        (0, 1)
    """

    def __init__(self, source: AsyncIterable[T], buffer: int, runtime: Runtime, frame: FrameType) -> None:
        runtime._current().check_may_wait("iterate()")
        queue: janus.Queue[T] = janus.Queue(buffer)
        self._queue = queue
        # Its end, whichever it was, was told.
        self._ended = False
        name = _name("iterate", source)
        # Whatever the bounds are: there is no more of it than of those who consume.
        self._task = runtime._go_for_caller(_feed(source, queue), name, frame)
        # However it ends, the consumer hears of it, after the items that are there.
        self._task.add_done_callback(lambda _: queue.shutdown())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        try:
            return self._queue.sync_q.get_nowait()
        except janus.SyncQueueEmpty:
            items = self._wait()
            if items:
                return items[0]
        except janus.SyncQueueShutDown:
            pass
        # Again, because `close` may have come in between, in another thread.
        if not self._ended:
            self._ended = True
            self._task.result(0)
        raise StopIteration

    def _wait(self) -> list[T]:
        items: list[T] = []

        def wait_here(seconds: float) -> bool:
            try:
                items.append(self._queue.sync_q.get(timeout=seconds))
            except janus.SyncQueueEmpty:
                return False
            except janus.SyncQueueShutDown:
                # The source has ended.
                pass
            return True

        self._task._wait_for(wait_here, None)
        return items

    def close(self) -> None:
        """
        End the iteration: a generator is closed on the loop, and this waits until its `finally` blocks ran.

        An error in them is raised here. Closing again is harmless.

        Raises:
            WouldDeadlockError: if called on the loop's own thread.
            ForkedError: if the iteration is a parent process's.
        """
        self._ended = True
        if self._task.cancel():
            self._task._wait_until_done(None)
            if not self._task.cancelled():
                self._task.result(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # As a resource's.
            return
        # Asks only: a finaliser must not wait. A task that was refused was never made.
        task = getattr(self, "_task", None)
        if task is not None:
            with suppress(ForkedError):
                task.cancel()


async def _feed(source: AsyncIterable[T], queue: janus.Queue[T]) -> None:
    task = asyncio.current_task()
    iterator = aiter(source)
    try:
        async for item in iterator:
            if task is not None and task.cancelling():
                # The source has swallowed its cancellation, and nobody wants more.
                break
            await queue.async_q.put(item)
    finally:
        # As dropping it would, but here and now. Other iterators are the caller's to close.
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


def aiterate(source: Iterable[T], *, buffer: int = 1, runtime: Runtime | None = None) -> AsyncGenerator[T, None]:
    """
    Iterate over a blocking iterable in async code, on any event loop: ``async for row in aiterate(cursor): …``.

    All of it runs in one thread of its own, and in a copy of the caller's context, at the most *buffer* items and one more ahead of the
    consumer. What it raises is raised here. When the iteration is closed early, a generator is closed in its thread. Closing waits for
    that, for a second at the most: a source that blocks for longer is named in the log, and its generator is closed when it comes back.
    Cancellation does not wait, nor does the exit.

    Args:
        source: An iterable whose `next` may block.
        buffer: How many items may wait for the consumer.
        runtime: Whose work it is; by default the shared one's.

    Raises:
        NotAsyncError: if *source* is not iterable.
        ValueError: if *buffer* is not a whole number of 1 or more.
        TypeError: if *runtime* is no `Runtime`.
        ClosedError: at the first item, if the runtime is shut down, or the interpreter ends.
        CannotStartError: at the first item, if no thread can be started here.

    Example:
        >>> import asyncio
        >>> from omniloop import aiterate
        >>> async def main():
        ...     return [line async for line in aiterate(["a", "b"])]
        >>> asyncio.run(main())
        ['a', 'b']
    """
    _check_buffer(buffer)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        close_unstarted(source)
        way_out = "Use `async for` on it" if isinstance(source, AsyncIterable) else "Pass an iterable: aiterate(cursor)"
        raise NotAsyncError(f"aiterate() takes a sync iterable, and {source!r} is none. {way_out}.")
    return _from_thread(source, buffer, chosen(runtime), caller())


async def _from_thread(source: Iterable[T], buffer: int, runtime: Runtime, frame: FrameType) -> AsyncGenerator[T, None]:
    queue: janus.Queue[T] = janus.Queue(buffer)
    name = _name("aiterate", source)
    # Not in a worker, which the exit would wait for while the source blocks. Whatever the bounds are, as in `Iteration`: what fills the
    # queue and what empties it need each other.
    feeding = in_own_thread(runtime, partial(_feed_in_thread, source, queue), name, or_worker=True)
    task = runtime._go(feeding, name, None, Kind.DAEMON, frame, "accept")
    # It is in the frame of whoever made this.
    del source, frame, feeding
    task.add_done_callback(lambda _: queue.shutdown())
    try:
        while True:
            try:
                item = queue.sync_q.get_nowait()
            except janus.SyncQueueShutDown:
                break
            except janus.SyncQueueEmpty:
                try:
                    item = await _get(queue, runtime)
                except janus.AsyncQueueShutDown:
                    break
            yield item
            # Not kept alive while the next one is waited for.
            del item
        await task
    except GeneratorExit:
        queue.close()
        if not await _is_done_soon(task):
            say(
                "%s: its source has blocked for %g s, and closing waits for it no longer. Its thread closes a generator when it comes back. "
                "Give what blocks in there a time limit, so that it can be closed at once.",
                shown(name),
                _CLOSING_TIME,
            )
        elif not task.cancelled():
            await task
        raise
    finally:
        queue.close()


async def _is_done_soon(task: Task[None]) -> bool:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        with suppress(RuntimeError):
            # That loop is closed.
            loop.call_soon_threadsafe(_set, done)

    task._when_done(tell)
    await asyncio.wait([done], timeout=_CLOSING_TIME)
    return task.done()


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def _get(queue: janus.Queue[T], runtime: Runtime) -> T:
    """The next item, on whichever loop: the queue is the runtime's."""
    thread = runtime._current().thread
    if thread is not None and asyncio._get_running_loop() is thread.loop:
        return await queue.async_q.get()
    return await runtime._go(queue.async_q.get(), None, None, Kind.WORK, sys._getframe(), "accept")


def _feed_in_thread(source: Iterable[T], queue: janus.Queue[T]) -> None:
    iterator = iter(source)
    try:
        for item in iterator:
            _put(queue, item)
    except janus.SyncQueueShutDown:
        # Nobody wants more.
        pass
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _put(queue: janus.Queue[T], item: T) -> None:
    for seconds in slices(None):
        with suppress(janus.SyncQueueFull):
            queue.sync_q.put(item, timeout=seconds)
            return


def _name(call: str, source: object) -> str:
    return f"{call}({getattr(source, '__qualname__', type(source).__qualname__)})"


def _check_buffer(buffer: int) -> None:
    if not isinstance(buffer, int) or isinstance(buffer, bool) or buffer < 1:
        raise ValueError(f"buffer={buffer!r}: give a whole number of 1 or more.")


def _not_async_iterable(source: object) -> str:
    if inspect.isasyncgenfunction(source):
        return f"{source!r} is an async generator function. Call it: iterate({source.__name__}(…))."
    if isinstance(source, AsyncIterator) or hasattr(source, "__anext__"):
        return f"{source!r} has no __aiter__(). Add one that returns self."
    if inspect.isawaitable(source):
        close_unstarted(source)
        return f"{source!r} is awaited, not iterated over. Use run() for its value; iterate() takes what `async for` takes."
    if isinstance(source, Iterable):
        return f"{source!r} is a sync iterable. Iterate over it as it is; iterate() takes what `async for` takes."
    return f"{source!r} is no async iterable. Pass what `async for` takes: iterate(stream())."
