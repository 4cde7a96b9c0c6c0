"""The servers, systems and libraries that a process may run under: how they change threads, and how they end the process."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any, Final

from .. import _hooks
from .._process.fork import forget_after_fork, is_multiprocessing_child
from .._report import say

_told = False

# The names of the inits that `docker run --init` and `podman run --init` start, and that images contain.
_INITS: Final = frozenset({"tini", "tini-static", "docker-init", "dumb-init", "catatonit", "podman-init"})


def warn_of_threads() -> None:
    """Warn if threads do not work as usual: under uWSGI without threads, and where threads are greenlets."""
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


def tell_what_a_stop_loses(name: str, handler: object, sigterm: str | None) -> None:
    """Log, once in a process, what a SIGTERM with the handler *handler* will lose, and what to set; nothing if it loses nothing."""
    global _told
    if _told:
        return
    line = (
        _lost_in_prefork_child()
        or _lost_under_uvicorn(handler)
        or (_lost_by_default(sigterm) if handler is signal.SIG_DFL else None)
    )
    if line is not None:
        _told = True
        say("%s: %s", name, line)


def _lost_in_prefork_child() -> str | None:
    # Celery's children come from billiard, its own multiprocessing. If anybody listens to the signal, it is taken that they drain.
    process: Any = sys.modules.get("billiard.process")
    signals: Any = sys.modules.get("celery.signals")
    if process is None or signals is None or getattr(process.current_process(), "_parent_pid", None) is None:
        return None
    if getattr(signals.worker_process_shutdown, "receivers", True):
        return None
    return (
        "Celery ends this process without any exit hook of Python, and what is left to go() and not done by then is lost. Call "
        "omniloop.shutdown() in a handler of the signal worker_process_shutdown, which is in celery.signals."
    )


def _lost_under_uvicorn(handler: object) -> str | None:
    # The handler is a method of uvicorn's server; gunicorn's UvicornWorker has the same handler.
    server: Any = getattr(handler, "__self__", None)
    if type(server).__module__.partition(".")[0] != "uvicorn":
        return None
    asgi: Any = sys.modules.get("omniloop.ext.asgi")
    if asgi is not None and (asgi._lifespans or not getattr(server, "started", False)):
        # The end of a lifespan drains; while the application is imported or starts, its lifespan is still to come.
        return None
    return (
        "on SIGTERM uvicorn ends this process without any exit hook of Python, and what is left to go() and not done by then is "
        "lost. Let the application's lifespan wait for it: FastAPI(lifespan=omniloop.ext.asgi.lifespan), or, for any ASGI "
        "application, app = omniloop.ext.asgi.with_lifespan(app)."
    )


def _lost_by_default(sigterm: str | None) -> str | None:
    if sigterm == "drain" or is_multiprocessing_child():
        return None
    say_drain = 'Set OMNILOOP_SIGTERM=drain in its environment, or call configure(sigterm="drain") in the main thread.'
    pid = os.getpid()
    if pid == 1:
        # The kernel delivers to process 1 of a container only the signals that it has handlers for.
        return (
            "this is process 1 and has no handler of SIGTERM, so that a stop of the container waits until it kills, and what is left "
            f"to go() and not done by then is lost. {say_drain}"
        )
    # systemd started this process, or the shell that started it. The variable alone proves nothing: a
    # terminal's shell inherits it as well.
    if os.environ.get("SYSTEMD_EXEC_PID") in (str(pid), str(os.getppid())):
        where = "systemd"
    elif "KUBERNETES_SERVICE_HOST" in os.environ:
        where = "Kubernetes"
    elif (init := _init_of_container()) is not None:
        where = f"{init}, which is process 1 and passes signals on,"
    else:
        return None
    return (
        f"{where} stops this process by SIGTERM, which it has no handler of, and what is left to go() and not done by then is lost. "
        f"{say_drain}"
    )


def _init_of_container() -> str | None:
    """Return the name of process 1, if it has started this process and is an init of containers: those pass on each signal."""
    if os.getppid() != 1:
        return None
    try:
        with open("/proc/1/comm", encoding="utf-8") as file:
            name = file.read().strip()
    except (OSError, ValueError):
        return None
    return name if name in _INITS else None


def _green_library() -> str | None:
    """Return the name of the library that has turned threads into greenlets, or None."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None


def _forget() -> None:
    """In a forked child: log anew, because a child is stopped in its own way."""
    global _told
    _told = False


forget_after_fork(_forget)
_hooks.surroundings.take(sys.modules[__name__])
