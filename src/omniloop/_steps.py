"""
Takes the steps of async code from outside: an iteration, or the entering and leaving of a manager, one task for all of them.

The source runs on the loop. It rests until it is asked for a step, takes it, and hands on what came of it; reading ahead is being asked
beforehand. When it has ended, in whichever way, it hands on `END`. What it has handed on lies in a queue of its consumer's, which is in a
thread (`SyncSteps`) or on any loop of asyncio's (`AsyncSteps`).

The source knows the queue and not the consumer: dropping that is what ends the source.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from ._errors import ForkedError, TaskTimeoutError, WouldDeadlockError
from ._life.life import Life
from ._life.workers import resolve
from ._report import shown
from ._runtime import Runtime
from ._work.leftovers import OF_CALLERS, belongs_to
from ._work.task import DAEMON, Kind, Task

T = TypeVar("T")
S = TypeVar("S")

# What runs as a source: it waits for `wish()`, and hands on.
Drive = Callable[["Source"], Coroutine[Any, Any, None]]

# Handed on last.
END: Final = object()

# The folder of the package.
_HERE: Final = os.path.dirname(__file__) + os.sep


def trimmed(tb: TracebackType | None) -> TracebackType | None:
    """The traceback *tb* without the frames of this package's own that it begins with."""
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename.startswith(_HERE):
        tb = tb.tb_next
    return tb


class Source:
    """
    What is at work on the loop, in one task and in a copy of the context of whoever made it.

    Cancelled at exit: whoever still wants something would have to be waiting for it. But it runs the caller's code, and what that leaves on
    the loop is waited for.
    """

    def __init__(
        self,
        drive: Drive,
        runtime: Runtime,
        frame: FrameType,
        name: str,
        hand_on: Callable[[Any], object],
        ahead: int = 0,
        kind: Kind = DAEMON,
    ) -> None:
        self.hand_on = hand_on
        # Touched on the loop alone: how many steps are wanted, what was said with the last wish, and what wakes the task.
        self._wanted = ahead
        self._said: Any = advance
        self._wake: Future[None] | None = None
        self._asked = False
        self.task: Task[None] = runtime._make_task(drive(self), None, None, frame, name, kind)
        context = self.task._context
        if kind is DAEMON and context is not None and belongs_to not in context:
            context.run(belongs_to.set, OF_CALLERS)
        self.task._when_done(lambda: hand_on(END))

    async def wish(self) -> Any:
        """Rest until a step is wanted; what was said with the wish."""
        while not self._wanted:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._wanted -= 1
        # Not kept: it may be an error, whose traceback refers to what is at work here.
        said, self._said = self._said, advance
        return said

    def ask(self, said: Any) -> None:
        """Have one more step taken. From any thread; ForkedError in a child."""
        life: Life = self.task._owner  # type: ignore[assignment]
        life.check_process()

        def note() -> None:
            self._wanted += 1
            self._said = said
            if self._wake is not None:
                resolve(self._wake)

        # The inbox takes functions too. If it is closed, the task has ended.
        life.inbox.put(note)

    def drop(self) -> None:
        """Have it end. Asks only: a finaliser must not wait."""
        with suppress(ForkedError):
            self.end()

    def end(self) -> bool:
        """Ask it to end; False if it has ended."""
        # Once: a second time would interrupt the clean-up.
        if not self._asked and self.task.cancel():
            self._asked = True
        return not self.task.done()

    def too_late(self, timeout: float | None) -> TaskTimeoutError:
        name = shown(self.task.get_name())
        return TaskTimeoutError(f"{name} had no item after {timeout} s, and was cancelled.", task=self.task)


# --- iterating --------------------------------------------------------------------------------------------------------


def iterating(source: AsyncIterable[Any]) -> Drive:
    """Each wish says how the async generator is gone on with, or the mere iterator: what that returns is awaited."""
    return lambda steps: _iterate(source, steps)


async def _iterate(source: AsyncIterable[Any], steps: Source) -> None:
    iterator = aiter(source)
    task = asyncio.current_task()
    # Else it lives as long as this frame, which an error's traceback holds.
    del source
    try:
        # Where its cancellation was swallowed, nobody wants more.
        while task is None or not task.cancelling():
            try:
                # Without a name for any of it, which would keep it until the next.
                steps.hand_on(await (await steps.wish())(iterator))
            except StopAsyncIteration:
                return
    finally:
        # As dropping it would, but here and now. Other iterators are the caller's to close.
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


def advance(iterator: AsyncIterator[Any]) -> Any:
    return anext(iterator)


def _sender(value: object) -> Callable[[Any], Any]:
    return lambda generator: generator.asend(value)


def _thrower(*error: Any) -> Callable[[Any], Any]:
    return lambda generator: generator.athrow(*error)


def _same(item: Any) -> Any:
    return item


# --- the consumers ----------------------------------------------------------------------------------------------------


