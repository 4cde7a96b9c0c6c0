"""Makes uvloop's loop, which the environment selects by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

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
