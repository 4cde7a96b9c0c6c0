"""The guests: what the core has to know of other libraries. Each guest is loaded when its library is, and hooks itself in."""

import os
import sys
from typing import TYPE_CHECKING

from .. import _hooks

if TYPE_CHECKING:
    # Loaded by name. These imports are for tools that search for imports, such as PyInstaller.
    from . import asgiref as asgiref
    from . import pyodide as pyodide
    from . import surroundings as surroundings
    from . import trio as trio
    from . import uvloop as uvloop


def _is_told_by_system() -> bool:
    # This is process 1 of a container, or was started by it.
    return os.getpid() == 1 or os.getppid() == 1 or not os.environ.keys().isdisjoint(_VARIABLES)


_VARIABLES = ("KUBERNETES_SERVICE_HOST", "SYSTEMD_EXEC_PID")

_hooks.waits.offer(f"{__name__}.asgiref", "asgiref.sync", "asgiref.local")
# The library in which trio stores its name, and which trio loads.
_hooks.elsewhere.offer(f"{__name__}.trio", "sniffio")
_hooks.surroundings.offer(
    f"{__name__}.surroundings",
    "uwsgi",
    "gevent.monkey",
    "eventlet.patcher",
    "billiard.process",
    "uvicorn",
    also=_is_told_by_system,
)
_hooks.polls.offer(f"{__name__}.uvloop", "uvloop.loop")
if sys.platform == "emscripten":
    _hooks.host.offer(f"{__name__}.pyodide", "pyodide.webloop")
_hooks.LOOPS["uvloop"] = f"{__name__}.uvloop"
