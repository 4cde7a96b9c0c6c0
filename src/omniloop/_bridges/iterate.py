"""Iterates over an async iterable in sync code (`iterate`), and over a blocking iterable in async code (`aiterate`)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from functools import partial
from threading import Lock, current_thread
from types import FrameType
from typing import Any, Final, TypeVar, final

from .._arguments import check_count, close_unstarted, name_of
from .._errors import NotAsyncError
from .._hooks import who_runs_here
from .._report import caller, say, shown
from .._runtime import Runtime
from .._shared import chosen
from .._starting import in_own_thread
from .._steps import END, Items, SyncSteps, iterating
from .._threads import acquire, let_through
from .._work.task import DAEMON

T = TypeVar("T")

# Seconds that closing an `aiterate` waits for a source that blocks.
_CLOSING_TIME: Final = 1.0


def iterate(source: AsyncIterable[T], *, buffer: int = 1, runtime: Runtime | None = None) -> Iteration[T]:
    """
    Iterate over an async iterable in sync code: ``for line in iterate(stream()): …``.

    The source runs on the loop, in one task and in a copy of the caller's context. It runs ahead of the consumer by at most *buffer*
    items and one more. Its errors are raised here. When the iteration is dropped (by an early `break`, an error, or a garbage
    collection), an async generator is closed on the loop, and its `finally` blocks run; a `with` around the iteration waits for them.
    The source is cancelled at exit: a consumer that still wanted items would be waiting for them.

    Args:
        source: An async generator, or another async iterable.
        buffer: How many items may wait for the consumer.
        runtime: The runtime on whose loop the source runs; by default the shared one.

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
    check_count("buffer", buffer)
    if not isinstance(source, AsyncIterable):
        raise NotAsyncError(_not_async_iterable(source))
    runtime = chosen(runtime)
    runtime._current().check_may_wait("iterate()")
    drive = partial(iterating, source)
    return Iteration(drive, runtime, caller(), f"iterate({name_of(source)})", ahead=buffer + 1)._start()


@final
class Iteration(SyncSteps[T]):
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


def aiterate(source: Iterable[T], *, buffer: int = 1, runtime: Runtime | None = None) -> AsyncGenerator[T, None]:
    """
    Iterate over a blocking iterable in async code, on any event loop: ``async for row in aiterate(cursor): …``.

    The source runs in one thread of its own, in a copy of the caller's context. It runs ahead of the consumer by at most *buffer*
    items and one more. Its errors are raised here. When the iteration is closed early, a generator is closed in that thread. Closing
    waits for this, for a second at most: the log names a source that blocks for longer, and its generator is closed when it returns.
    Neither a cancellation nor the exit waits for the source.

    Args:
        source: An iterable whose `next` may block.
        buffer: How many items may wait for the consumer.
        runtime: The runtime that the work belongs to; by default the shared one.

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
    check_count("buffer", buffer)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        close_unstarted(source)
        way_out = "Use `async for` on it" if isinstance(source, AsyncIterable) else "Pass an iterable: aiterate(cursor)"
        raise NotAsyncError(f"aiterate() takes a sync iterable, and {source!r} is none. {way_out}.")
    return _from_thread(source, buffer, chosen(runtime), caller())


async def _from_thread(source: Iterable[T], buffer: int, runtime: Runtime, frame: FrameType) -> AsyncGenerator[T, None]:
    items = _Fed(buffer)
    name = f"aiterate({name_of(source)})"
    # Not in a worker thread, because the exit would wait for that while the source blocks.
    # `when_full="accept"`, as in `SyncSteps`: the producer and the consumer of one queue need each other, so neither may be refused.
    feeding = in_own_thread(runtime, partial(items.feed, source), name, or_worker=True)
    task = runtime._go(feeding, frame, name, kind=DAEMON, when_full="accept")
    # This generator must not keep the source alive, and the caller's frame refers to it too.
    del source, frame, feeding
    task._when_done(partial(items.put, END))
    try:
        while True:
            # Under another async library `take` can't run here, so it runs on the runtime's loop.
            taking = items.take()
            item = await (runtime._go(taking, sys._getframe(), when_full="accept") if who_runs_here() else taking)
            if item is END:
                break
            yield item
            # The item must not live on while the next one is awaited.
            del item
        await task
    except GeneratorExit:
        items.close()
        if not await task.wait(_CLOSING_TIME):
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
        items.close()


class _Fed(Items[Any]):
    """A queue that a thread fills with the items of its source; the thread waits while more than *buffer* items are unread."""

    def __init__(self, buffer: int) -> None:
        super().__init__()
        self._buffer = buffer
        self._open = True
        self._room = Lock()
        self._room.acquire()

    def feed(self, source: Iterable[Any]) -> None:
        self.source = current_thread()
        iterator = iter(source)
        try:
            for item in iterator:
                self.put(item)
                del item
                while self._open and len(self._items) > self._buffer:
                    acquire(self._room, None)
                if not self._open:
                    return
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    async def take(self) -> Any:
        item = await self.get()
        let_through(self._room)
        return item

    def close(self) -> None:
        """Have the feeding thread stop after its current item."""
        self._open = False
        let_through(self._room)


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
