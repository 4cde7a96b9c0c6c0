"""Task groups: every task that is started in a group has finished, or was cancelled, when the group's block ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, suppress
from contextvars import Context
from functools import partial
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Never, ParamSpec, Self, TypeVar, TypeVarTuple, final

from .._arguments import check_function, check_timeout, close_unstarted, misplaced_arguments, name_of, one_argument
from .._errors import ClosedError, ForkedError, TaskTimeoutError, WouldDeadlockError
from .._report import caller, shown
from .._runtime import Runtime
from .._shared import chosen
from .._starting import limiter, start_in_thread
from .._threads import Guard, time
from .._work.task import DAEMON, FAILED, SUCCEEDED, WORK, Task

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")

# Methods of the task groups of trio, anyio and others, which users who know those look for.
_ELSEWHERE: Final = {
    "start_soon": "Call the function and start what it returns: group.go(fn(*args)).",
    "start": "Call the function and start what it returns: group.go(fn(*args)).",
    "spawn": "Call the function and start what it returns: group.go(fn(*args)).",
    "submit": "Use group.to_thread(fn, *args), or group.go(coro) for a coroutine.",
    "cancel_scope": "Use group.cancel(), and TaskGroup(timeout=…).",
    "gather": "Start each with group.go(coro), and ask the tasks for their results after the block.",
}

# How many failures a supervised group keeps. It is bounded because each failure keeps the frames of its traceback alive.
_MOST_KEPT: Final = 100


@final
class TaskGroup:
    """
    A group of tasks; all of them have finished, or were cancelled, when its block ends.

    Use ``with`` in sync code and ``async with`` in async code, on any event loop; the tasks run on the runtime's loop in both
    cases. The end of the block waits for all of them, also for tasks that they start in the group meanwhile. The first task that
    fails cancels the others, and an ``async with`` block that still runs; so does an error in the block. The block raises the
    errors as an `ExceptionGroup` (a `BaseExceptionGroup` if one of them is no `Exception`).

    A group also takes tasks before its block begins: a component makes a group when it starts, and ends it when it stops with
    ``with group: group.cancel()``.

    A method may be called from any thread, unless it says otherwise.

    Args:
        limit: How many of the group's coroutines and worker threads run at once. The others wait their turn, in order, each in its
            submitter's context. A running task that awaits another task of the group may wait for ever.
        timeout: Seconds for the block. After that all tasks are cancelled, and the block raises when their clean-up is done. None
            waits without end.
        supervised: A failure does not cancel the other tasks. Each failure is reported when it happens. The block also raises the
            first 100 of them at its end.
        runtime: Run on this runtime instead of the one that the process shares.

    Raises:
        ValueError: if *limit* is below 1, or *timeout* is not a number of seconds.
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
        self._limit = limiter(limit)
        self._timeout = timeout
        self._supervised = supervised
        # Guards the fields below. Never held while a task of the group is started, cancelled or waited for.
        self._lock = Guard()
        # Why the group takes no more tasks; empty while it does. The first reason stays.
        self._refuses = ""
        # Maps a ticket to its task. A submission takes the ticket before it starts the task (None until then), so that the end of the
        # group waits for submissions too.
        self._unfinished: dict[object, Task[Any] | None] = {}
        # The number of failed tasks, and the tasks themselves: a supervised group keeps only the first `_MOST_KEPT`.
        self._failures = 0
        self._failed: list[Task[Any]] = []
        self._block: _Block | None = None
        # Settled when no task is left: the handle that the end of the block waits for, while it does.
        self._over: Task[None] | None = None

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
        return self._go(coro, caller(), name, timeout, context=context, kind=DAEMON if daemon else WORK)

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> Task[T]:
        """
        Start a coroutine in the group: `go` under the name that it has in `asyncio.TaskGroup`.

        Raises:
            NotAsyncError: if *coro* can't be awaited here.
            ClosedError: if the group has ended, or was cancelled. The coroutine is closed.
        """
        return self._go(coro, caller(), name, context=context)

    def call_soon(self, fn: Callable[[*Ts], T], *args: *Ts, context: Context | None = None) -> Task[T]:
        """
        Run a plain function on the loop's thread, as `omniloop.call_soon` does. The limit does not apply.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the group has ended, or was cancelled.
        """
        check_function(fn, "call_soon")
        runtime, frame = self._runtime, caller()
        return self._add(fn, lambda: runtime._submit(Task(runtime, fn, args, context, frame)))

    def to_thread(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """
        Run a blocking function in a worker thread, as `omniloop.to_thread` does. The group waits for it: it can't be cancelled.

        An ``async with`` block that is cancelled from outside leaves at once, as with `asyncio.to_thread`; the function goes on.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the group has ended, or was cancelled.
        """
        check_function(fn, "to_thread")
        frame = caller()
        return self._add(fn, lambda: start_in_thread(self._runtime, self._limit, fn, args, kwargs, frame, name_of(fn)))

    def cancel(self) -> None:
        """
        Ask everything in the group to end, an ``async with`` block that still runs included; nothing more is accepted.

        Does not block: the end of the block waits for the clean-up, and raises nothing because of this.
        """
        self._cancel("was cancelled")

    if not TYPE_CHECKING:
        # Hidden from type checkers, which would accept any attribute name otherwise.

        def __getattr__(self, name: str) -> object:
            hint = _ELSEWHERE.get(name)
            word = f" {hint}" if hint else ""
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}.{word}", name=name, obj=self
            )

    # --- the block ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._runtime._current().check_may_wait("The end of `with TaskGroup()`", "use `async with`")
        self._enter(_Block(), caller())
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> bool | None:
        block = self._block
        assert block is not None
        patient = error is None or isinstance(error, Exception)
        if isinstance(error, concurrent.futures.CancelledError) and self._refuses:
            # The block waited for a task that the group has cancelled: not an error of the block's own.
            vars(error)["refused_by"] = self
        with closing(block):
            if error is not None:
                self.cancel()
            try:
                self._wait(block.until if patient else self._soon())
            except ForkedError:
                # A forked child: the parent process has entered the block, and its tasks can't be waited for here.
                if error is None:
                    raise
                return False
            except BaseException as interruption:
                # Ctrl-C, or an error from another signal handler. A second one ends the wait below too.
                self.cancel()
                if not isinstance(interruption, WouldDeadlockError):
                    self._wait(self._soon())
                raise
            return self._finish(error) if patient else False

    def _wait(self, until: float) -> None:
        for over, left in self._waits(until):
            # Any unfinished task serves for the checks of this wait.
            (self._tasks() or [over])[0]._wait_for(over._wait_here, left)

    async def __aenter__(self) -> Self:
        self._enter(_AsyncBlock(), caller())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, tb: object) -> bool | None:
        block = self._block
        assert isinstance(block, _AsyncBlock)
        with closing(block):
            # As asyncio.TaskGroup does: a cancellation from outside is kept, and the group's own cancellation is taken back.
            cancelled = error if isinstance(error, asyncio.CancelledError) else None
            if block.take_back() and not block.is_cancelled_from_outside():
                cancelled = None
            if error is not None:
                self.cancel()
            while True:
                try:
                    await self._wait_async(block.until, cancelled is not None)
                    break
                except asyncio.CancelledError as again:
                    # Otherwise it is the group's own cancellation, which comes late: up to 3.12 `uncancel` does not take it back.
                    if block.is_cancelled_from_outside():
                        cancelled = again
                        self.cancel()
            if not isinstance(error, Exception | asyncio.CancelledError | None):
                return False
            if cancelled is not None:
                if not self._failed:
                    if cancelled is error:
                        return False
                    raise cancelled
                block.cancel_again()
            return self._finish(None if isinstance(error, asyncio.CancelledError) else error, cancelled is not None)

    async def _wait_async(self, until: float, leaves: bool) -> None:
        """As `_wait`, in async code. A block that *leaves* does not wait for running functions, because nothing can interrupt those."""
        for over, left in self._waits(until):
            waited: list[Task[Any]] = [task for task in self._tasks() if task._may_be_asked()] if leaves else [over]
            if not waited:
                return
            await waited[-1].wait(left)

    def _waits(self, until: float) -> Iterator[tuple[Task[None], float]]:
        """
        Yield, until all tasks are done or the time is over, what to wait for and how long; end the group when they are done.

        *until* is a time of `time.monotonic`.
        """
        while True:
            # Before the look: a signal handler or a finaliser that ends the last task right after it settles this handle. Set without the
            # lock, because no other thread sets it.
            over = self._over = self._end()
            with self._lock:
                if not self._unfinished:
                    self._refuses = self._refuses or "has ended"
                    return
            for task in self._tasks()[:1]:
                # In a forked child the tasks are the parent's.
                task._check_process()
            left = until - time.monotonic()
            if left <= 0:
                # The timer that cancels may come later than this, on a busy loop.
                self._cancel(self._too_late())
                return
            yield over, left

    def _end(self) -> Task[None]:
        """Make a handle for the end of the group: it can be waited for as any other, but no loop runs it and nothing measures it."""
        maker: Any = SimpleNamespace(_life=self._runtime._current(), _note=lambda *_: None)
        # A daemon, because it is no work of its own: the end of the runtime waits for the group's tasks, each by its own kind.
        return Task(maker, None, (), None, sys._getframe(), "the end of a TaskGroup", DAEMON)

    def _enter(self, block: _Block, frame: FrameType) -> None:
        with self._lock:
            first = self._block is None
            self._block = self._block or block
        if not first:
            raise ClosedError("This TaskGroup has been entered before. Make a new one for each block.")
        if self._timeout is not None and self._timeout < math.inf:
            block.until = self._soon() + self._timeout
            when = self._runtime._now() + max(0.0, self._timeout)
            block.timer = self._runtime._call_at(when, self._cancel, (self._too_late(),), None, frame)
        if self._refuses:
            block.cancel()

    def _finish(self, error: BaseException | None, leaves: bool = False) -> bool:
        """
        Raise the errors of the tasks and of the block; True if there are none, so that *error* is suppressed.

        The errors of a block that *leaves* say nothing about tasks that still run.
        """
        # `exception()` claims each error, so that it is not reported as well.
        errors = [failure for task in self._failed if (failure := task.exception()) is not None]
        if error is not None and vars(error).get("refused_by") is not self:
            errors.append(error)
        left = 0 if leaves else len(self._unfinished)
        if left or self._refuses == self._too_late():
            left_words = f" {left} are not done with their clean-up." if left else ""
            late = TaskTimeoutError(
                f"The TaskGroup was not done after {self._timeout} s, and was cancelled.{left_words}"
            )
            if not errors:
                raise late from None
            errors.append(late)
        if errors:
            more = self._failures - len(self._failed)
            more_words = f": the first {_MOST_KEPT}, and {more} more that were reported" if more else ""
            raise BaseExceptionGroup(f"unhandled errors in a TaskGroup{more_words}", errors) from None
        return True

    def _soon(self) -> float:
        return time.monotonic() + self._runtime._settings.cancel_timeout

    def _too_late(self) -> str:
        return f"was cancelled after {self._timeout} s"

    # --- the tasks ----------------------------------------------------------------------------------------------------

    def _go(
        self, coro: Awaitable[T], frame: FrameType, name: str | None, timeout: float | None = None, **options: Any
    ) -> Task[T]:
        go = self._runtime._go_within
        return self._add(coro, lambda: go(timeout, coro, frame, name, limit=self._limit, **options))

    def _add(self, work: object, start: Callable[[], Task[T]]) -> Task[T]:
        ticket, task = object(), None
        try:
            with self._lock:
                if not (refuses := self._refuses):
                    self._unfinished[ticket] = None
            if refuses:
                close_unstarted(work)
                error = ClosedError(f"The TaskGroup {refuses}: it takes no more. Make a new one.")
                # Marks it, so that the block does not report it as an error of its own.
                vars(error)["refused_by"] = self
                raise error
            task = start()
            with self._lock:
                self._unfinished[ticket] = task
                refuses = self._refuses
            if refuses:
                # In between, by another thread.
                task.cancel()
            task._when_done(partial(self._done, ticket, task))
        except BaseException:
            # Refused, or interrupted by Ctrl-C at any point. The ticket must be given back, or the group would never end.
            self._give_back(ticket)
            if task is not None:
                # Nobody gets its handle, and the group does not know it any more: nobody else could end it.
                task.cancel()
            raise
        return task

    def _done(self, ticket: object, task: Task[Any]) -> None:
        """Note how *task* ended."""
        ending, value = task._ended()
        if ending is FAILED:
            if self._supervised:
                # Reported now, because such a group may live as long as the program, and would hold the error back until then.
                value.let_go()
            with self._lock:
                self._failures += 1
                if not self._supervised or self._failures <= _MOST_KEPT:
                    self._failed.append(task)
            if not self._supervised:
                self._cancel(f"was cancelled, because {shown(task.get_name())} failed")
        self._give_back(ticket)

    def _give_back(self, ticket: object) -> None:
        with self._lock:
            self._unfinished.pop(ticket, None)
            over = None if self._unfinished else self._over
        if over is not None:
            over._settle(SUCCEEDED, None)

    def _cancel(self, why: str) -> None:
        # Once: a timer that fires at the end of the block comes too late, and a second cancellation would interrupt the clean-up.
        with self._lock:
            if first := not self._refuses:
                self._refuses = why
        if first:
            for task in self._tasks():
                # In a forked child the tasks are the parent's.
                with suppress(ForkedError):
                    task.cancel()
            if self._block is not None:
                self._block.cancel()

    def _tasks(self) -> list[Task[Any]]:
        with self._lock:
            return [task for task in self._unfinished.values() if task is not None]


