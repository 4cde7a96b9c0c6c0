"""Iterates across the border: over an async iterable in sync code, over a blocking iterator in async code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from functools import partial
from threading import Lock
from types import FrameType
from typing import Any, Final, TypeVar, final

from .._arguments import close_unstarted
from .._caller import caller
from .._clock import acquire, let_through
from .._errors import NotAsyncError
from .._hooks import who_runs_here
from .._limiter import in_own_thread
from .._report import say, shown
from .._runtime import Runtime
from .._shared import chosen
from .._steps import END, Items, SyncSteps, iterating
from .._work.task import DAEMON

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
    runtime = chosen(runtime)
    runtime._current().check_may_wait("iterate()")
    return Iteration(iterating(source), runtime, caller(), _name("iterate", source), ahead=buffer + 1)._start()


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
    items = _Fed(buffer)
    name = _name("aiterate", source)
    # Not in a worker, which the exit would wait for while the source blocks. Whatever the bounds are, as in `SyncSteps`: what fills the
    # queue and what empties it need each other.
    feeding = in_own_thread(runtime, partial(items.feed, source), name, or_worker=True)
    task = runtime._go(feeding, frame, name, kind=DAEMON, when_full="accept")
    # It is in the frame of whoever made this.
    del source, frame, feeding
    task._when_done(partial(items.put, END))
    try:
        while True:
            # Elsewhere than under asyncio the runtime's loop is the one that takes.
            taking = items.take()
            item = await (runtime._go(taking, sys._getframe(), when_full="accept") if who_runs_here() else taking)
            if item is END:
                break
            yield item
            # Not kept alive while the next one is waited for.
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
    """What a thread feeds with the items of its source, and waits while there are more than are to be read ahead."""

    def __init__(self, buffer: int) -> None:
        super().__init__()
        self._buffer = buffer
        self._open = True
        self._room = Lock()
        self._room.acquire()

    def feed(self, source: Iterable[Any]) -> None:
        iterator = iter(source)
        try:
            for item in iterator:
                self.put(item)
                del item
                while self._open and len(self) > self._buffer:
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
        """Nobody wants more."""
        self._open = False
        let_through(self._room)


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
