"""Task groups: what is started in one is done, or cancelled, when it ends; and `map`, which keeps only so much going."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import math
import sys
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import Lock, get_ident
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Never, ParamSpec, Self, TypeVar, TypeVarTuple, final, overload

from .._arguments import (
    check_function,
    check_timeout,
    close_unstarted,
    is_async,
    misplaced_arguments,
    name_of,
    one_argument,
)
from .._caller import caller
from .._clock import acquire, time
from .._errors import ClosedError, ForkedError, TaskTimeoutError, WouldDeadlockError
from .._limiter import by_result, go_limited, limiter, to_thread_limited
from .._report import shown
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import FAILED, Kind, Task

A = TypeVar("A")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")

# What the task groups of trio, anyio and others have, and who comes from there looks for.
_ELSEWHERE: Final = {
    "start_soon": "Call the function and start what it returns: group.go(fn(*args)).",
    "start": "Call the function and start what it returns: group.go(fn(*args)).",
    "spawn": "Call the function and start what it returns: group.go(fn(*args)).",
    "submit": "Use group.to_thread(fn, *args), or group.go(coro) for a coroutine.",
    "cancel_scope": "Use group.cancel(), and TaskGroup(timeout=…).",
    "gather": "Start each with group.go(coro), and ask the tasks for their results after the block.",
}

# Of the failures of a supervised group: each keeps the frames that it went through.
_MOST_KEPT: Final = 100


@final
class TaskGroup:
    """
    The tasks started in it are done, or cancelled, when its block ends.

    Use ``with`` in sync code and ``async with`` in async code, on any event loop; the tasks run on the runtime's loop in both
    cases. The end of the block waits for all of them, those that they start in the group meanwhile included. The first that fails
    cancels the others, and an ``async with`` block that still runs; so does an error in the block. What failed comes out of
    the block as an `ExceptionGroup` (a `BaseExceptionGroup` where one of the errors is no `Exception`).

    A group takes tasks before its block begins too: a component makes one when it starts, and ends it when it stops with
    ``with group: group.cancel()``.

    Unless a method says otherwise, it may be called from any thread.

    Args:
        limit: So many of its coroutines and worker threads run at once; the others wait their turn, in order, each in its
            submitter's context. A task that awaits another of the group while it runs may wait for ever.
        timeout: Seconds for the block. Then all is cancelled, and when the clean-up is done the block raises. None waits without end.
        supervised: A failure does not cancel the others. Each is reported when it happens; they come out at the end as well, the first
            100 of them.
        runtime: Run on this one instead of the one that the process shares.

    Raises:
        ValueError: if *limit* or *timeout* is not a number that it can be.
        TypeError: if *runtime* is no `Runtime`.

    Example:
        >>> import asyncio
        >>> from omniloop import TaskGroup
        >>> with TaskGroup(limit=2) as group:
        ...     tasks = [group.go(asyncio.sleep(0.01, number)) for number in range(3)]
        >>> [task.result() for task in tasks]
        [0, 1, 2]
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        timeout: float | None = None,
        supervised: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        check_timeout(timeout)
        self._runtime = chosen(runtime)
        self._limiter = limiter(limit)
        self._timeout = timeout
        self._supervised = supervised
        # No lock: each of the following is changed by single, atomic steps. A submission takes a ticket, and then looks whether the
        # group has ended; the end is marked, and then looks for tickets.
        self._unfinished: dict[object, Task[Any] | None] = {}
        self._failed: dict[Task[Any], None] = {}
        # How many more failed in a supervised group. Counted so because threads may be side by side.
        self._more = itertools.count()
        self._wakers: list[Callable[[], object]] = []
        self._entered = Lock()
        # Held from the moment when all was asked to end; once, because a second time would interrupt the clean-up.
        self._asked = Lock()
        self._ended = False
        # Why a thread was refused: not an error of the block's if it comes out there.
        self._refusals: dict[int, Exception] = {}
        self._timed_out = False
        self._give_up_at: float | None = None
        self._timer: Task[Any] | None = None
        self._body: _Body | None = None

    @one_argument
    def go(
        self,
        coro: Awaitable[T],
        *misplaced: Never,
        name: str | None = None,
        context: Context | None = None,
        daemon: bool = False,
        timeout: float | None = None,
    ) -> Task[T]:
        """
        Start a coroutine in the group, as `omniloop.go` does. The group waits for a daemon too; the end of the program does not.

        Raises:
            NotAsyncError: if *coro* can't be awaited here; the message names the call that was meant.
            ValueError: if *timeout* is not a number of seconds.
            ClosedError: if the group has ended, or was cancelled. The coroutine is closed.
        """
        if misplaced:
            raise misplaced_arguments("go", coro, misplaced)
        return self._go(coro, name, context, caller(), timeout, Kind.DAEMON if daemon else Kind.WORK)

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> Task[T]:
        """
        Start a coroutine in the group: `go`, under the name that `asyncio.TaskGroup` has for it.

        Raises:
            NotAsyncError: if *coro* can't be awaited here.
            ClosedError: if the group has ended, or was cancelled. The coroutine is closed.
        """
        return self._go(coro, name, context, caller())

    def call_soon(self, fn: Callable[[*Ts], T], *args: *Ts, context: Context | None = None) -> Task[T]:
        """
        Run a plain function on the loop's thread, as `omniloop.call_soon` does. The limit does not apply.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the group has ended, or was cancelled.
        """
        runtime, frame = self._runtime, caller()

        def start() -> Task[T]:
            check_function(fn, "call_soon")
            return runtime._submit(runtime._make_task(fn, args, context, frame))

        return self._add(fn, start)

    def to_thread(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """
        Run a blocking function in a worker thread, as `omniloop.to_thread` does. The group waits for it: it can't be cancelled.

        Where an ``async with`` block is cancelled from outside, it leaves at once, as it would with `asyncio.to_thread`; the function goes on.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the group has ended, or was cancelled.
        """
        frame = caller()
        return self._add(fn, lambda: to_thread_limited(self._runtime, self._limiter, fn, args, kwargs, None, frame))

    def cancel(self) -> None:
        """
        Ask everything in the group to end, an ``async with`` block that still runs included; nothing more is accepted.

        Does not block: the end of the block waits for the clean-up, and raises nothing because of this.
        """
        if not self._asked.acquire(False):
            return
        for task in list(self._unfinished.values()):
            if task is not None:
                # In a forked child: the parent's, and none of ours.
                with suppress(ForkedError):
                    task.cancel()
        if self._body is not None:
            self._body.cancel()

    if not TYPE_CHECKING:
        # Else a type checker would take every name for one of ours.

        def __getattr__(self, name: str) -> object:
            hint = _ELSEWHERE.get(name)
            word = f" {hint}" if hint else ""
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}.{word}", name=name, obj=self
            )

    # --- the block, in sync code --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._runtime._current().check_may_wait("The end of `with TaskGroup()`", "use `async with`")
        self._enter(caller())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        patient = error is None or isinstance(error, Exception)
        if isinstance(error, concurrent.futures.CancelledError) and self._asked.locked():
            # The block waited for work that the group had asked to end.
            self._refusals[get_ident()] = error
        if error is not None:
            self.cancel()
        try:
            over = self._wait(self._give_up_at if patient else self._soon())
        except ForkedError:
            # The block was begun by the parent process, whose tasks are not waited for here.
            if error is None:
                raise
            return False
        except WouldDeadlockError:
            self.cancel()
            raise
        except BaseException:
            # Ctrl-C, or what another signal handler raises. A second one ends this wait too.
            self.cancel()
            self._wait(self._soon())
            raise
        if not patient:
            return False
        return self._finish(error, over)

    def _wait(self, until: float | None) -> bool:
        """Block until all is done, and end the group; False if it was not done *until* then."""
        gate = Lock()
        gate.acquire()
        waker = partial(_open, gate)
        self._wakers.append(waker)
        try:
            while not self._end():
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                task = self._check()
                if task is not None:
                    # The gate opens for the last, whichever that is.
                    task._wait_for(partial(gate.acquire, True), left)
                else:
                    # Another thread is in the middle of a submission.
                    acquire(gate, left)
            return True
        finally:
            self._wakers.remove(waker)

    # --- the block, in async code -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        body = _Body()
        self._enter(caller())
        self._body = body
        if self._asked.locked():
            body.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        # As asyncio.TaskGroup does it, where it takes a cancellation from outside for one, and its own back.
        body = self._body
        assert body is not None
        body.leave()
        cancelled = None
        if isinstance(error, asyncio.CancelledError):
            cancelled = error if body.is_cancelled_from_outside() or not body.asked else None
        if error is not None:
            self.cancel()
        until = self._give_up_at
        while True:
            try:
                over = await self._wait_async(until, cancelled is not None)
                break
            except asyncio.CancelledError as again:
                # Else it is our own, that comes late: up to 3.12 `uncancel` does not take it back.
                if body.is_cancelled_from_outside():
                    cancelled = again
                    self.cancel()
        if error is not None and not isinstance(error, (Exception, asyncio.CancelledError)):
            return False
        if cancelled is not None:
            # What was left running is said by nobody here.
            over = True
            if not self._failed:
                if cancelled is error:
                    return False
                raise cancelled
            body.cancel_again()
        return self._finish(None if isinstance(error, asyncio.CancelledError) else error, over)

    async def _wait_async(self, until: float | None, leaves: bool) -> bool:
        """As `_wait`, in async code; who *leaves* does not wait for functions that run, as nothing can interrupt those."""
        loop = asyncio.get_running_loop()
        while not self._end():
            if leaves:
                asked = [task for task in list(self._unfinished.values()) if task is not None and task._may_be_asked()]
                if not asked:
                    return False
                await asked[-1].wait()
                continue
            woken = loop.create_future()
            waker = partial(_wake, loop, woken)
            self._wakers.append(waker)
            try:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._check()
                if self._unfinished:
                    await asyncio.wait([woken], timeout=left)
            finally:
                self._wakers.remove(waker)
        return True

    # --- both ---------------------------------------------------------------------------------------------------------

    def _go(
        self,
        coro: Awaitable[T],
        name: str | None,
        context: Context | None,
        frame: FrameType,
        timeout: float | None = None,
        kind: Kind = Kind.WORK,
    ) -> Task[T]:
        return self._add(
            coro, lambda: go_limited(self._runtime, self._limiter, coro, name, context, kind, frame, timeout)
        )

    def _add(self, work: object, start: Callable[[], Task[T]]) -> Task[T]:
        ticket = object()
        try:
            self._unfinished[ticket] = None
            if self._ended or self._asked.locked():
                close_unstarted(work)
                raise self._refuse()
            task = start()
            self._unfinished[ticket] = task
            if self._asked.locked():
                # In between, by another thread.
                task.cancel()
            task._when_done(partial(self._done, ticket, task))
        except BaseException:
            # Refused; or Ctrl-C at any point, which must not leave a ticket behind that nobody gives back.
            self._leave(ticket)
            raise
        return task

    def _refuse(self) -> ClosedError:
        why = "has ended" if self._ended else "was cancelled"
        if self._failed and not self._supervised:
            why = f"was cancelled, because {shown(next(iter(self._failed)).get_name())} failed"
        elif self._timed_out:
            why = f"was cancelled after {self._timeout} s"
        error = self._refusals[get_ident()] = ClosedError(f"The TaskGroup {why}: it takes no more. Make a new one.")
        return error

    def _done(self, ticket: object, task: Task[Any]) -> None:
        """Note how *task* ended. May be called again."""
        ending, value = task._ended()
        if ending is FAILED:
            if not self._supervised:
                self._failed[task] = None
                self.cancel()
            elif ticket in self._unfinished:
                # Reported now: such a group may live as long as the program, and would keep it to itself.
                value.drop()
                if len(self._failed) < _MOST_KEPT:
                    self._failed[task] = None
                else:
                    next(self._more)
        self._leave(ticket)

    def _leave(self, ticket: object) -> None:
        self._unfinished.pop(ticket, None)
        if not self._unfinished:
            for wake in self._wakers.copy():
                wake()

    def _enter(self, frame: FrameType) -> None:
        if not self._entered.acquire(False):
            raise ClosedError("This TaskGroup has been entered before. Make a new one for each block.")
        if self._timeout is not None and self._timeout < math.inf:
            self._give_up_at = self._soon() + self._timeout
            self._timer = self._runtime._put(
                self._runtime._make_task(self._expire, (), None, frame),
                self._runtime._now() + max(0.0, self._timeout),
            )

    def _expire(self) -> None:
        self._timed_out = True
        self.cancel()

    def _soon(self) -> float:
        return time.monotonic() + self._runtime._settings.cancel_timeout

    def _check(self) -> Task[Any] | None:
        """One of the unfinished; ForkedError if they are the parent process's."""
        found = None
        for ticket, task in list(self._unfinished.items()):
            if task is None:
                continue
            if task.done():
                # About to be noted; or never, because Ctrl-C came in the middle of that, where it was done at once.
                self._done(ticket, task)
            elif found is None:
                task._check_process()
                found = task
        return found

    def _end(self) -> bool:
        """End the group if all is done."""
        if self._unfinished:
            return False
        self._ended = True
        if self._unfinished:
            # Another thread was faster.
            self._ended = False
        return self._ended

    def _finish(self, error: BaseException | None, over: bool) -> bool:
        """Raise what has to come out of the block; True if *error* is not to."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        refused = error is not None and error in self._refusals.values()
        self._refusals.clear()
        # Asking claims them: they are not reported as well.
        errors = [failure for task in self._failed if (failure := task.exception()) is not None]
        if error is not None and not refused:
            errors.append(error)
        if self._timed_out or not over:
            left = f" {len(self._unfinished)} are not done with their clean-up." if not over else ""
            timeout = TaskTimeoutError(f"The TaskGroup was not done after {self._timeout} s, and was cancelled.{left}")
            if not errors:
                raise timeout from None
            errors.append(timeout)
        if errors:
            more = f": the first {_MOST_KEPT}, and {more} more that were reported" if (more := next(self._more)) else ""
            raise BaseExceptionGroup(f"unhandled errors in a TaskGroup{more}", errors) from None
        return True


class _Body:
    """The task in which an ``async with`` block runs, which can be cancelled as long as it does."""

    def __init__(self) -> None:
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task()
        if loop is None or task is None:
            raise RuntimeError("`async with TaskGroup()` needs to run in an asyncio task.")
        self._loop = loop
        self._task = task
        self._cancelling = task.cancelling()
        self._runs = True
        self.asked = False

    def cancel(self) -> None:
        """Cancel the block. From any thread; it comes there in a turn of its own, while the block waits."""
        with suppress(RuntimeError):
            # The loop is closed: nothing runs there any more.
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._runs:
            self.asked = True
            self._task.cancel()

    def leave(self) -> None:
        """The block has ended: take a cancellation of ours back."""
        self._runs = False
        if self.asked:
            self._task.uncancel()

    def is_cancelled_from_outside(self) -> bool:
        return self._task.cancelling() > self._cancelling

    def cancel_again(self) -> None:
        """Keep a cancellation from outside from being lost behind the errors that are raised instead."""
        # Up to 3.12 an enclosing `asyncio.timeout` could not take it back, as in asyncio.TaskGroup.
        if sys.version_info >= (3, 13):
            self._task.uncancel()
            self._task.cancel()


def _open(gate: Lock) -> None:
    # Open already: nobody has gone through since.
    with suppress(RuntimeError):
        gate.release()


def _wake(loop: AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def wake() -> None:
        if not future.done():
            future.set_result(None)

    with suppress(RuntimeError):
        # The loop is closed: nobody waits there any more.
        loop.call_soon_threadsafe(wake)


# --- map --------------------------------------------------------------------------------------------------------------


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
    window = _Window(fn, chosen(runtime), ordered, timeout, return_exceptions)
    return _results(window, source, limit, total, progress)


def _results(
    window: _Window,
    source: Iterator[Any],
    limit: int | None,
    total: int | None,
    progress: Callable[[int, int | None], object] | None,
) -> Iterator[Any]:
    count = 0
    more = True
    try:
        while True:
            while more and (limit is None or len(window) < limit) and not window.is_ready():
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                else:
                    window.add(item, caller())
            if not len(window):
                return
            value = window.take()
            count += 1
            if progress is not None:
                progress(count, total)
            yield value
    finally:
        window.close()


class _Window:
    """The items on their way: taken, and their results not handed out."""

    def __init__(
        self,
        fn: Callable[[Any], Any],
        runtime: Runtime,
        ordered: bool,
        timeout: float | None,
        return_exceptions: bool,
    ) -> None:
        self._fn = fn if is_async(fn) else by_result(runtime, fn)
        self._runtime = runtime
        self._timeout = timeout
        self._return_exceptions = return_exceptions
        self._is_async = is_async(fn)
        # In order of the items; if the results are to come as they do, what is done is taken from the other.
        self._tasks: dict[Task[Any], None] = {}
        self._done: deque[Task[Any]] | None = None if ordered else deque()
        self._gate = Lock()
        self._gate.acquire()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, item: Any, frame: FrameType) -> None:
        if self._is_async:
            coro = self._fn(item)
            task = self._runtime._go_within(self._timeout, coro, frame, from_start=True)
        else:
            task = self._runtime._to_thread(self._fn, (item,), {}, frame)
        self._tasks[task] = None
        if self._done is not None:
            task._when_done(partial(self._note, task))

    def is_ready(self) -> bool:
        """Tell whether the next result is there."""
        if self._done is not None:
            return bool(self._done)
        return bool(self._tasks) and next(iter(self._tasks)).done()

    def take(self) -> Any:
        """Wait for the next result and return it, or raise the error."""
        task = next(iter(self._tasks))
        if self._done is None:
            # Waits without claiming, so that what Ctrl-C leaves behind is still on its way, and is cancelled.
            if not task.done():
                task._wait_until_done(None)
        else:
            while not self._done:
                task._wait_for(partial(self._gate.acquire, True), None)
            task = self._done.popleft()
        del self._tasks[task]
        try:
            if self._return_exceptions and isinstance(error := _error_of(task), Exception):
                return error
            return task.result()
        finally:
            # This frame is in the traceback of an error that the task holds: a cycle, which would keep both alive.
            del task
            error = None

    def close(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Cancel what is on its way and wait for its clean-up."""
        if is_finalizing():
            # A generator that was not exhausted; as a resource's finaliser.
            return
        until = time.monotonic() + self._runtime._settings.cancel_timeout
        for task in self._tasks:
            with suppress(ForkedError):
                task.cancel()
        for task in self._tasks:
            try:
                task._wait_until_done(max(0.0, until - time.monotonic()))
            except (ForkedError, WouldDeadlockError):
                # Collected on the loop's own thread, for one; the drain waits for it.
                return

    def _note(self, task: Task[Any]) -> None:
        assert self._done is not None
        self._done.append(task)
        _open(self._gate)


def _error_of(task: Task[Any]) -> BaseException | None:
    """What *task*, which is done, raised; the `CancelledError` too."""
    try:
        return task.exception()
    except concurrent.futures.CancelledError as error:
        return error
