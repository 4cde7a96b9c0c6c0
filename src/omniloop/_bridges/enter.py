"""
Enters an async context manager in sync code; one task on the loop enters and leaves it.

Context variables pass between the manager and its block as in `async with`, although the task has a context of its own: see `_Cover`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar, copy_context
from types import FrameType, TracebackType
from typing import Any, TypeVar, final

from .._arguments import carried, name_of
from .._errors import NotAsyncError, OmniloopError
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._steps import END, AsyncSteps, Source, SyncSteps
from .._work.task import DAEMON, Kind

T = TypeVar("T")
E = TypeVar("E", bound=bool | None)


def enter(
    manager: AbstractAsyncContextManager[T, E], *, runtime: Runtime | None = None
) -> AbstractContextManager[T, E]:
    """
    Make a sync context manager of an async one: ``with enter(connect()) as connection: …``.

    One task on the loop enters and leaves the manager, as cancel scopes, `asyncio.timeout` and task groups require. It runs in a copy
    of the context in which the block is entered. Context variables that the manager sets are set in the block. When the block is left,
    the manager sees the variables that the block has set: a transaction that is kept in a context variable covers the block. (Code
    that asks for the current *task* does not see the block.) An error in the block is raised in the manager, which may suppress it;
    the manager's own errors are raised here. If the block never ends, the manager is left at exit with a `CancelledError`.

    Args:
        manager: An async context manager.
        runtime: The runtime whose loop is used; by default the shared one.

    Raises:
        NotAsyncError: if *manager* is no async context manager.
        TypeError: if *runtime* is no `Runtime`.
        OmniloopError: on entering, if it was entered before; on leaving, if it was never entered.
        WouldDeadlockError: on entering or leaving on the loop's own thread. Use `async with` there.
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
    # `Entered.__exit__` returns a bool; E is the manager's return type, and may be None.
    return Entered(manager, chosen(runtime))  # type: ignore[return-value]


_Variables = dict[ContextVar[Any], Any]

# Shows whether the block is left in the context in which it was entered: its token can't be reset in any other.
_inside: ContextVar[None] = ContextVar("omniloop_inside")


class _Cover:
    """
    Carries context variables between a manager and its block, which run in different contexts, so that both see what `async with` shows.

    1. On entering, the variables that the manager has set are set in the block's context.
    2. Before leaving, the variables that the block has set are set in the manager's context.
    3. After leaving, the variables that the manager has set are set in the block's context, and those that it has removed are reset.

    Each step carries only the variables whose value *changed*, by identity: copying or restoring all of them would undo the changes
    of the block. Steps 2 and 3 happen only in the context in which the block was entered. When the block is left elsewhere (in another
    thread, say), nothing is carried, because the variables there are not the block's.
    """

    def __init__(self, manager: AbstractAsyncContextManager[Any, Any]) -> None:
        # None once it has been entered.
        self.manager: AbstractAsyncContextManager[Any, Any] | None = manager
        self.name = f"enter({name_of(manager)})"
        # Written on the loop: the variables set by entering, those set or removed by leaving, and whether leaving suppressed the error.
        self._set_by_entering: _Variables = {}
        self._set_by_leaving: _Variables = {}
        self._removed: list[ContextVar[Any]] = []
        self.suppressed = False

    async def hold(self, manager: AbstractAsyncContextManager[Any, Any], steps: Source) -> None:
        """Enter the manager, wait until the block is left, and leave the manager. Runs on the loop."""
        error: BaseException | None = None
        before = copy_context()
        try:
            async with manager as value:
                self._set_by_entering = carried(before, copy_context())
                before = copy_context()
                steps.hand_on(value)
                del value
                error, changed = await steps.wish()
                for variable, new in changed.items():
                    variable.set(new)
                before = copy_context()
                if error is not None:
                    raise error
            self.suppressed = error is not None
        except BaseException as raised:
            if raised is not error:
                raise
        finally:
            after = copy_context()
            self._set_by_leaving = carried(before, after)
            self._removed = [variable for variable in before if variable not in after]
            # The error's traceback refers to this frame: breaks the cycle.
            del error

    def drive(self, steps: Source) -> Coroutine[Any, Any, None]:
        manager, self.manager = self.manager, None
        if manager is None:
            raise OmniloopError(
                "This was entered before, and an async context manager can be entered once. Call enter() again, with a new one."
            )
        return self.hold(manager, steps)

    def cover(self) -> Iterator[_Variables]:
        """Go on where the block begins, where it is left (yields what it has set), and when the manager was left. For the block's side."""
        tokens = {variable: variable.set(value) for variable, value in self._set_by_entering.items()}
        inside = _inside.set(None)
        begun = copy_context()
        yield {}
        try:
            _inside.reset(inside)
        except ValueError:
            # In another context.
            return
        yield carried(begun, copy_context())
        for variable, value in self._set_by_leaving.items():
            variable.set(value)
        for variable in self._removed:
            # A variable without a token was set by the block, and the manager found it when it was left: not the manager's to remove.
            if variable in tokens:
                variable.reset(tokens.pop(variable))

    def end(self, block: Iterator[_Variables], error: BaseException | None, tb: TracebackType | None) -> None:
        """The manager was left, with what was raised in the block."""
        if error is not None:
            # Drops the frames that the error went through on the loop.
            error.__traceback__ = tb
        next(block, None)