class _Block:
    """A ``with`` block, which can't be interrupted, and its time limit."""

    def __init__(self) -> None:
        # Only with a time limit: when the block stops waiting (clean-up included), and the timer that cancels the group at the limit.
        self.until = math.inf
        self.timer: Task[Any] | None = None

    def close(self) -> None:
        """The block is left, in whichever way: else the timer would hold it, and the group, until it is due."""
        if self.timer is not None:
            # In a forked child: the parent's.
            with suppress(ForkedError):
                self.timer.cancel()

    def cancel(self) -> None:
        """Do nothing."""


class _AsyncBlock(_Block):
    """An ``async with`` block, and the task in which it runs: cancelling the group cancels that task while the block runs."""

    def __init__(self) -> None:
        super().__init__()
        task = None if asyncio._get_running_loop() is None else asyncio.current_task()
        if task is None:
            raise RuntimeError("`async with TaskGroup()` needs to run in an asyncio task.")
        self._task = task
        self._cancelling = task.cancelling()
        self._runs = True
        self._asked = False

    def cancel(self) -> None:
        """Cancel the block's task, in a turn of its loop of its own. May be called from any thread."""
        # A closed loop: nothing runs there any more.
        with suppress(RuntimeError):
            self._task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        # Once: a second cancellation, by a timer that fired while the block began, would seem to be from outside.
        if self._runs and not self._asked:
            self._asked = True
            self._task.cancel()

    def take_back(self) -> bool:
        """Note that the block has ended, and take back the group's own cancellation; False if there was none."""
        self._runs = False
        if self._asked:
            self._task.uncancel()
        return self._asked

    def is_cancelled_from_outside(self) -> bool:
        return self._task.cancelling() > self._cancelling

    def cancel_again(self) -> None:
        """Cancel the task again, because the block raises errors instead of the cancellation from outside, which would be lost."""
        # From 3.13 on only, as in asyncio.TaskGroup: up to 3.12 an enclosing `asyncio.timeout` could not take it back.
        if sys.version_info >= (3, 13):
            self._task.uncancel()
            self._task.cancel()
