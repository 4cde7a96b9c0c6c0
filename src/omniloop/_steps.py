"""
Runs async code step by step for a consumer elsewhere: an iteration, or the entering and leaving of a manager, in one task.

1. The source, a task on the loop, waits until a step is requested.
2. It takes the step and puts the result into the consumer's queue. Reading ahead means that steps are requested in advance.
3. When the source has ended, whether by an error, a cancellation or its own end, it puts `END` into the queue.
4. The consumer takes the results from the queue, in a thread (`SyncSteps`) or on any asyncio loop (`AsyncSteps`).

The source refers to the queue and not to the consumer, so that dropping the consumer ends the source.
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
from ._work.leftovers import OF_CALLERS
from ._work.task import DAEMON, Kind, Task, belongs_to

T = TypeVar("T")
S = TypeVar("S")

# The coroutine function of a source: it awaits `wish()` for each step, and passes the result to `hand_on`.
Drive = Callable[["Source"], Coroutine[Any, Any, None]]

# The last item in each queue.
END: Final = object()

# The package's folder: tells the package's own frames from the user's.
_HERE: Final = os.path.dirname(__file__) + os.sep


def trimmed(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback *tb* without the leading frames of this package."""
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename.startswith(_HERE):
        tb = tb.tb_next
    return tb


class Source:
    """
    The task on the loop that takes the steps, in a copy of its maker's context.

    It is cancelled at exit: a consumer that still wanted a result would be waiting for it. But it runs the caller's code, so that the exit
    waits for the tasks that this code leaves on the loop.
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
        # Used on the loop's thread only: the number of requested steps, the value of the last request, and the future that wakes the task.
        self._wanted = ahead
        self._said: Any = advance
        self._wake: Future[None] | None = None
        self.task: Task[None] = Task(runtime, drive(self), None, None, frame, name, kind)
        context = self.task._context
        if kind is DAEMON and context is not None and belongs_to not in context:
            context.run(belongs_to.set, OF_CALLERS)
        self.task._when_done(lambda: hand_on(END))

    async def wish(self) -> Any:
        """Wait until a step is requested, and return the value of the request."""
        while not self._wanted:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._wanted -= 1
        # Reset, because it may be an error whose traceback refers to this source's frames.
        said, self._said = self._said, advance
        return said

    def ask(self, said: Any) -> None:
        """Request one more step, with the value *said*. May be called from any thread; ForkedError in a forked child."""
        life: Life = self.task._owner  # type: ignore[assignment]
        life.check_process()

        def note() -> None:
            self._wanted += 1
            self._said = said
            if self._wake is not None:
                resolve(self._wake)

        # The inbox takes plain functions too. A closed inbox needs no request: the task has ended.
        life.inbox.put(note)

    def drop(self) -> None:
        """Cancel the source without waiting, because a finaliser must not wait."""
        with suppress(ForkedError):
            self.end()

    def end(self) -> bool:
        """Ask it to end; False if it has ended."""
        return self.task._give_up()

    def too_late(self, timeout: float | None) -> TaskTimeoutError:
        name = shown(self.task.get_name())
        return TaskTimeoutError(f"{name} had no item after {timeout} s, and was cancelled.", task=self.task)


# --- iterating --------------------------------------------------------------------------------------------------------


def iterating(source: AsyncIterable[Any]) -> Drive:
    """Make the drive of an iteration. The value of a request is a function that resumes the iterator; its result is awaited."""
    return lambda steps: _iterate(source, steps)


async def _iterate(source: AsyncIterable[Any], steps: Source) -> None:
    iterator = aiter(source)
    task = asyncio.current_task()
    # Otherwise the source would live as long as this frame, which an error's traceback refers to.
    del source
    try:
        # A source that swallows its cancellation must still end: nobody wants more items.
        while task is None or not task.cancelling():
            try:
                # In one expression: a variable would keep the item alive until the next one.
                steps.hand_on(await (await steps.wish())(iterator))
            except StopAsyncIteration:
                return
    finally:
        # Closed here, because a dropped generator is closed only later. Other iterators are the caller's to close.
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


def next_in(items: SimpleQueue[T], task: Task[Any], timeout: float | None) -> list[T]:
    """Wait for the next item of a queue; nothing if *timeout* passed. The checks are those of a wait for *task*."""
    found: list[T] = []

    def wait_here(seconds: float) -> bool:
        with suppress(Empty):
            found.append(items.get(timeout=seconds))
        return bool(found)

    task._wait_for(wait_here, timeout)
    return found


# --- the consumers ----------------------------------------------------------------------------------------------------


class SyncSteps(Generic[T]):
    """A sync iterator over a source, for one thread at a time, but not the loop's own. A `with` block closes it at the end."""

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
        End the iteration: close a generator on the loop, and wait until its `finally` blocks have run.

        An error in these blocks is raised here. Closing again is harmless.

        Raises:
            WouldDeadlockError: if called on the loop's own thread.
            ForkedError: if the iteration belongs to the parent process.
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
        # A default argument, as in `Resource.__del__`. There is no source if its making was refused.
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
        """Request a step, and return the next item of the queue; StopIteration at the end, or the error of the source."""
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
        # Checked again, because another thread may have called `close` meanwhile.
        if not self._ended:
            self._ended = True
            self._source.task.result(0)
        raise StopIteration

    def _start(self) -> Self:
        with self._ending():
            # Inside `_ending`, because Ctrl-C may come when the loop has the task already. `_put` applies no bound: there are never more
            # sources than consumers.
            self._runtime._put(self._source.task)
        return self

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """On Ctrl-C or at the time limit, cancel the source and wait up to `cancel_timeout` seconds; a second Ctrl-C ends this wait too."""
        try:
            yield
        except BaseException:
            # Only once, because a second cancellation would interrupt the clean-up.
            if not self._ended:
                self._ended = True
                with suppress(ForkedError, WouldDeadlockError):
                    if self._source.task._give_up():
                        self._source.task._wait_until_done(self._runtime._settings.cancel_timeout)
            raise

    def _take(self) -> Any:
        """Wait for the next item. Called inside `_ending`."""
        if not self._items.empty():
            return self._items.get()
        if not (found := next_in(self._items, self._source.task, self._timeout)):
            raise self._source.too_late(self._timeout)
        return found.pop()


