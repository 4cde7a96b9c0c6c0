"""
On Pyodide the runtime uses the loop of the page: there are no threads, and no other loop could run.

The page's loop is neither changed nor closed; it ends with the page, without any exit hook. Python can block there only if the browser (or
Node) can switch its stack, and only in code that was called in a way that allows it: `pyodide.ffi.can_run_sync` tells.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from .. import _hooks
from .._life.thread import LoopThread, Run

INSTEAD: Final = "Await the work: await go(work())."


class Thread(LoopThread):
    """The one thread of the page, which runs its loop already."""

    def own(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note the loop, which the page owns: there is nothing to set up."""
        self.loop = loop

    def start(self, first: Callable[[], object]) -> None:
        """Have the page's loop call *first*."""
        self._current = run = Run()
        run.thread, run.ident = threading.current_thread(), threading.get_ident()
        self.post(first)


def loop() -> asyncio.AbstractEventLoop:
    """The page's loop."""
    return asyncio.get_event_loop_policy().get_event_loop()


def can_wait() -> bool:
    """Tell whether the stack of the calling code can be switched."""
    return bool(_ffi().can_run_sync())


def wait(done: asyncio.Future[None], timeout: float | None) -> None:
    """Let the page's loop run until *done* is done, or for *timeout* seconds."""
    _ffi().run_sync(asyncio.wait([done], timeout=timeout))


def _ffi() -> Any:
    return sys.modules["pyodide.ffi"]


if sys.platform == "emscripten":
    # Not if a tool imports all modules of this package elsewhere.
    _hooks.host.take(sys.modules[__name__])
