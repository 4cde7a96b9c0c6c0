"""
Waits for the loop's work at the end of an ASGI application: `lifespan` for FastAPI and Starlette, `with_lifespan` for any other.

A server may end its process without Python's exit, as uvicorn does at SIGTERM; then no exit hook runs. But it does wait for the end of
the application's lifespan, once all requests are answered. The server's own loop runs meanwhile, so nothing here may block it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final

from omniloop._arguments import close_unstarted
from omniloop._errors import NotAsyncError
from omniloop._hooks import who_runs_here
from omniloop._process.exit import beside, wait_in_the_middle
from omniloop._process.fork import forget_after_fork
from omniloop._shared import shared_runtime
from omniloop._threads import time

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# The lifespans of this process that have begun and not ended; the last one to end drains. Cleared in a forked child, where none has begun.
_lifespans: Final[set[object]] = set()
forget_after_fork(_lifespans.clear)


def lifespan(app: object = None, *, shutdown: bool = True) -> Lifespan:
    """
    Make a lifespan that waits for the loop's work at its end: `FastAPI(lifespan=lifespan)`.

    With a lifespan of your own: `FastAPI(lifespan=lifespan(mine))`; or, inside of it, `async with lifespan(): … yield …`.

    The last lifespan of a process to end waits for the work of all runtimes, up to their `exit_timeout`. It then shuts down the shared
    runtime: cancels unfinished work, names it in the log, and closes daemons and resources. The next use starts that runtime afresh. A
    `Runtime` that you made is waited for too, but you shut it down. The server's loop is not blocked meanwhile.

    Args:
        app: Your own lifespan, an async generator function or an `@asynccontextmanager`; it ends first. (Or the application, which the
            framework passes.)
        shutdown: False only waits, for a process that goes on: `FastAPI(lifespan=lifespan(shutdown=False))`.
    """
    if not inspect.isasyncgenfunction(inspect.unwrap(app) if callable(app) else app):
        return Lifespan(None, None, shutdown)
    return Lifespan(asynccontextmanager(app) if inspect.isasyncgenfunction(app) else app, None, shutdown)


class Lifespan:
    """An async context manager that waits for the work at its end. Calling it with an application returns another, for that one."""

    def __init__(self, own: Any, app: object, shutdown: bool) -> None:
        self._own = own
        self._app = app
        self._shutdown = shutdown
        self._stack = AsyncExitStack()

    def __call__(self, app: object) -> Lifespan:
        """Make the lifespan of *app*."""
        return Lifespan(self._own, app, self._shutdown)

    async def __aenter__(self) -> Any:
        async with AsyncExitStack() as stack:
            _lifespans.add(self)
            stack.push_async_callback(self._end)
            state = None if self._own is None else await stack.enter_async_context(self._own(self._app))
            self._stack = stack.pop_all()
        # The state that the framework passes to each request.
        return state

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    async def _end(self) -> None:
        _lifespans.discard(self)
        if not _lifespans and not _on_the_loop_itself():
            await _off_the_loop(partial(_finish, self._shutdown))


def with_lifespan(app: Application, *, shutdown: bool = True) -> Application:
    """
    Wrap an ASGI application, so that its end waits for the work: `application = with_lifespan(get_asgi_application())`.

    The application may have a lifespan of its own, or none, as Django. Its own begins and ends as before. After that, and before the
    server is told of the end, the work is waited for as with `lifespan`.

    Args:
        app: The application, by the ASGI 3 protocol.
        shutdown: False only waits, for a process that goes on.

    Raises:
        NotAsyncError: if *app* can't be called.
    """
    if not callable(app):
        close_unstarted(app)
        raise NotAsyncError(f"with_lifespan() takes an ASGI application, and {app!r} can't be called.")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _converse(app, Lifespan(None, None, shutdown), scope, receive, send)
        else:
            await app(scope, receive, send)

    return application


_STARTED: Final = ("lifespan.startup.complete", "lifespan.startup.failed")
_ENDED: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")


async def _converse(app: Application, span: Lifespan, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass the lifespan messages between server and application; answer for an application that does not know the protocol."""
    # The types of all messages so far, in both directions.
    said: set[str] = set()

    async def hear() -> Message:
        message = await receive()
        said.add(message["type"])
        return message

    async def say(message: Message) -> None:
        said.add(message["type"])
        if message["type"] in _ENDED:
            await stack.aclose()
        await send(message)

    async with AsyncExitStack() as stack:
        # Ended by `say`, before the server is told of the end; or here, if the application ends without a message.
        await stack.enter_async_context(span)
        try:
            await app(scope, hear, say)
        except Exception:
            # As servers do it: an application that raises before its first message does not know the protocol.
            if said.intersection(_STARTED):
                raise
        if said.isdisjoint(_STARTED):
            if "lifespan.startup" not in said:
                await hear()
            await say({"type": "lifespan.startup.complete"})
            await hear()
            await say({"type": "lifespan.shutdown.complete"})


def _on_the_loop_itself() -> bool:
    """Whether the server itself runs as work on the shared loop. Then it ends at exit, and the work is waited for there."""
    return shared_runtime()._life.thread.is_current()


def _finish(shutdown: bool) -> None:
    since = time.monotonic()
    wait_in_the_middle()
    if shutdown:
        runtime = shared_runtime()
        deadline = runtime._settings.exit_timeout
        runtime.shutdown(None if deadline is None else max(0.0, since + deadline - time.monotonic()))


async def _off_the_loop(call: Callable[[], None]) -> None:
    if who_runs_here() is not None:
        await sys.modules["trio"].to_thread.run_sync(call, abandon_on_cancel=True)
        return
    done: Future[None] = Future()
    # Begun, and so not to be cancelled: the server may cancel its wait.
    done.set_running_or_notify_cancel()

    def make() -> None:
        try:
            call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    # Not in the default executor of the server's loop, whose jobs may wait for the work that is drained here.
    beside(make, "omniloop-lifespan")
    await asyncio.wrap_future(done)
