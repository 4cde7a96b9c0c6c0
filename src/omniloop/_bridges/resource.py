"""Keeps what lives on the loop, a client or a pool: opened on first use, shared by all, closed when nobody can need it any more."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import FrameType
from typing import Any, Generic, TypeVar, final, overload
from weakref import ref

from .._arguments import close_unstarted
from .._errors import ClosedError, NotAsyncError, WouldDeadlockError, WrongLoopError
from .._life.life import Life
from .._runtime import Runtime
from .._shared import chosen
from .._work.ledger import opened_by
from .._work.task import KEEPER, Kind, Task
from .._work.trio import is_trio

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

    Nothing is opened until the first use. What the factory makes is awaited, if it can be; entered, if `async with` takes it; else
    its `aclose()` or `close()` is found. Opening and closing run in one task. Whoever comes first waits for the same opening; if it
    fails, they all get the error, and the next use tries again. Closed last-in-first-out after the drain, when all work and all
    daemons have ended; opened anew after `shutdown()`, and in a forked child, which leaves the parent's alone.

    Args:
        factory: Called on the loop, without arguments; plain or async, or the function of an `@asynccontextmanager`.
        close: Called with the client to close it, plain or async, instead of what would be found.
        runtime: On whose loop; by default on the shared one's.

    Raises:
        NotAsyncError: if *factory* or *close* can't be called.
        TypeError: if *runtime* is no `Runtime`.
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

    In sync code, and on other loops, hand over what is to be done with it: to `run`, or to `go`.
    """

    def __init__(self, factory: Callable[[], Any], close: Callable[[Any], object] | None, runtime: Runtime) -> None:
        self._factory = factory
        self._close = close
        self._runtime = runtime
        self._name = f"resource({getattr(factory, '__qualname__', type(factory).__qualname__)})"
        # All of this is touched on the loop's thread alone.
        self._life: Life | None = None
        self._opened: asyncio.Future[T] | None = None
        self._keeper: Task[None] | None = None
        # Runs the factory.
        self._opener: asyncio.Task[Any] | None = None

    def run(self, use: Callable[[T], Awaitable[R]], *, timeout: float | None = None) -> R:
        """
        Do something with the client in sync code: ``client.run(lambda c: c.get(url))``. Blocks, as `omniloop.run` does.

        Args:
            use: Called on the loop with the client; what it returns is awaited there. An async function may do several things.
            timeout: Seconds to wait. None waits without end.

        Raises:
            WaitTimeoutError: if *timeout* passed. What was being done was cancelled; the client stays open.
            NotAsyncError: if *use* can't be called, or what it returns can't be awaited.
            WouldDeadlockError: if the wait could never end: on the loop's own thread, for one.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
            CancelledError: of `concurrent.futures`, if it was cancelled by another.
        """
        self._check(use, "run")
        return self._runtime._run(self._use(use), timeout, sys._getframe(1))

    def go(self, use: Callable[[T], Awaitable[R]], *, name: str | None = None, daemon: bool = False) -> Task[R]:
        """
        Do something with the client in the background; return the handle at once. May be called anywhere, as `omniloop.go`.

        Args:
            use: Called on the loop with the client; what it returns is awaited there.
            name: For logs and `tasks()`. By default the name of *use*.
            daemon: Cancel it at exit instead of waiting for it; its clean-up runs.

        Raises:
            NotAsyncError: if *use* can't be called.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
        """
        self._check(use, "go")
        life = self._runtime._current()
        if life.thread is not None and life.thread.is_current() and life.ledger.is_bereft():
            raise self._closed_error()
        return self._runtime._go(
            self._use(use),
            name or getattr(use, "__qualname__", None),
            None,
            Kind.DAEMON if daemon else Kind.WORK,
            sys._getframe(1),
        )

    def __await__(self) -> Generator[Any, None, T]:
        return self._get(sys._getframe(1)).__await__()

    def __repr__(self) -> str:
        return f"<{self._name}>"

    def _check(self, use: object, call: str) -> None:
        if not callable(use):
            close_unstarted(use)
            raise NotAsyncError(
                f"{call}() takes a function of the client, and {use!r} can't be called. Use {call}(lambda client: client.get(…))."
            )

    async def _use(self, use: Callable[[T], Awaitable[R]]) -> R:
        work = use(await self)
        if not inspect.isawaitable(work):
            raise NotAsyncError(
                f"{use!r} returned {work!r}, which can't be awaited. Give an async function for what needs no await."
            )
        return await work

    async def _get(self, frame: FrameType) -> T:
        life = self._runtime._current()
        thread = life.thread
        if thread is None or is_trio() or asyncio.get_running_loop() is not thread.loop:
            raise WrongLoopError(
                f"{self!r} lives on the runtime's loop, and another one runs here. Hand over what is to be done with it: "
                "await client.go(lambda c: c.get(url))."
            )
        keeper, opened = self._keeper, self._opened
        if self._opener is asyncio.current_task():
            raise WouldDeadlockError(f"{self!r} is needed by its own factory: it would wait for itself.")
        # A parent process's are left as they are: the child keeps that life, and with it the client, untouched to its end.
        if opened is None or keeper is None or keeper.done() or self._life is not life:
            if life.ledger.is_bereft():
                raise self._closed_error()
            self._life = life
            opened = self._opened = thread.loop.create_future()
            # In an empty context: what is shared must not keep that of the first to come.
            self._keeper = self._runtime._go(self._keep(life, opened), self._name, contextvars.Context(), KEEPER, frame)
        # Who is cancelled while waiting leaves the opening to the others.
        return await asyncio.shield(opened)

    async def _keep(self, life: Life, opened: asyncio.Future[T]) -> None:
        runner = self._opener = asyncio.current_task()
        assert runner is not None
        # The client's own tasks are made in this context, and end after it.
        opened_by.set(ref(runner))
        async with AsyncExitStack() as stack:
            try:
                client = await self._open(stack)
            except asyncio.CancelledError:
                self._forget(opened)
                opened.cancel()
                raise
            except BaseException as error:
                self._forget(opened)
                opened.set_exception(error)
                # Those who wait have it; if there are none left, the next use tells.
                opened.exception()
                return
            # What it was opened with was opened before, and is closed after it.
            life.ledger.opened(runner)
            opened.set_result(client)
            del client
            try:
                await runner.get_loop().create_future()
            except asyncio.CancelledError:
                # The end. An error that goes in would make a transaction roll back.
                pass
            self._forget(opened)

    def _closed_error(self) -> ClosedError:
        return ClosedError(
            f"{self!r} is closed, because the runtime ends, and a task that was made without the runtime does not open it again. "
            "Start with go() what is to be waited for, and with go(…, daemon=True) what runs for ever: they end before it is closed."
        )

    def _forget(self, opened: asyncio.Future[T]) -> None:
        """From now on the next use opens another."""
        if self._opened is opened:
            self._opened = None

    async def _open(self, stack: AsyncExitStack) -> T:
        made: Any = self._factory()
        if inspect.isasyncgen(made):
            raise NotAsyncError(
                f"{self._factory!r} is an async generator function. Decorate it: resource(asynccontextmanager({made.__name__}))."
            )
        if (self._close is not None or not hasattr(type(made), "__aenter__")) and inspect.isawaitable(made):
            made = await made
        close: Callable[[], object] | None
        if self._close is not None:
            close = partial(self._close, made)
        elif hasattr(type(made), "__aenter__"):
            entered: T = await stack.enter_async_context(made)
            return entered
        else:
            close = getattr(made, "aclose", None) or getattr(made, "close", None)
        if not callable(close):
            raise NotAsyncError(
                f"The factory returned {made!r}, which can't be closed: `async with` does not take it, and it has neither aclose() nor "
                "close(). Give resource() a second argument, a function that closes it."
            )
        stack.push_async_callback(_call, close)
        client: T = made
        return client


async def _call(close: Callable[[], object]) -> None:
    result = close()
    if inspect.isawaitable(result):
        await result