@final
class Entered(AbstractContextManager[T, bool]):
    """A sync context manager over an async one, which one task on the runtime's loop enters and leaves."""

    def __init__(self, manager: AbstractAsyncContextManager[T, Any], runtime: Runtime, kind: Kind = DAEMON) -> None:
        self._cover = _Cover(manager)
        # Not in the cover, to which it refers: a cycle would keep the context until the garbage collector comes.
        self._block = self._cover.cover()
        self._runtime = runtime
        self._kind: Kind = kind
        self._steps: SyncSteps[Any] | None = None

    def __enter__(self) -> T:
        self._runtime._current().check_may_wait("enter()")
        cover = self._cover
        steps: SyncSteps[Any] = SyncSteps(cover.drive, self._runtime, caller(), cover.name, kind=self._kind)
        with steps._ending():
            value: T = steps._start()._take()
            self._steps = steps
        if value is END:
            steps._source.task.result(0)
        next(self._block)
        return value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if self._steps is None:
            raise OmniloopError("This was never entered. Use it in a `with` statement.")
        try:
            self._steps._resume((error, next(self._block, {})))
        except StopIteration:
            pass
        except concurrent.futures.CancelledError:
            # Cancelled, at exit for example. The block's own error says more, and takes precedence.
            if error is None or not self._steps._source.task.cancelled():
                raise
        finally:
            self._cover.end(self._block, error, tb)
            del error, tb
        return self._cover.suppressed


@final
class AsyncEntered(AbstractAsyncContextManager[T, bool]):
    """As `Entered`, for async code on any asyncio loop: one task on the runtime's loop enters and leaves the manager."""

    def __init__(self, manager: AbstractAsyncContextManager[T, Any], runtime: Runtime, frame: FrameType) -> None:
        self._cover = cover = _Cover(manager)
        self._block = cover.cover()
        self._steps: AsyncSteps[Any, Any] = AsyncSteps(cover.drive, runtime, frame, cover.name)

    async def __aenter__(self) -> T:
        value: T = await self._steps._start()._take()
        if value is END:
            await self._steps._source.task
        next(self._block)
        return value

    async def __aexit__(self, kind: object, error: BaseException | None, tb: TracebackType | None) -> bool:
        try:
            await self._steps._resume((error, next(self._block, {})))
        except StopAsyncIteration:
            pass
        finally:
            self._cover.end(self._block, error, tb)
            del error, tb
        return self._cover.suppressed


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