class SyncSteps(Generic[T]):
    """A sync iterator over a source, for one thread at a time, and not for the loop's own. As a context manager it is closed at the end."""

    def __init__(
        self,
        drive: Drive,
        runtime: Runtime,
        frame: FrameType,
        name: str,
        *,
        ahead: int = 0,
        kind: Kind = DAEMON,
        out: Callable[[Any], T] = _same,
        timeout: float | None = None,
    ) -> None:
        self._runtime, self._out, self._timeout = runtime, out, timeout
        self._ended = False
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._source = Source(drive, runtime, frame, name, self._items.put, ahead, kind)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._step(advance)

    def close(self) -> None:
        """
        End the iteration: a generator is closed on the loop, and this waits until its `finally` blocks ran.

        An error in them is raised here. Closing again is harmless.

        Raises:
            WouldDeadlockError: if called on the loop's own thread.
            ForkedError: if the iteration is a parent process's.
        """
        self._ended = True
        task = self._source.task
        if task.cancel():
            task._wait_until_done(None)
            if not task.cancelled():
                task.result(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # As a resource's. A source that was refused was never made.
        source = None if is_finalizing() else getattr(self, "_source", None)
        if source is not None:
            source.drop()

    def _step(self, said: Any) -> T:
        try:
            return self._out(self._resume(said))
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    def _resume(self, said: Any) -> Any:
        """Have a step taken, and return what comes of the next that is not taken out; StopIteration at the end, or what the source raised."""
        if self._ended:
            raise StopIteration
        # Not in there, because in a child the next step is to be refused too.
        self._source.task._owner.check_process()
        with self._ending():
            # Together: Ctrl-C in between would leave the source a step ahead of what is asked next.
            self._source.ask(said)
            item = self._take()
        if item is not END:
            return item
        # Again, because `close` may have come in between, in another thread.
        if not self._ended:
            self._ended = True
            self._source.task.result(0)
        raise StopIteration

    def _start(self) -> Self:
        with self._ending():
            # In here, because Ctrl-C may come when the loop has the task already. Unbounded: there is no more of it than of those who consume.
            self._runtime._put(self._source.task)
        return self

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """On Ctrl-C, or the time limit, end the source and wait, bounded, for its clean-up. A second Ctrl-C ends this wait too."""
        try:
            yield
        except BaseException:
            # Once: a second time would interrupt the clean-up.
            if not self._ended:
                self._ended = True
                with suppress(ForkedError, WouldDeadlockError):
                    if self._source.task.cancel():
                        self._source.task._wait_until_done(self._runtime._settings.cancel_timeout)
            raise

    def _take(self) -> Any:
        """Wait for the next item."""
        items: list[Any] = []

        def wait_here(seconds: float) -> bool:
            with suppress(Empty):
                items.append(self._items.get(timeout=seconds))
            return bool(items)

        if not self._items.empty():
            return self._items.get()
        with self._ending():
            if not self._source.task._wait_for(wait_here, self._timeout):
                raise self._source.too_late(self._timeout)
        return items.pop()


class Steps(SyncSteps[T], Generator[T, S, None]):
    """As `SyncSteps`, over an async generator, nothing of which is read ahead."""

    def __init__(
        self,
        source: AsyncIterable[Any],
        runtime: Runtime,
        frame: FrameType,
        name: str,
        out: Callable[[Any], T],
        timeout: float | None,
    ) -> None:
        runtime._current().check_may_wait(name, "use `async for` there")
        super().__init__(iterating(source), runtime, frame, name, out=out, timeout=timeout)
        self._start()

    def send(self, value: S, /) -> T:
        """Resume the async generator with *value*, and wait for its next item."""
        return self._step(_sender(value))

    def throw(self, *error: Any) -> T:
        """Raise an error where the async generator waits, and wait for its next item."""
        return self._step(_thrower(*error))


class Items(Generic[T]):
    """A queue into which any thread puts, and from which one loop of asyncio's takes."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiter: Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        # In this order, as `get` does it in the other: one of the two sees what the other has done.
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None:
            # Closed by now: nobody waits there.
            with suppress(RuntimeError):
                waiter.get_loop().call_soon_threadsafe(resolve, waiter)

    async def get(self) -> T:
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            if not self._items:
                await self._waiter
        self._waiter = None
        return self._items.popleft()


class AsyncSteps(AsyncGenerator[T, S]):
    """The same for async code on any loop of asyncio's; the source stays on the runtime's, and is made with the first step."""

    def __init__(
        self,
        make: Callable[[], Drive],
        runtime: Runtime,
        frame: FrameType,
        name: str,
        out: Callable[[Any], T] = _same,
        timeout: float | None = None,
    ) -> None:
        self._make, self._runtime, self._frame, self._name, self._out = make, runtime, frame, name, out
        self._timeout = None if timeout == math.inf else timeout
        self._items: Items[Any] = Items()
        self._source: Source | None = None
        self._ended = False

    async def __anext__(self) -> T:
        return await self._step(advance)

    async def asend(self, value: S) -> T:
        return await self._step(_sender(value))

    async def athrow(self, *error: Any) -> T:
        return await self._step(_thrower(*error))

    async def aclose(self) -> None:
        self._ended = True
        if self._source is None:
            return
        task = self._source.task
        # The waiting asks for nothing: a cancellation of the caller ends the wait, and does not interrupt the clean-up.
        if self._source.end() and await task.wait() and not task.cancelled():
            task.result(0)

    def __del__(self) -> None:
        # One whose making has failed has none.
        source = getattr(self, "_source", None)
        if source is not None:
            source.drop()

    async def _step(self, said: Any) -> T:
        try:
            return self._out(await self._resume(said))
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    async def _resume(self, said: Any) -> Any:
        if self._ended:
            raise StopAsyncIteration
        source = self._begin()
        source.ask(said)
        item = await self._take(source)
        if item is not END:
            return item
        self._ended = True
        await source.task
        raise StopAsyncIteration

    def _begin(self) -> Source:
        if self._source is None:
            self._source = Source(self._make(), self._runtime, self._frame, self._name, self._items.put)
            del self._frame
            self._runtime._put(self._source.task)
        return self._source

    async def _take(self, source: Source) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._items.get()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise source.too_late(self._timeout) from None
            raise
