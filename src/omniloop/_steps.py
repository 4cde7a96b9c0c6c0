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
import os
import sys
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from ._errors import ForkedError, TaskTimeoutError, WouldDeadlockError
from ._life.workers import resolve
from ._report import shown
from ._runtime import Runtime
from ._work.leftovers import OF_CALLERS
from ._work.task import DAEMON, Kind, Task, belongs_to

T = TypeVar("T")
S = TypeVar("S")

# Makes the coroutine of a source: it awaits `wish()` for each step, and passes the result to `hand_on`.
Drive = Callable[["Source"], Coroutine[Any, Any, None]]

# The last item in each queue.
END: Final = object()

# The package's folder: tells the package's own frames from the user's.
_HERE: Final = os.path.dirname(__file__) + os.sep


class _Trimming:
    """Trims the tracebacks of errors that leave the block: they show the caller, and then the user's own code."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename.startswith(_HERE):
                tb = tb.tb_next
            error.__traceback__ = tb


trimming: Final = _Trimming()


class Source:
    """
    The task on the loop that takes the steps, in a copy of its maker's context.

    It is cancelled at exit: a consumer that still wanted a result would be waiting for it. But it runs the caller's code, so that the exit
    waits for the tasks that this code leaves on the loop.
    """

    def __init__(self, hand_on: Callable[[Any], object], ahead: int, make: Callable[[Source], Task[None]]) -> None:
        self.hand_on = hand_on
        # Used on the loop's thread only: the number of requested steps, the value of the last request, and the future that wakes the task.
        self._wanted = ahead
        self._said: Any = anext
        self._wake: Future[None] | None = None
        self.task = make(self)
        context = self.task._context
        if self.task._kind is DAEMON and context is not None and belongs_to not in context:
            context.run(belongs_to.set, OF_CALLERS)
        self.task._when_done(lambda: hand_on(END))

    async def wish(self) -> Any:
        """Wait until a step is requested, and return the value of the request."""
        while not self._wanted:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._wanted -= 1
        # Reset, because it may be an error whose traceback refers to this source's frames.
        said, self._said = self._said, anext
        return said

    def ask(self, said: Any) -> None:
        """Request one more step, with the value *said*. May be called from any thread; ForkedError in a forked child."""
        life: Any = self.task._owner
        life.check_process()

        def note() -> None:
            self._wanted += 1
            self._said = said
            if self._wake is not None:
                resolve(self._wake)

        # The inbox takes plain functions too. A closed inbox needs no request: the task has ended.
        life.inbox.put(note)


# --- iterating --------------------------------------------------------------------------------------------------------


async def iterating(source: AsyncIterable[Any], steps: Source) -> None:
    """Take the steps of an iteration. The value of a request is a function that resumes the iterator; its result is awaited."""
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


class _Consumer(Generic[T]):
    """Has a source, and the queue of its results."""

    _new_queue: Callable[[], Any]
    # Is not there before the first step, or if its making was refused.
    _source: Any = None
    _ended = False

    def __init__(
        self,
        drive: Drive,
        runtime: Runtime,
        frame: FrameType,
        name: str,
        *,
        ahead: int = 0,
        kind: Kind = DAEMON,
        out: Callable[[Any], T] = lambda item: item,
        timeout: float | None = None,
    ) -> None:
        self._runtime, self._out, self._timeout = runtime, out, timeout
        self._items = self._new_queue()
        self._make = partial(
            Source, self._items.put, ahead, lambda source: Task(runtime, drive(source), None, None, frame, name, kind)
        )

    def _start(self) -> Self:
        """Start the source if it is not started, in a copy of the caller's context."""
        if self._source is None:
            self._source = self._make()
            # It refers to the caller's frame.
            del self._make
            # Without bounds: there are never more sources than consumers.
            self._runtime._put(self._source.task)
        return self

    def _too_late(self) -> TaskTimeoutError:
        task: Task[Any] = self._source.task
        words = f"{shown(task.get_name())} had no item after {self._timeout} s, and was cancelled."
        return TaskTimeoutError(words, task=task)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A default argument, as in `Resource.__del__`.
        if self._source is not None and not is_finalizing():
            # Does not wait, because a finaliser must not.
            with suppress(ForkedError):
                self._source.task._give_up()


class SyncSteps(_Consumer[T]):
    """A sync iterator over a source, for one thread at a time, but not the loop's own. A `with` block closes it at the end."""

    _new_queue = SimpleQueue

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._step(anext)

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

    def _step(self, said: Any) -> T:
        with trimming:
            return self._out(self._resume(said))

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
        # Ctrl-C may come when the loop has the task already.
        with self._ending():
            return super()._start()

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
                    if self._source and self._source.task._give_up():
                        self._source.task._wait_until_done(self._runtime._settings.cancel_timeout)
            raise

    def _take(self) -> Any:
        """Wait for the next item. Called inside `_ending`."""
        if not self._items.empty():
            return self._items.get()
        if not (found := next_in(self._items, self._source.task, self._timeout)):
            raise self._too_late()
        return found.pop()


class Steps(SyncSteps[T], Generator[T, S, None]):
    """As `SyncSteps`, over an async generator, without reading ahead."""

    def send(self, value: S, /) -> T:
        """Resume the async generator with *value*, and wait for its next item."""
        return self._step(methodcaller("asend", value))

    def throw(self, *error: Any) -> T:
        """Raise an error where the async generator is suspended, and wait for its next item."""
        return self._step(methodcaller("athrow", *error))


class _Waiter(asyncio.Future[None]):
    """Shows the end of the runtime, which looks at what tasks wait for, what puts the next item."""

    items: Items[Any]

    @property
    def comes_from(self) -> object:
        source = self.items.source
        return source._work if isinstance(source, Task) else source


class Items(Generic[T]):
    """A queue: any thread puts items, and one task on an asyncio loop takes them."""

    # The thread or the work that puts items, once that is known.
    source: object = None

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiter: _Waiter | None = None

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
            self._waiter = _Waiter()
            self._waiter.items = self
            if not self._items:
                await self._waiter
        self._waiter = None
        return self._items.popleft()


class AsyncSteps(_Consumer[T], AsyncGenerator[T, S]):
    """As `Steps`, for async code on any asyncio loop. The source runs on the runtime's loop, and is made at the first step."""

    _new_queue = Items

    async def __anext__(self) -> T:
        return await self._step(anext)

    async def asend(self, value: S) -> T:
        return await self._step(methodcaller("asend", value))

    async def athrow(self, *error: Any) -> T:
        return await self._step(methodcaller("athrow", *error))

    async def aclose(self) -> None:
        self._ended = True
        # The waiting asks for nothing: a cancellation of the caller ends the wait, and does not interrupt the clean-up.
        if self._source is not None and (task := self._source.task)._give_up():
            if await task.wait() and not task.cancelled():
                task.result(0)

    def _start(self) -> Self:
        try:
            return super()._start()
        except BaseException:
            # If the source was made and then refused: it never runs, so that no further step can come.
            self._ended = self._source is not None
            raise

    async def _step(self, said: Any) -> T:
        with trimming:
            return self._out(await self._resume(said))

    async def _resume(self, said: Any) -> Any:
        if self._ended:
            raise StopAsyncIteration
        self._start()._source.ask(said)
        item = await self._take()
        if item is END:
            self._ended = True
            await self._source.task
            raise StopAsyncIteration
        return item

    async def _take(self) -> Any:
        self._items.source = self._source.task
        try:
            async with asyncio.timeout(self._timeout):
                return await self._items.get()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise self._too_late() from None
            raise
