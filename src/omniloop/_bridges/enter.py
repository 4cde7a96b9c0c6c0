"""
Enters an async context manager in sync code, its whole life in one task.

The manager covers its block as in `async with`, though that task has a context of its own: see `_Cover`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token, copy_context
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar, final

from .._arguments import carried
from .._caller import caller
from .._errors import ForkedError, NotAsyncError, OmniloopError, WouldDeadlockError
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import Kind, Task

T = TypeVar("T")
E = TypeVar("E", bound=bool | None)


def enter(
    manager: AbstractAsyncContextManager[T, E], *, runtime: Runtime | None = None
) -> AbstractContextManager[T, E]:
    """
    Make a sync context manager of an async one: ``with enter(connect()) as connection: …``.

    Entering and leaving run on the loop in one and the same task, as cancel scopes, `asyncio.timeout` and task groups need it, in
    a copy of the context of whoever enters. Context variables that the manager sets are set in the block, and what the block sets is
    seen by the manager when it is left: a transaction that is kept in one covers the block. (What asks for the current *task*
    does not see the block.) An error in the block goes in, and what the manager raises or suppresses comes out. Cancelled at exit, if
    the block never ends: then the manager is left with a `CancelledError`.

    Args:
        manager: What `async with` takes.
        runtime: On whose loop; by default on the shared one's.

    Raises:
        NotAsyncError: if *manager* is no async context manager.
        TypeError: if *runtime* is no `Runtime`.
        OmniloopError: on entering, if it was entered before; on leaving, if it was not.
        WouldDeadlockError: on entering or leaving, if that is on the loop's own thread. Use `async with` there.
        ForkedError: on leaving, if it was entered in the parent process.
        ClosedError: on entering, if the runtime is shut down, or the interpreter ends.
        CannotStartError: on entering, if this was the first use, and no thread can be started here.

    Example:
        >>> from contextlib import asynccontextmanager
        >>> from omniloop import enter
        >>> @asynccontextmanager
        ... async def connection():
        ...     yield "open"
        ...     print("closed")
        >>> with enter(connection()) as state:
        ...     print(state)
        open
        closed
    """
    if not hasattr(type(manager), "__aenter__") or not hasattr(type(manager), "__aexit__"):
        raise NotAsyncError(_not_async_manager(manager))
    # Its `__exit__` returns a bool, where E, the manager's own, may be None.
    return _Entered(manager, chosen(runtime))  # type: ignore[return-value]


@final
class _Door(Generic[T]):
    """What the block's thread and the task on the loop share."""

    def __init__(self) -> None:
        # Set when the value is there, or never will be.
        self.open = threading.Event()
        # Of those who do not wait in a thread.
        self.tell: Callable[[], object] | None = None
        self.values: list[T] = []
        # Its result is the error that the block raised, if it did, and the context variables that the block has set.
        self.leave: asyncio.Future[tuple[BaseException | None, _Variables]] | None = None
        # The context variables that entering has set; and those that leaving has set, and removed.
        self.set_by_entering: _Variables = {}
        self.set_by_leaving: _Variables = {}
        self.removed: list[ContextVar[Any]] = []


_Variables = dict[ContextVar[Any], Any]

# Its token is of use only in the context in which the block was entered.
_inside: ContextVar[None] = ContextVar("omniloop_inside")


class _Cover:
    """
    Has a manager cover a block that runs in another context, as `async with` does.

    What entering sets is set in the block's context, what the block sets in the manager's before it is left, and what leaving
    sets in the block's again; what leaving removes is reset. Only what *changed*, by identity: to copy all variables, or to
    restore all of them at the end, would undo what the block has set. In the thread or task of the block; left elsewhere (in
    another thread, say) nothing is carried, because what that has set is not the block's.
    """

    def __init__(self) -> None:
        self._tokens: dict[ContextVar[Any], Token[Any]] = {}
        self._inside: Token[None] | None = None

    def begin(self, door: _Door[Any]) -> None:
        self._tokens = {variable: variable.set(value) for variable, value in door.set_by_entering.items()}
        self._inside = _inside.set(None)
        self._begun = copy_context()

    def set_by_block(self) -> _Variables:
        token, self._inside = self._inside, None
        try:
            if token is not None:
                _inside.reset(token)
                self._inside = token
                return carried(self._begun, copy_context())
        except ValueError:
            pass
        return {}

    def end(self, door: _Door[Any]) -> None:
        if self._inside is None:
            return
        self._inside = None
        for variable, value in door.set_by_leaving.items():
            variable.set(value)
        for variable in door.removed:
            # What the block has set, and the manager found when it was left, is nothing that the manager could remove.
            if variable in self._tokens:
                variable.reset(self._tokens.pop(variable))
        del self._begun


