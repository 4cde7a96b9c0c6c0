"""Shares a client or pool that lives on the loop: it is opened on first use, and closed when nobody uses it any more."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from types import FrameType
from typing import Any, Generic, Self, TypeVar, final, overload

from .._arguments import check_timeout, close_unstarted, name_of
from .._errors import CannotStartError, ClosedError, NotAsyncError, WaitTimeoutError, WouldDeadlockError, WrongLoopError
from .._hooks import who_runs_here
from .._life.life import Life
from .._process.fork import same_process
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import DAEMON, KEEPER, WORK, Task

T = TypeVar("T")
R = TypeVar("R")


@overload
def resource(
    factory: Callable[[], AbstractAsyncContextManager[T, Any]], *, runtime: Runtime | None = None
) -> Resource[T]: ...
@overload
def resource(
    factory: Callable[[], Awaitable[T]],
    close: Callable[[T], object] | None = None,
    *,
    runtime: Runtime | None = None,
) -> Resource[T]: ...
@overload
def resource(
    factory: Callable[[], T], close: Callable[[T], object] | None = None, *, runtime: Runtime | None = None
) -> Resource[T]: ...
def resource(
    factory: Callable[[], Any], close: Callable[[Any], object] | None = None, *, runtime: Runtime | None = None
) -> Resource[Any]:
    """
    Share one client, pool or connection on the loop: ``client = resource(lambda: httpx.AsyncClient())``.

    Nothing is opened until the first use. An awaitable that the factory returns is awaited. Without *close*, a client that is an async
    context manager is entered, and leaving it closes the client; any other client is closed by its own `aclose()` or `close()`. Opening
    and closing run in one task. Callers that come during the opening wait for it together; if it fails, all of them get the error, and
    the next use tries again.

    The client is closed when nobody uses the resource any more (see `Resource`), and at the latest after the drain, when all work and
    all daemons have ended: the client that was opened last is closed first. It is opened anew after `shutdown()`, and in a forked
    child, which leaves the parent's client alone.

    Args:
        factory: Called on the loop, without arguments; plain or async, or the function of an `@asynccontextmanager`.
        close: Called with the client to close it, plain or async, instead of the client's own way to close.
        runtime: The runtime on whose loop the client lives; by default the shared one.

    Raises:
        NotAsyncError: if *factory* or *close* can't be called.
        TypeError: if *runtime* is no `Runtime`.

    Example:
        >>> import asyncio
        >>> from contextlib import asynccontextmanager
        >>> from omniloop import resource
        >>> @asynccontextmanager
        ... async def connect():
        ...     yield {"ada": 1815}
        >>> database = resource(connect)
        >>> async def look_up(client):
        ...     return client["ada"]
        >>> database.run(look_up, timeout=5)
        1815
    """
    if not callable(factory):
        close_unstarted(factory)
        raise NotAsyncError(
            f"resource() takes a function that makes the client, and {factory!r} can't be called. Use resource(lambda: …)."
        )
    if close is not None and not callable(close):
        raise NotAsyncError(f"close={close!r}: give a function that takes the client and closes it, plain or async.")
    return Resource(factory, close, chosen(runtime))


@final
class Resource(Generic[T]):
    """
    A client that lives on the loop; made by `resource`. In a task of the runtime, ``await`` gives the client itself.

    In sync code, and on other loops, pass a function of the client to `run` or `go`.

    The client is closed when the resource is not in use any more: nothing refers to the resource, no `run` or `go` of it is under way,
    every task that awaited it is done, and every other resource whose factory awaited it is closed. It is also closed by `close`, and
    at the end of a `with` or `async with` block, which gives the resource.

    Example:
        >>> from contextlib import asynccontextmanager
        >>> from omniloop import go, resource
        >>> @asynccontextmanager
        ... async def connect():
        ...     yield {"ada": 1815}
        >>> database = resource(connect)
        >>> async def look_up(name):
        ...     client = await database
        ...     return client[name]
        >>> go(look_up("ada")).result(timeout=5)
        1815
    """

    def __init__(self, factory: Callable[[], Any], close: Callable[[Any], object] | None, runtime: Runtime) -> None:
        self._factory = factory
        self._close = close
        self._runtime = runtime
        self._name = f"resource({name_of(factory)})"
        # Set by the thread that calls `close`: later uses are refused.
        self._refuses = False
        # The others are used on the loop's thread only: the client, the handle of the task that keeps it open, and whether it is closed
        # for good. The client does not know the handle: an error's traceback, which refers to the client, would keep the handle alive,
        # and so the error would never be reported.
        self._client: _Client[T] | None = None
        self._keeper: Task[None] | None = None
        self._closed = False

    def run(self, use: Callable[[T], Awaitable[R]], *, timeout: float | None = None) -> R:
        """
        Do something with the client in sync code: ``client.run(lambda c: c.get(url))``. Blocks, as `omniloop.run` does.

        Args:
            use: Called on the loop with the client; its result is awaited there. An async function may do several things.
            timeout: Seconds to wait. None waits without end.

        Raises:
            TaskTimeoutError: if *timeout* passed. The work was cancelled; the client stays open.
            NotAsyncError: if *use* can't be called, or what it returns can't be awaited.
            WouldDeadlockError: if the wait could never end: on the loop's own thread, for one.
            ClosedError: if the resource is closed, the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
            CancelledError: of `concurrent.futures`, if the work was cancelled from elsewhere.
        """
        self._check(use, "run")
        return self._runtime._run(self._use(use), timeout, caller())

    def go(
        self,
        use: Callable[[T], Awaitable[R]],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        daemon: bool = False,
        timeout: float | None = None,
    ) -> Task[R]:
        """
        Do something with the client in the background; return the handle at once. May be called anywhere, as `omniloop.go`.

        Args:
            use: Called on the loop with the client; its result is awaited there.
            name: For logs and `tasks()`. By default the name of *use*.
            context: Run in a copy of this context instead of a copy of the caller's.
            daemon: Cancel it at exit instead of waiting for it; its clean-up runs.
            timeout: Seconds from now. Work that is not done by then is cancelled, and fails with `TaskTimeoutError`.

        Raises:
            NotAsyncError: if *use* can't be called.
            ValueError: if *timeout* is not a number of seconds.
            ClosedError: if the resource is closed, the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
        """
        self._check(use, "go")
        life = self._runtime._current()
        if life.thread.is_current() and life.ledger.is_bereft():
            raise self._bereft_error()
        kind = DAEMON if daemon else WORK
        return self._runtime._go_within(timeout, self._use(use), caller(), name, context=context, kind=kind)

    def close(self, timeout: float | None = None) -> None:
        """
        Refuse further uses, wait for the accepted ones, and close the client if it is open. The resource stays closed.

        This also waits for tasks that awaited the client and still run. Blocks; not for the loop's own thread: use `aclose` there.
        Calling it again is harmless.

        Args:
            timeout: Seconds to wait. None waits without end.

        Raises:
            WaitTimeoutError: if *timeout* passed. Further uses are refused, and the closing goes on.
            WouldDeadlockError: if the wait could never end: on the loop's own thread, for one.
            Exception: if closing the client raises it.
        """
        life = self._runtime._current()
        check_timeout(timeout)
        life.check_may_wait("close()", "await its aclose()")
        ending = self._begin_end(None, caller())
        if ending is None:
            return
        if not ending._wait_until_done(timeout):
            raise WaitTimeoutError(
                f"{self!r} was still in use after {timeout} s. It is closed when its users are done."
            )
        # Otherwise the runtime has cancelled the closing task at its end, and closes the client itself.
        if not ending.cancelled() and (keeper := ending.result(0)) is not None:
            keeper.result(0)

    async def aclose(self) -> None:
        """
        As `close`, in async code, on any event loop. The calling task may have awaited the client; `aclose` does not wait for it.

        Raises:
            CancelledError: of `asyncio`, if the calling task was cancelled. The closing goes on.
            Exception: if closing the client raises it.
        """
        ending = self._begin_end(asyncio.current_task() if who_runs_here() is None else None, caller())
        if ending is not None:
            await ending.wait()
            if (keeper := await ending) is not None:
                await keeper

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # A default argument, because without a GIL this module may be cleared by then.
            return
        client, keeper = getattr(self, "_client", None), getattr(self, "_keeper", None)
        # A forked child leaves the client to its parent.
        if client and keeper and same_process[0] and not client.life.foreign:
            # Through the inbox, because a finaliser runs in any thread. An error from waking the loop would be raised in unrelated code; the
            # end of the runtime closes the client then.
            with suppress(CannotStartError, ClosedError):
                client.life.inbox.put(keeper._give_up)

    def __await__(self) -> Generator[Any, None, T]:
        return self._get(caller(), False).__await__()

    def __repr__(self) -> str:
        return f"<{self._name}{', closed' if self._refuses else ''}>"

    def _check(self, use: object, call: str) -> None:
        if not callable(use):
            close_unstarted(use)
            raise NotAsyncError(
                f"{call}() takes a function of the client, and {use!r} can't be called. Use {call}(lambda client: client.get(…))."
            )
        if self._refuses:
            raise self._closed_error()

    def _use(self, use: Callable[[T], Awaitable[R]]) -> Coroutine[Any, Any, R]:
        using: Any = self._do(use)
        # Logs, lists and messages name the user's function.
        using.__name__ = using.__qualname__ = name_of(use.func if isinstance(use, partial) else use)
        made: Coroutine[Any, Any, R] = using
        return made

    async def _do(self, use: Callable[[T], Awaitable[R]]) -> R:
        work = use(await self._get(sys._getframe(), True))
        if not inspect.isawaitable(work):
            raise NotAsyncError(
                f"{use!r} returned {work!r}, which can't be awaited. Give an async function for what needs no await."
            )
        return await work

    async def _get(self, frame: FrameType, accepted: bool) -> T:
        life = self._runtime._current()
        if who_runs_here() is not None or asyncio.get_running_loop() is not life.loop:
            raise WrongLoopError(
                f"{self!r} lives on the runtime's loop, and another one runs here. Hand over what is to be done with it: "
                "await client.go(lambda c: c.get(url))."
            )
        client, keeper, user = self._client, self._keeper, asyncio.current_task()
        if keeper is not None and keeper._is_current(user):
            raise WouldDeadlockError(f"{self!r} is needed by its own factory: it would wait for itself.")
        if self._closed or (self._refuses and not accepted and not (client is not None and user in client.users)):
            raise self._closed_error()
        # A parent process's client is left as it is: the forked child keeps the parent's life, and so the client, untouched to its end.
        if client is None or client.over or client.life is not life or (keeper is not None and keeper.done()):
            if life.ledger.is_bereft():
                raise self._bereft_error()
            client = _Client(life)
            # An empty context: a shared client must not keep the context of its first user.
            keeping = client.keep(self._factory, self._close)
            self._keeper = self._runtime._go(keeping, frame, self._name, contextvars.Context(), KEEPER)
            self._client = client
        if user is not None and user not in client.users:
            client.users.add(user)
            # The callback refers to the resource, so that the resource stays in use until the task is done.
            user.add_done_callback(partial(self._leave, client))
        # Shielded, because a caller that is cancelled must not cancel the opening for the others.
        return await asyncio.shield(client.opened)

    def _leave(self, client: _Client[T], user: asyncio.Task[Any]) -> None:
        client.users.discard(user)

    def _begin_end(self, but: asyncio.Task[Any] | None, frame: FrameType) -> Task[Task[None] | None] | None:
        """
        Refuse further uses, and have the loop close the client when its users except *but* are done; None if nothing is to be closed.

        The handle's value is the handle of the task that has closed the client, if there was one.
        """
        self._refuses = True
        life, client = self._runtime._current(), self._client
        if life.loop is None and (client is None or client.life is not life):
            return None
        # A daemon, because at its end the runtime closes the client, even one still in use. After its end it has done that.
        with suppress(ClosedError):
            return self._runtime._go(
                self._end(but), frame, f"close {self._name}", contextvars.Context(), DAEMON, "accept"
            )
        return None

    async def _end(self, but: asyncio.Task[Any] | None) -> Task[None] | None:
        # Tasks that were accepted earlier have taken their first step before this one, and so are among the users.
        client, keeper = self._client, self._keeper
        if client is None or keeper is None or client.life is not self._runtime._current():
            self._closed = True
            return None
        while users := client.users - {but}:
            await asyncio.wait(users)
        self._closed = True
        if not keeper._give_up():
            return None
        await keeper.wait()
        # Otherwise a failure of the closing would be reported only when the resource is dropped.
        self._keeper = None
        # One that was cancelled while it opened the client, for callers who had gone, has closed nothing.
        return None if client.opened.cancelled() else keeper

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self!r} was closed by its close(). Use it before that, or make a new one by resource().")

    def _bereft_error(self) -> ClosedError:
        return ClosedError(
            f"{self!r} is closed, because the runtime ends, and a task that was made without the runtime does not open it again. "
            "Start with go() what is to be waited for, and with go(…, daemon=True) what runs for ever: they end before it is closed."
        )


class _Client(Generic[T]):
    """One client, from its opening to its closing. It does not refer to the resource, nor, once it is open, to the factory."""

    def __init__(self, life: Life) -> None:
        # The life in which it was opened: after a shutdown or a fork the runtime has another.
        self.life = life
        self.opened: asyncio.Future[T] = life.ledger.loop.create_future()
        # True when it could not be opened, or is being closed: the next use opens another.
        self.over = False
        # Unfinished tasks that have awaited the client.
        self.users: set[asyncio.Task[Any]] = set()

    async def keep(self, factory: Callable[[], Any], close: Callable[[Any], object] | None) -> None:
        """Open the client, wait until it is to be closed, and close it."""
        runner = asyncio.current_task()
        assert runner is not None
        # Tasks that the client makes have this context, and end after the client.
        self.life.ledger.leftovers.keep(runner)
        try:
            async with AsyncExitStack() as stack:
                client = await _open(factory, close, stack)
                # The factory may refer to the resource, which would keep itself in use.
                del factory
                # Noted only now, after the resources that the factory used: they were opened earlier, and are closed later.
                self.life.ledger.opened(runner)
                self.opened.set_result(client)
                del client
                # Swallowed, because an error inside `async with` would roll a transaction back.
                with suppress(asyncio.CancelledError):
                    await runner.get_loop().create_future()
                self.over = True
        except BaseException as error:
            if self.opened.done():
                raise
            self.over = True
            if isinstance(error, asyncio.CancelledError):
                self.opened.cancel()
                raise
            self.opened.set_exception(error)
            # Claims the error: the waiting callers have it. If there are none, the next use tries again and shows it.
            self.opened.exception()


async def _open(factory: Callable[[], Any], close: Callable[[Any], object] | None, stack: AsyncExitStack) -> Any:
    """Return a new client, which *stack* will close."""
    made: Any = factory()
    if inspect.isasyncgen(made):
        raise NotAsyncError(
            f"{factory!r} is an async generator function. Decorate it: resource(asynccontextmanager({made.__name__}))."
        )
    if inspect.isawaitable(made) and (close is not None or not hasattr(type(made), "__aenter__")):
        made = await made
    if close is None and hasattr(type(made), "__aenter__"):
        return await stack.enter_async_context(made)  # pyright: ignore[reportArgumentType]
    way = partial(close, made) if close is not None else getattr(made, "aclose", None) or getattr(made, "close", None)
    if not callable(way):
        raise NotAsyncError(
            f"The factory returned {made!r}, which can't be closed: `async with` does not take it, and it has neither aclose() nor "
            "close(). Give resource() a second argument, a function that closes it."
        )
    stack.push_async_callback(_call, way)
    return made


async def _call(close: Callable[[], object]) -> None:
    result = close()
    if inspect.isawaitable(result):
        await result