class Steps(SyncSteps[T], Generator[T, S, None]):
    """As `SyncSteps`, over an async generator, without reading ahead."""

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
        """Raise an error where the async generator is suspended, and wait for its next item."""
        return self._step(_thrower(*error))


class _Waiter(asyncio.Future[None]):
    """Shows the end of the runtime, which looks at what tasks wait for, what puts the next item."""

    def __init__(self, items: Items[Any]) -> None:
        super().__init__()
        self._items = items

    @property
    def comes_from(self) -> object:
        source = self._items.source
        return source._work if isinstance(source, Task) else source


class Items(Generic[T]):
    """A queue: any thread puts items, and one task on an asyncio loop takes them."""

    # The thread or the work that puts items, once that is known.
    source: object = None

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiter: Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        # First the item, then the waiter; `get` goes the other way round. So either `put` sees the waiter, or `get` sees the item.
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None:
            # A closed loop: nobody waits there any more.
            with suppress(RuntimeError):
                waiter.get_loop().call_soon_threadsafe(resolve, waiter)

    async def get(self) -> T:
        while not self._items:
            self._waiter = _Waiter(self)
            if not self._items:
                await self._waiter
        self._waiter = None
        return self._items.popleft()


class AsyncSteps(AsyncGenerator[T, S]):
    """As `Steps`, for async code on any asyncio loop. The source runs on the runtime's loop, and is made at the first step."""

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
        # There is no source if `__init__` has failed.
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
            self._items.source = self._source.task
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