@final
class _Entered(AbstractContextManager[T, bool]):
    def __init__(
        self, manager: AbstractAsyncContextManager[T, Any], runtime: Runtime, kind: Kind = Kind.DAEMON
    ) -> None:
        self._kind = kind
        self._manager: AbstractAsyncContextManager[T, Any] | None = manager
        self._runtime = runtime
        self._door: _Door[T] = _Door()
        self._cover = _Cover()
        self._task: Task[bool] | None = None

    def __enter__(self) -> T:
        self._runtime._current().check_may_wait("enter()")
        manager, self._manager = self._manager, None
        if manager is None:
            raise OmniloopError(
                "This was entered before, and an async context manager can be entered once. Call enter() again, with a new one."
            )
        door = self._door
        name = f"enter({getattr(manager, '__qualname__', type(manager).__qualname__)})"
        task = self._task = self._runtime._make_task(_hold(manager, door), None, None, caller())
        task._name, task._kind = name, self._kind
        with self._ending(task):
            # In here, because Ctrl-C may come when the loop has the task already.
            self._runtime._put(task)
            task.add_done_callback(lambda _: door.open.set())
            task._wait_for(door.open.wait, None)
            if not door.values:
                # Raises what `__aenter__` raised; else it returned, and only the loop's end can have come between.
                task.result(0)
            self._cover.begin(door)
            return door.values.pop()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        task, leave = self._task, self._door.leave
        if task is None or leave is None:
            raise OmniloopError("This was never entered. Use it in a `with` statement.")
        changed = self._cover.set_by_block()
        if not task.done():
            task._check_process()
            # The loop may be closed by now: then the task is done.
            with suppress(RuntimeError):
                leave.get_loop().call_soon_threadsafe(_set, leave, (error, changed))
        try:
            with self._ending(task):
                task._wait_until_done(None)
            if error is not None and task.cancelled():
                # At exit, say. The block's own error tells more.
                return False
            return task.result(0)
        finally:
            self._cover.end(self._door)
            if error is not None:
                # Without the frames that it went through on the loop.
                error.__traceback__ = tb
            del error, tb

    @contextmanager
    def _ending(self, task: Task[bool]) -> Iterator[None]:
        """On Ctrl-C, cancel the task and wait, bounded, for its clean-up. A second Ctrl-C ends this wait too."""
        try:
            yield
        except BaseException:
            if task.cancel():
                with suppress(WouldDeadlockError):
                    task._wait_until_done(self._runtime._settings.cancel_timeout)
            raise

    def __del__(self) -> None:
        # Entered, and dropped without leaving. Asks only: a finaliser must not wait.
        if self._task is not None:
            with suppress(ForkedError):
                self._task.cancel()


@final
class AsyncEntered(AbstractAsyncContextManager[T, bool]):
    """The same for async code on any loop of asyncio's: the manager's whole life is one task on the runtime's."""

    def __init__(self, manager: AbstractAsyncContextManager[T, Any], runtime: Runtime, frame: FrameType) -> None:
        self._manager, self._runtime, self._frame = manager, runtime, frame
        self._door: _Door[T] = _Door()
        self._cover = _Cover()
        self._task: Task[bool] | None = None

    async def __aenter__(self) -> T:
        door, loop = self._door, asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            # Closed by now: nobody waits there.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_open, opened)

        door.tell = tell
        name = f"enter({type(self._manager).__qualname__})"
        task = self._task = self._runtime._go_for_caller(_hold(self._manager, door), name, self._frame)
        task._when_done(tell)
        try:
            await opened
        except BaseException:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise
        if not door.values:
            await task
        self._cover.begin(door)
        return door.values.pop()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        task, leave = self._task, self._door.leave
        if task is None or leave is None:
            raise OmniloopError("This was never entered. Use it in an `async with` statement.")
        with suppress(RuntimeError):
            leave.get_loop().call_soon_threadsafe(_set, leave, (error, self._cover.set_by_block()))
        try:
            return await task
        finally:
            self._cover.end(self._door)
            if error is not None:
                error.__traceback__ = tb
            del error, tb

    def __del__(self) -> None:
        if self._task is not None:
            with suppress(ForkedError):
                self._task.cancel()


async def _hold(manager: AbstractAsyncContextManager[T, Any], door: _Door[T]) -> bool:
    """Enter, wait until the block is left, and leave; returns whether the block's error was suppressed."""
    error: BaseException | None = None
    before = copy_context()
    try:
        async with manager as value:
            door.set_by_entering = carried(before, copy_context())
            before = copy_context()
            door.leave = asyncio.get_running_loop().create_future()
            door.values.append(value)
            del value
            door.open.set()
            if door.tell is not None:
                door.tell()
            error, changed = await door.leave
            for variable, new in changed.items():
                variable.set(new)
            before = copy_context()
            if error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise
        return False
    finally:
        after = copy_context()
        door.set_by_leaving = carried(before, after)
        door.removed = [variable for variable in before if variable not in after]
        suppressed = error is not None
        # This frame is in the error's traceback.
        del error
    return suppressed


def _set(
    leave: asyncio.Future[tuple[BaseException | None, _Variables]], how: tuple[BaseException | None, _Variables]
) -> None:
    if not leave.done():
        leave.set_result(how)


def _open(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


def _not_async_manager(manager: object) -> str:
    if hasattr(type(manager), "__enter__"):
        return (
            f"{manager!r} is a sync context manager. Use it in `with` as it is; enter() takes what `async with` takes."
        )
    if asyncio.iscoroutine(manager):
        manager.close()
        return f"{manager!r} is a coroutine. Pass what it returns: enter(run(…))."
    if callable(manager):
        return f"{manager!r} is a function. Call it: enter({getattr(manager, '__name__', type(manager).__name__)}(…))."
    return f"{manager!r} is no async context manager. Pass what `async with` takes: enter(connect())."
