"""What the process runs under, and what that makes of threads: uWSGI, gevent and eventlet, multiprocessing."""

from __future__ import annotations

import sys
import warnings


def warn_of_host() -> None:
    """Warn where threads are not what they are elsewhere: under uWSGI without them, and where they are greenlets."""
    if getattr(sys.modules.get("uwsgi"), "has_threads", 1) == 0:
        # Seen on 2.0.21; newer ones always have them.
        warnings.warn(
            "uWSGI runs without threads, so that what is left to go() is done only at the stop, or while the application "
            "waits. Start uWSGI with --enable-threads.",
            RuntimeWarning,
            stacklevel=3,
        )
    if library := _green_library():
        warnings.warn(
            f"{library} has patched threading, so that omniloop's thread is a greenlet of the main thread: go() and run() "
            "work, but no other event loop can run beside it (asyncio.run, async views), and whatever does not yield to "
            f"{library} stops the loop too. Leave threading unpatched, or start without {library}.",
            RuntimeWarning,
            stacklevel=3,
        )


def is_multiprocessing_child() -> bool:
    """Tell whether this process was started by multiprocessing, which ends its children in its own way."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def _green_library() -> str | None:
    """The library that has made greenlets of threads, if one has."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None
