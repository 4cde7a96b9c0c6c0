"""
On Pyodide the omnipresent loop is the page's: there are no threads, and no other loop could run.

Nothing of it is replaced, and it is never closed; it ends with the page, without any exit hook. Python can block there only where the
browser (or Node) can switch its stack, and then only code that was called in a way that allows it: `pyodide.ffi.can_run_sync` says so.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from .. import _hooks
from .._life.thread import LoopThread

INSTEAD: Final = "Await the work: await go(work())."


class Thread(LoopThread):
    """The one thread of the page, which runs its loop already."""

    def _own(self) -> None:
        # The page's.
        pass

    def start(self, first: Callable[[], object]) -> None:
        """Have the page's loop call *first*."""
        self._runner = threading.current_thread()
        self.post(first)


def loop() -> asyncio.AbstractEventLoop:
    """The page's loop."""
    return asyncio.get_event_loop_policy().get_event_loop()


def can_wait() -> bool:
    """Tell whether the stack of the calling code can be switched."""
    return bool(_ffi().can_run_sync())


def wait(done: asyncio.Future[None], timeout: float | None) -> None:
    """Have the page go on until *done* is, or for *timeout* seconds."""
    _ffi().run_sync(asyncio.wait([done], timeout=timeout))


def _ffi() -> Any:
    return sys.modules["pyodide.ffi"]


if sys.platform == "emscripten":
    # Not where a tool imports all modules of this package.
    _hooks.host.take(sys.modules[__name__])
