"""One omnipresent event loop: submit async work from anywhere; it is held until done, and finished before the program exits."""

from __future__ import annotations

import _thread
import importlib
import sys
from typing import TYPE_CHECKING

from ._errors import (
    AlreadyRunningError,
    CannotStartError,
    ClosedError,
    ForkedError,
    FullError,
    LoopDiedError,
    NoResultError,
    NotAsyncError,
    NotPicklableError,
    OmniloopError,
    ProcessDiedError,
    RefusedError,
    SettingError,
    TaskTimeoutError,
    WaitTimeoutError,
    WouldDeadlockError,
    WrongLoopError,
)
from ._report import Failure
from ._report import Hook as Hook
from ._report import Site as Site
from ._runtime import Runtime
from ._settings import WhenFull as WhenFull
from ._shared import (
    call_at,
    call_later,
    call_soon,
    configure,
    dump,
    every,
    flush,
    go,
    run,
    shared_runtime,
    shutdown,
    stats,
    tasks,
    to_thread,
    try_go,
)
from ._work.task import Task

if TYPE_CHECKING:
    # For type checkers; and `_seen` and `_server`, which are loaded by name, for tools that search for imports, such as PyInstaller.
    from . import _seen as _seen
    from ._bridges.background import background as background
    from ._bridges.enter import enter as enter
    from ._bridges.groups import TaskGroup as TaskGroup
    from ._bridges.iterate import Iteration as Iteration
    from ._bridges.iterate import aiterate as aiterate
    from ._bridges.iterate import iterate as iterate
    from ._bridges.map import map as map
    from ._bridges.queue import Queue as Queue
    from ._bridges.queue import queue as queue
    from ._bridges.resource import Resource as Resource
    from ._bridges.resource import resource as resource
    from ._brokers.handover import Delivery as Delivery
    from ._brokers.handover import Engine as Engine
    from ._brokers.handover import Function as Function
    from ._brokers.handover import Sent as Sent
    from ._brokers.handover import current_delivery as current_delivery
    from ._monitor import server as _server  # noqa: F401
    from ._processes.pool import ProcessPool as ProcessPool
    from ._processes.pool import to_process as to_process
    from ._stats import Histogram as Histogram
    from ._stats import Stats as Stats
    from ._stats import Timing as Timing
    from ._twins.blocking import Blocking as Blocking
    from ._twins.blocking import blocking as blocking

try:
    from . import _guests as _guests
except ImportError:
    # The core may be installed without the guests.
    pass

# Names that are expensive to import, by module: loaded when the name is first used.
_LAZY = {
    name: module
    for module, names in {
        "_bridges.background": ["background"],
        "_bridges.enter": ["enter"],
        "_bridges.groups": ["TaskGroup"],
        "_bridges.iterate": ["Iteration", "aiterate", "iterate"],
        "_bridges.map": ["map"],
        "_bridges.queue": ["Queue", "queue"],
        "_bridges.resource": ["Resource", "resource"],
        "_brokers.handover": ["Delivery", "Engine", "Function", "Sent", "current_delivery"],
        "_processes.pool": ["ProcessPool", "to_process"],
        "_stats": ["Histogram", "Stats", "Timing"],
        "_twins.blocking": ["Blocking", "blocking"],
    }.items()
    for name in names
}


# Names of other libraries' functions that users may look for here, and what to use instead.
_ELSEWHERE = {
    "as_completed": "concurrent.futures.as_completed(tasks) takes what go() returns; map(fn, items, ordered=False) starts them too.",
    "create_task": "Use go(coro).",
    "gather": "Start each with go() and ask the tasks for their results; or use TaskGroup, or map(fn, items).",
    "run_coroutine_threadsafe": "Use go(coro).",
    "sleep": "Use asyncio.sleep() in a coroutine, and time.sleep() elsewhere.",
    "spawn": "Use go(coro).",
    "submit": "Use go(coro), or to_thread(fn, *args) for a blocking function.",
    "wait": "concurrent.futures.wait(tasks) takes what go() returns; flush() waits for all.",
}


# The threads that load what is put off. Each late name that this gets asks for it again.
_loading: set[int] = set()


def _load_lazy_imports() -> None:
    """
    Perform the imports that the package's modules have put off, where all imports are lazy (`-X lazy_imports=all`, from 3.15 on).

    A first use of a name in a fork hook, at the end of the interpreter or in a signal handler comes too late for an import.
    """
    me = _thread.get_ident()
    if getattr(sys, "get_lazy_imports", lambda: "normal")() != "all" or me in _loading:
        return
    done: set[str] = set()
    _loading.add(me)
    try:
        # The modules that this loads have put off imports of their own.
        while names := {name for name in list(sys.modules) if f"{name}.".startswith(f"{__name__}.")} - done:
            for module in [sys.modules[name] for name in names]:
                for name in list(vars(module)):
                    # Getting the attribute imports it; reading it from the dictionary does not.
                    getattr(module, name)
            done |= names
    finally:
        _loading.discard(me)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        word = f". {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{word}")
    thing = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    # Stored, so that later look-ups do not come here.
    globals()[name] = thing
    _load_lazy_imports()
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


# Without `map` and `queue`: a star import would hide the built-in and the standard library's module.
__all__ = [
    "AlreadyRunningError",
    "Blocking",
    "CannotStartError",
    "ClosedError",
    "Delivery",
    "Engine",
    "Failure",
    "ForkedError",
    "FullError",
    "Function",
    "Iteration",
    "LoopDiedError",
    "NoResultError",
    "NotAsyncError",
    "NotPicklableError",
    "OmniloopError",
    "ProcessDiedError",
    "ProcessPool",
    "Queue",
    "RefusedError",
    "Resource",
    "Runtime",
    "Sent",
    "SettingError",
    "Stats",
    "Task",
    "TaskGroup",
    "TaskTimeoutError",
    "WaitTimeoutError",
    "WouldDeadlockError",
    "WrongLoopError",
    "aiterate",
    "background",
    "blocking",
    "call_at",
    "call_later",
    "call_soon",
    "configure",
    "current_delivery",
    "dump",
    "enter",
    "every",
    "flush",
    "go",
    "iterate",
    "resource",
    "run",
    "shared_runtime",
    "shutdown",
    "stats",
    "tasks",
    "to_process",
    "to_thread",
    "try_go",
]

_load_lazy_imports()
