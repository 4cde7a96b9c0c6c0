"""Task groups: what is started in one is done, or cancelled, when it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import Lock
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Never, ParamSpec, Self, TypeVar, TypeVarTuple, final

from .._arguments import check_function, check_timeout, close_unstarted, misplaced_arguments, name_of, one_argument
from .._caller import caller
from .._clock import acquire, let_through, time
from .._errors import ClosedError, ForkedError, TaskTimeoutError, WouldDeadlockError
from .._life.workers import resolve
from .._limiter import go_limited, limiter, to_thread_limited
from .._locks import Guard
from .._report import shown
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import FAILED, Kind, Task

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
        # Held for a look and a change of what follows; never while the group's work is started, asked or waited for.
        self._lock = Guard()
        self._stage = _Stage.OPEN
        # By a ticket each, which a submission takes before it starts its task, so that the end waits for both.
        self._unfinished: dict[object, Task[Any] | None] = {}
        # How many failed; and which, but for those beyond the bound of a supervised group.
        self._failures = 0
        self._failed: list[Task[Any]] = []
        self._block: _Block | None = None

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
        kind = Kind.DAEMON if daemon else Kind.WORK
        return self._go(coro, caller(), name, context=context, kind=kind, timeout=timeout)

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> Task[T]:
        """
        Start a coroutine in the group: `go`, under the name that `asyncio.TaskGroup` has for it.

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
        return self._add(fn, lambda: runtime._submit(runtime._make_task(fn, args, context, frame)))

    def to_thread(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """
        Run a blocking function in a worker thread, as `omniloop.to_thread` does. The group waits for it: it can't be cancelled.

        Where an ``async with`` block is cancelled from outside, it leaves at once, as it would with `asyncio.to_thread`; the function goes on.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the group has ended, or was cancelled.
        """
        check_function(fn, "to_thread")
        call, name, frame = partial(fn, *args, **kwargs), name_of(fn), caller()
        return self._add(fn, lambda: to_thread_limited(self._runtime, self._limiter, call, frame, name))

    def cancel(self) -> None:
        """
        Ask everything in the group to end, an ``async with`` block that still runs included; nothing more is accepted.

        Does not block: the end of the block waits for the clean-up, and raises nothing because of this.
        """
        self._cancel(_Stage.CANCELLED)

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
        self._enter(_Block(), caller())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        block = self._block
        assert block is not None
        try:
            return self._leave_block(block, error)
        finally:
            block.stop_timer()

    def _leave_block(self, block: _Block, error: BaseException | None) -> bool:
        patient = error is None or isinstance(error, Exception)
        if isinstance(error, concurrent.futures.CancelledError) and self._stage is not _Stage.OPEN:
            # The block waited for work that the group had asked to end.
            vars(error)["refused_by"] = self
        if error is not None:
            self.cancel()
        try:
            over = self._wait(block, block.until if patient else self._soon())
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
            self._wait(block, self._soon())
            raise
        return self._finish(block, error, over) if patient else False

    def _wait(self, block: _Block, until: float | None) -> bool:
        """Block until all is done, and end the group; False if it was not done *until* then."""
        while not self._end():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            if (task := self._task()) is not None:
                # The gate opens for the last, whichever that is.
                task._wait_for(partial(block.gate.acquire, True), left)
            else:
                # Another thread is in the middle of a submission.
                acquire(block.gate, left)
        return True

    # --- the block, in async code -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._enter(_AsyncBlock(), caller())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        block = self._block
        assert isinstance(block, _AsyncBlock)
        try:
            return await self._leave_async_block(block, error)
        finally:
            block.stop_timer()

    async def _leave_async_block(self, block: _AsyncBlock, error: BaseException | None) -> bool:
        # As asyncio.TaskGroup does it, where it takes a cancellation from outside for one, and its own back.
        block.leave()
        cancelled = None
        if isinstance(error, asyncio.CancelledError):
            cancelled = error if block.is_cancelled_from_outside() or not block.asked else None
        if error is not None:
            self.cancel()
        while True:
            try:
                over = await self._wait_async(block, cancelled is not None)
                break
            except asyncio.CancelledError as again:
                # Else it is our own, that comes late: up to 3.12 `uncancel` does not take it back.
                if block.is_cancelled_from_outside():
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
            block.cancel_again()
        return self._finish(block, None if isinstance(error, asyncio.CancelledError) else error, over)

    async def _wait_async(self, block: _AsyncBlock, leaves: bool) -> bool:
        """As `_wait`, in async code; who *leaves* does not wait for functions that run, as nothing can interrupt those."""
        while not self._end():
            left = None if block.until is None else block.until - time.monotonic()
            if left is not None and left <= 0:
                return False
            if leaves:
                asked = [task for task in self._tasks() if task._may_be_asked()]
                if not asked:
                    return False
                await asked[-1].wait(left)
                continue
            if (task := self._task()) is not None:
                task._check_process()
            await asyncio.wait([block.end()], timeout=left)
        return True

    # --- both ---------------------------------------------------------------------------------------------------------

    def _go(self, coro: Awaitable[T], frame: FrameType, name: str | None, **options: Any) -> Task[T]:
        return self._add(coro, lambda: go_limited(self._runtime, self._limiter, coro, frame, name, **options))

    def _add(self, work: object, start: Callable[[], Task[T]]) -> Task[T]:
        ticket, task = object(), None
        try:
            with self._lock:
                taken = self._stage is _Stage.OPEN
                if taken:
                    self._unfinished[ticket] = None
            if not taken:
                close_unstarted(work)
                raise self._refusal()
            task = start()
            with self._lock:
                self._unfinished[ticket] = task
                asked = self._stage is not _Stage.OPEN
            if asked:
                # In between, by another thread.
                task.cancel()
            task._when_done(partial(self._done, ticket, task))
        except BaseException:
            # Refused; or Ctrl-C at any point, which must not leave a ticket behind that nobody gives back.
            self._leave(ticket)
            if task is not None:
                # Nobody gets its handle, and the group does not know it any more: nobody else could end it.
                task.cancel()
            raise
        return task

    def _refusal(self) -> ClosedError:
        why = self._stage.value
        if self._failed and not self._supervised:
            why = f"was cancelled, because {shown(self._failed[0].get_name())} failed"
        elif self._stage is _Stage.TIMED_OUT:
            why = f"was cancelled after {self._timeout} s"
        error = ClosedError(f"The TaskGroup {why}: it takes no more. Make a new one.")
        # Not an error of the block's if it comes out there.
        vars(error)["refused_by"] = self
        return error

    def _cancel(self, stage: _Stage) -> None:
        with self._lock:
            moved = self._move(stage)
        # Once, because a second time would interrupt the clean-up.
        if moved:
            for task in self._tasks():
                # In a forked child: the parent's, and none of ours.
                with suppress(ForkedError):
                    task.cancel()
            if self._block is not None:
                self._block.cancel()

    def _done(self, ticket: object, task: Task[Any]) -> None:
        """Note how *task* ended."""
        ending, value = task._ended()
        if ending is FAILED:
            if self._supervised:
                # Reported now: such a group may live as long as the program, and would keep it to itself.
                value.let_go()
            with self._lock:
                self._failures += 1
                if not self._supervised or self._failures <= _MOST_KEPT:
                    self._failed.append(task)
            if not self._supervised:
                self.cancel()
        self._leave(ticket)

    def _leave(self, ticket: object) -> None:
        with self._lock:
            self._unfinished.pop(ticket, None)
            over = not self._unfinished
        if over and self._block is not None:
            self._block.wake()

    def _enter(self, block: _Block, frame: FrameType) -> None:
        with self._lock:
            first = self._block is None
            self._block = self._block or block
        if not first:
            raise ClosedError("This TaskGroup has been entered before. Make a new one for each block.")
        if self._timeout is not None and self._timeout < math.inf:
            block.until = self._soon() + self._timeout
            expire = partial(self._cancel, _Stage.TIMED_OUT)
            when = self._runtime._now() + max(0.0, self._timeout)
            block.timer = self._runtime._call_at(when, expire, (), None, frame)
        if self._stage is not _Stage.OPEN:
            block.cancel()

    def _soon(self) -> float:
        return time.monotonic() + self._runtime._settings.cancel_timeout

    def _tasks(self) -> list[Task[Any]]:
        with self._lock:
            return [task for task in self._unfinished.values() if task is not None]

    def _task(self) -> Task[Any] | None:
        """One of the unfinished; None if all of them are still being started."""
        with self._lock:
            return next((task for task in self._unfinished.values() if task is not None), None)

    def _end(self) -> bool:
        """End the group if all is done."""
        with self._lock:
            over = not self._unfinished
            if over:
                self._move(_Stage.ENDED)
        return over

    def _move(self, to: _Stage) -> bool:
        """Under the lock: leave the stage in which it takes tasks, which happens once; False if that has happened before."""
        # So a timer that fires at the end of the block, or after a cancellation, comes too late.
        first = self._stage is _Stage.OPEN
        if first:
            self._stage = to
        return first

    def _finish(self, block: _Block, error: BaseException | None, over: bool) -> bool:
        """Raise what has to come out of the block; True if *error* is not to."""
        # Asking claims them: they are not reported as well.
        errors = [failure for task in self._failed if (failure := task.exception()) is not None]
        if error is not None and vars(error).get("refused_by") is not self:
            errors.append(error)
        if self._stage is _Stage.TIMED_OUT or not over:
            left = f" {len(self._unfinished)} are not done with their clean-up." if not over else ""
            timeout = TaskTimeoutError(f"The TaskGroup was not done after {self._timeout} s, and was cancelled.{left}")
            if not errors:
                raise timeout from None
            errors.append(timeout)
        if errors:
            more = self._failures - len(self._failed)
            more_words = f": the first {_MOST_KEPT}, and {more} more that were reported" if more else ""
            raise BaseExceptionGroup(f"unhandled errors in a TaskGroup{more_words}", errors) from None
        return True


class _Stage(enum.Enum):
    """Whether a group takes tasks, or why not."""

    OPEN = "takes tasks"
    CANCELLED = "was cancelled"
    TIMED_OUT = "was cancelled, because its time was over"
    ENDED = "has ended"


class _Block:
    """What is waited in, by the thread that runs a ``with`` block."""

    def __init__(self) -> None:
        # When the waiting for a group ends that has a time limit, its clean-up included; and what cancels the group at that limit.
        self.until: float | None = None
        self.timer: Task[Any] | None = None
        self.gate = Lock()
        self.gate.acquire()

    def stop_timer(self) -> None:
        """The block is left, in whichever way: else the timer would hold it, and the group, until it is due."""
        if self.timer is not None:
            # In a forked child: the parent's.
            with suppress(ForkedError):
                self.timer.cancel()

    def wake(self) -> None:
        """Nothing is left to wait for. From any thread."""
        let_through(self.gate)

    def cancel(self) -> None:
        """The group was cancelled: nothing can interrupt a ``with`` block."""


class _AsyncBlock(_Block):
    """The task in which an ``async with`` block runs, which can be cancelled as long as it does."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task()
        if loop is None or task is None:
            raise RuntimeError("`async with TaskGroup()` needs to run in an asyncio task.")
        self._loop = loop
        self._task = task
        self._cancelling = task.cancelling()
        self._end: asyncio.Future[None] | None = None
        self._runs = True
        self.asked = False

    def end(self) -> asyncio.Future[None]:
        """What `wake` resolves: in a turn of the loop's own, and so not before it is waited for."""
        self._end = self._loop.create_future()
        return self._end

    def wake(self) -> None:
        self._call(self._wake)

    def cancel(self) -> None:
        """Cancel the block. From any thread; it comes there in a turn of its own, while the block waits."""
        self._call(self._cancel)

    def _call(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            # The loop is closed: nothing runs there any more.
            self._loop.call_soon_threadsafe(fn)

    def _wake(self) -> None:
        if self._end is not None:
            resolve(self._end)

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
