"""Drives an async iterator from outside one step at a time, all of them in one task: nothing is read ahead."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from .._errors import ForkedError, TaskTimeoutError
from .._report import shown
from .._runtime import Runtime
from .._work.task import Task

T = TypeVar("T")
S = TypeVar("S")

# How an async generator is gone on with, and a mere iterator: what comes back is awaited.
Move = Callable[[AsyncIterator[Any]], Any]


# The folder of the package.
_HERE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep


def trimmed(tb: TracebackType | None) -> TracebackType | None:
    """The traceback *tb* without the frames of this package's own that it begins with."""
    while tb is not None and tb.tb_next is not None and _is_ours(tb.tb_frame):
        tb = tb.tb_next
    return tb


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_HERE)


class _Step:
    """One wish of the consumer, and what came of it."""

    __slots__ = ("item", "move", "tell")

    def __init__(self, move: Move, tell: Callable[[], object]) -> None:
        self.move = move
        self.tell = tell
        # Empty until there is one.
        self.item: list[Any] = []


class Source(Generic[T]):
    """
    An async iterator at work on the loop, in one task and in a copy of the context of whoever began it.

    It rests until it is asked for the next item. Cancelled at exit: whoever still wants items would have to be waiting for them.
    """

    def __init__(self, source: AsyncIterable[T], runtime: Runtime, frame: FrameType, name: str) -> None:
        # Touched on the loop alone: the wish that is next, and what wakes the task.
        self._wishes: list[_Step] = []
        self._wake: asyncio.Future[None] | None = None
        # Wakes the consumer when there will be no item. Not the consumer itself: dropping that is what ends the task.
        last: list[Callable[[], object]] = [_nobody]
        self._last = last
        self.task: Task[None] = runtime._go_for_caller(self._drive(source), name, frame)
        # Whichever is the last by then.
        self.task._when_done(lambda: last[0]())  # noqa: PLW0108

    async def _drive(self, source: AsyncIterable[T]) -> None:
        iterator = aiter(source)
        task = asyncio.current_task()
        # Else it lives as long as this frame, which an error's traceback holds.
        del source
        try:
            while True:
                while not self._wishes:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                step = self._wishes.pop(0)
                try:
                    step.item.append(await step.move(iterator))
                except StopAsyncIteration:
                    return
                finally:
                    if step.item:
                        step.tell()
                del step
                if task is not None and task.cancelling():
                    # The source has swallowed its cancellation, and nobody wants more.
                    break
        finally:
            # As dropping it would, but here and now. Other iterators are the caller's to close.
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    def _ask(self, step: _Step) -> None:
        self._wishes.append(step)
        if self._wake is not None:
            wake_up(self._wake)

    def ask(self, move: Move, tell: Callable[[], object]) -> _Step:
        """Have one step taken; *tell* is called, on the loop's thread or on this one, when it was, or when it never will be."""
        self.task._owner.check_process()
        step = _Step(move, tell)
        self._last[0] = tell
        # By way of the inbox, which takes functions too. Closed: then the task is done, and says so below.
        self.task._owner.inbox.put(partial(self._ask, step))  # type: ignore[attr-defined]
        if self.task.done():
            tell()
        return step

    def drop(self) -> None:
        """Have it closed. Asks only: a finaliser must not wait."""
        with suppress(ForkedError):
            self.task.cancel()


def _nobody() -> None:
    pass


def _advance(iterator: AsyncIterator[T]) -> Any:
    return anext(iterator)


def _sender(value: object) -> Move:
    return lambda generator: generator.asend(value)  # type: ignore[attr-defined]


def _thrower(*error: Any) -> Move:
    return lambda generator: generator.athrow(*error)  # type: ignore[attr-defined]


