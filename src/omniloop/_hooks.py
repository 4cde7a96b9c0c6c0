"""
What guests hook into: modules of this package that know another library, as the core knows none.

A guest is offered by the name of the library's module that it waits for, and imported when that is loaded: who does not use the library
pays one look into `sys.modules` for each `run`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor
    from types import FrameType

    class Waits(Protocol):
        """A guest that has a part in blocking waits: `run` leaves them to it."""

        def run(self, runtime: Any, coro: Any, timeout: float | None, frame: FrameType) -> Any:
            """Submit *coro* to *runtime*, wait until it is done, and return its task; close it if that is refused."""

        def serve(self, loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
            """A thread is about to run *loop*, whose workers are *spare*. May be said again."""

        def leave(self, loop: asyncio.AbstractEventLoop) -> None:
            """The *loop* is over."""

    class Host(Protocol):
        """A guest whose loop serves where no thread can be started: it runs in the one thread, and is never replaced or closed."""

        # A `LoopThread` that starts none.
        Thread: Any
        # What to do where a wait would block that thread, as a sentence.
        INSTEAD: str

        def loop(self) -> asyncio.AbstractEventLoop:
            """The loop that is there already."""
            ...

        def can_wait(self) -> bool:
            """Tell whether the loop can go on while the calling code blocks."""
            ...

        def wait(self, done: asyncio.Future[None], timeout: float | None) -> None:
            """Block until *done* is, or for *timeout* seconds; the loop goes on meanwhile."""


# By the library's module: the guest's, as long as that is not loaded.
_offered: Final[dict[str, str]] = {}

# The one that has a part in blocking waits.
_waits: list[Waits] = []

# The one that has a loop, where no thread can be started.
_host: list[Host] = []


def offer(library: str, guest: str) -> None:
    """Have the module *guest* of this package imported when the module *library* is loaded."""
    _offered[library] = guest


def take_part_in_waits(guest: Waits) -> None:
    """Leave the blocking waits to *guest*."""
    _waits[:] = [guest]


def take_the_loop_of(host: Host) -> None:
    """Have the loop of *host* serve."""
    _host[:] = [host]


def host() -> Host | None:
    """The guest that has a loop, where no thread can be started."""
    if sys.platform != "emscripten":
        # Also where a tool has imported all modules of this package.
        return None
    let_in()
    return _host[0] if _host else None


def let_in() -> None:
    """Import the guests whose libraries have been loaded meanwhile."""
    if _offered:
        for library in list(_offered):
            if library in sys.modules:
                # The interpreter ends, and imports no more: then its library serves nobody either.
                with suppress(ImportError, KeyError):
                    import_module(_offered[library])
                    del _offered[library]


def guest_of_waits() -> Waits | None:
    """The guest that has a part in blocking waits, if its library is loaded."""
    let_in()
    return _waits[0] if _waits else None


def serve(loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
    """Tell the guest that a thread is about to run *loop*."""
    if (guest := guest_of_waits()) is not None:
        guest.serve(loop, spare)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """Tell the guest that *loop* is over."""
    for guest in _waits:
        guest.leave(loop)
