"""One omnipresent event loop: submit async work from anywhere; it is held until done, and finished before the program exits."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._errors import (
    AlreadyRunningError,
    CannotStartError,
    ClosedError,
    ForkedError,
    FullError,
    LoopDiedError,
    NotAsyncError,
    NotPicklableError,
    OmniloopError,
    ProcessDiedError,
    SettingError,
    WaitTimeoutError,
    WouldDeadlockError,
    WrongLoopError,
)
from ._report import Failure
from ._runtime import Runtime
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
from ._task import Task

if TYPE_CHECKING:
    from ._background import background as background
    from ._enter import enter as enter
    from ._groups import TaskGroup as TaskGroup
    from ._groups import map as map  # noqa: A004 - as `Executor.map`
    from ._iterate import Iteration as Iteration
    from ._iterate import aiterate as aiterate
    from ._iterate import iterate as iterate
    from ._processes import ProcessPool as ProcessPool
    from ._processes import to_process as to_process
    from ._queues import Queue as Queue
    from ._queues import queue as queue
    from ._resources import Resource as Resource
    from ._resources import resource as resource
    from ._stats import Stats as Stats

# What is dear to import, and its module: loaded when the name is first used.
_LAZY = {
    "Iteration": "_iterate",
    "ProcessPool": "_processes",
    "Queue": "_queues",
    "Resource": "_resources",
    "Stats": "_stats",
    "TaskGroup": "_groups",
    "aiterate": "_iterate",
    "background": "_background",
    "enter": "_enter",
    "iterate": "_iterate",
    "map": "_groups",
    "queue": "_queues",
    "resource": "_resources",
    "to_process": "_processes",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    # From now on it is found without coming here.
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "AlreadyRunningError",
    "CannotStartError",
    "ClosedError",
    "Failure",
    "ForkedError",
    "FullError",
    "Iteration",
    "LoopDiedError",
    "NotAsyncError",
    "NotPicklableError",
    "OmniloopError",
    "ProcessDiedError",
    "ProcessPool",
    "Queue",
    "Resource",
    "Runtime",
    "SettingError",
    "Stats",
    "Task",
    "TaskGroup",
    "WaitTimeoutError",
    "WouldDeadlockError",
    "WrongLoopError",
    "aiterate",
    "background",
    "call_at",
    "call_later",
    "call_soon",
    "configure",
    "dump",
    "enter",
    "every",
    "flush",
    "go",
    "iterate",
    "map",
    "queue",
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
