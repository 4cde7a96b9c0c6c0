"""Turns the monitor of the process on and off; nothing of it is loaded before."""

from __future__ import annotations

import importlib
import sys
from typing import Final

from .._errors import CannotStartError
from .._report import say

# By name, because it lies above all that it tells of.
_SERVER: Final = "omniloop._monitor.server"


def turn_on() -> None:
    """Have the monitor listen, if it does not. Raises CannotStartError if it can't."""
    importlib.import_module(_SERVER).start()


def turn_off() -> None:
    """End the monitor, if it was ever turned on."""
    server = sys.modules.get(_SERVER)
    if server is not None:
        server.stop()


def turn_on_at_start() -> None:
    """As `turn_on`, in the start of a runtime, which goes on without a monitor."""
    try:
        turn_on()
    except CannotStartError as error:
        say("%s", error)
    except Exception as error:
        say("The monitor can't listen, because of an error of omniloop's own, which should be reported.", error=error)
