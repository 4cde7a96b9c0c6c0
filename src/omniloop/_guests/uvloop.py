"""Makes uvloop's loop, which the environment selects by its name, and keeps a forked child's copy from the parent's wake-ups."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from .. import _hooks
from .._errors import SettingError, how_to_install


def factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the function that makes the loop; SettingError if uvloop is not installed."""
    if find_spec("uvloop") is None:
        raise SettingError(f"OMNILOOP_LOOP=uvloop, but uvloop is not installed: {how_to_install('uvloop')}.")
    return _new_loop


def _new_loop() -> asyncio.AbstractEventLoop:
    # Imported during a start, which a fork waits for: a child of a fork in the middle of an import can never import that module.
    import uvloop

    return uvloop.new_event_loop()


def stop_polling(loop: asyncio.AbstractEventLoop) -> None:
    """As `_hooks.Polls` says: replace the descriptor by which *loop* polls, which the child shares with its parent, by an empty one."""
    descriptor = getattr(loop, "_get_backend_id", None)
    if descriptor is not None and hasattr(select, "epoll"):
        with suppress(OSError), select.epoll() as nothing:
            os.dup2(nothing.fileno(), descriptor(), inheritable=False)


_hooks.polls.take(sys.modules[__name__])
