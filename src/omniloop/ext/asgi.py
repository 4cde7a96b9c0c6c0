"""
`lifespan`, for FastAPI and Starlette, and `with_lifespan`, for any ASGI application: at its end what is left to the loop is done.

A server that ends its process without Python's exit (uvicorn, at SIGTERM) gives no exit hook a chance. It does wait for the end of
the application's lifespan, when all requests are answered; and its own loop goes on meanwhile, so that nothing here may block it.
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
from omniloop._clock import time
from omniloop._errors import NotAsyncError
from omniloop._hooks import who_runs_here
from omniloop._process.exit import beside, wait_in_the_middle
from omniloop._process.fork import forget_after_fork
from omniloop._shared import shared_runtime

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Those of this process that have begun and not ended: while there is one, an end of it drains. In a forked child they are yet to begin.
_lifespans: Final[set[object]] = set()
forget_after_fork(_lifespans.clear)


def lifespan(app: object = None, *, shutdown: bool = True) -> Lifespan:
    """
    The lifespan of an application at whose end the work is done: `FastAPI(lifespan=lifespan)`.

    Around a lifespan of one's own: `FastAPI(lifespan=lifespan(mine))`; or, in it, `async with lifespan(): … yield …`.

    The last lifespan of a process to end waits for the work of all runtimes, up to their `exit_timeout`, and then shuts the shared
    one down: cancels what is left, names it in the log, and closes daemons and resources. The next use starts it afresh. A `Runtime`
    of one's own is waited for, and shut down by whoever made it. The server's loop goes on meanwhile.

    Args:
        app: One's own lifespan, an async generator function or an `@asynccontextmanager`; its end comes first. (Or the application,
            which the framework gives.)
        shutdown: False to wait only, in a process that goes on: `FastAPI(lifespan=lifespan(shutdown=False))`.
    """
    if not inspect.isasyncgenfunction(inspect.unwrap(app) if callable(app) else app):
        return Lifespan(None, None, shutdown)
    return Lifespan(asynccontextmanager(app) if inspect.isasyncgenfunction(app) else app, None, shutdown)


class Lifespan:
    """An async context manager, and the function of an application that makes one: what `lifespan` returns."""

    def __init__(self, own: Any, app: object, shutdown: bool) -> None:
        self._own = own
        self._app = app
        self._shutdown = shutdown
        self._stack = AsyncExitStack()

    def __call__(self, app: object) -> Lifespan:
        """Begin one, for *app*."""
        return Lifespan(self._own, app, self._shutdown)

    async def __aenter__(self) -> Any:
        async with AsyncExitStack() as stack:
            _lifespans.add(self)
            stack.push_async_callback(self._end)
            state = None if self._own is None else await stack.enter_async_context(self._own(self._app))
            self._stack = stack.pop_all()
        # What the framework gives to each request.
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
    Wrap an ASGI application, with a lifespan of its own or (as Django) without: `application = with_lifespan(get_asgi_application())`.

    Its own lifespan begins and ends as before; then, before the server is told of the end, the work is done as `lifespan` says.

    Args:
        app: The application, by the ASGI 3 protocol.
        shutdown: False to wait only, in a process that goes on.

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
    """Have the application and the server agree on start and end; where the application does not know of them, speak for it."""
    # What was said so far, by either.
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
        # Closed before the server is told of the end; or here, if the application ends without a word.
        await stack.enter_async_context(span)
        try:
            await app(scope, hear, say)
        except Exception:
            # As servers do: one that raises before it has said anything does not know the protocol.
            if said.intersection(_STARTED):
                raise
        if said.isdisjoint(_STARTED):
            if "lifespan.startup" not in said:
                await hear()
            await say({"type": "lifespan.startup.complete"})
            await hear()
            await say({"type": "lifespan.shutdown.complete"})


def _on_the_loop_itself() -> bool:
    """Tell whether the server is itself work on the shared loop: that ends at exit, and drains there."""
    thread = shared_runtime()._life.thread
    return thread is not None and thread.is_current()


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

    def make() -> None:
        try:
            call()
        except BaseException as error:
            _answer(done, partial(done.set_exception, error))
        else:
            _answer(done, partial(done.set_result, None))

    # Not in the default executor of the server's loop: what is in there may wait for the work.
    beside(make, "omniloop-lifespan")
    await asyncio.wrap_future(done)


def _answer(done: Future[None], answer: Callable[[], None]) -> None:
    # False if the server gave up waiting.
    if done.set_running_or_notify_cancel():
        answer()