class Steps(Generator[T, S, None]):
    """
    A sync iterator over an async one, one item at a time; as a context manager it is closed at the end.

    For one thread at a time, and not for the loop's own.
    """

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
        self._runtime = runtime
        self._out = out
        self._timeout = timeout
        self._ended = False
        self._source: Source[Any] = Source(source, runtime, frame, name)

    def __next__(self) -> T:
        return self._step(_advance)

    def send(self, value: S, /) -> T:
        """Resume the async generator with *value*, and wait for its next item."""
        return self._step(_sender(value))

    def throw(self, *error: Any) -> T:
        """Raise an error where the async generator waits, and wait for its next item."""
        return self._step(_thrower(*error))

    def _step(self, move: Move) -> T:
        try:
            return self._take(move)
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    def _take(self, move: Move) -> T:
        if self._ended:
            raise StopIteration
        source, task = self._source, self._source.task
        gate = threading.Lock()
        gate.acquire()
        done = False
        try:
            step = source.ask(move, partial(_release, gate))
            done = task._wait_for(lambda seconds: gate.acquire(timeout=seconds), self._timeout)
        finally:
            if not done:
                # Ctrl-C, or the timeout: the step is under way, and nobody will take what comes of it.
                self._ended = True
                source.drop()
        if not done:
            # As `run` does.
            task._wait_until_done(self._runtime._settings.cancel_timeout)
            raise _too_late(task, self._timeout)
        if step.item:
            return self._out(step.item[0])
        self._ended = True
        task.result(0)
        raise StopIteration

    def close(self) -> None:
        """
        End the iteration: a generator is closed on the loop, and this waits until its `finally` blocks ran.

        An error in them is raised here. Closing again is harmless.
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

    def __del__(self) -> None:
        # A source that was refused was never made.
        source = getattr(self, "_source", None)
        if source is not None:
            source.drop()


def wake_up(waiter: asyncio.Future[None]) -> None:
    """Let go on who waits for it; on its loop."""
    if not waiter.done():
        waiter.set_result(None)


def _release(gate: threading.Lock) -> None:
    with suppress(RuntimeError):
        gate.release()


def _too_late(task: Task[Any], timeout: float | None) -> TaskTimeoutError:
    return TaskTimeoutError(f"{shown(task.get_name())} had no item after {timeout} s, and was cancelled.", task=task)


class AsyncSteps(AsyncGenerator[T, S]):
    """The same for async code on any loop of asyncio's; the source stays on the runtime's."""

    def __init__(
        self,
        make: Callable[[], AsyncIterable[Any]],
        runtime: Runtime,
        frame: FrameType,
        name: str,
        out: Callable[[Any], T],
        timeout: float | None,
    ) -> None:
        self._make, self._runtime, self._frame, self._name = make, runtime, frame, name
        self._out = out
        self._timeout = None if timeout == math.inf else timeout
        self._source: Source[Any] | None = None
        self._ended = False

    async def __anext__(self) -> T:
        return await self._step(_advance)

    async def asend(self, value: S) -> T:
        return await self._step(_sender(value))

    async def athrow(self, *error: Any) -> T:
        return await self._step(_thrower(*error))

    async def _step(self, move: Move) -> T:
        try:
            return await self._take(move)
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    async def _take(self, move: Move) -> T:
        if self._ended:
            raise StopAsyncIteration
        if self._source is None:
            self._source = Source(self._make(), self._runtime, self._frame, self._name)
            del self._frame
        task, loop = self._source.task, asyncio.get_running_loop()
        wake: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):
                # Closed by now: nobody waits there.
                loop.call_soon_threadsafe(wake_up, wake)

        step = self._source.ask(move, tell)
        try:
            async with asyncio.timeout(self._timeout):
                await wake
        except BaseException as error:
            self._ended = True
            await self._end(task)
            if isinstance(error, TimeoutError):
                raise _too_late(task, self._timeout) from None
            raise
        if step.item:
            return self._out(step.item[0])
        self._ended = True
        await task
        raise StopAsyncIteration

    async def _end(self, task: Task[None]) -> None:
        if task.cancel():
            with suppress(asyncio.CancelledError):
                await task

    async def aclose(self) -> None:
        self._ended = True
        if self._source is not None:
            await self._end(self._source.task)

    def __del__(self) -> None:
        if getattr(self, "_source", None) is not None:
            assert self._source is not None
            self._source.drop()
