"""One omnipresent event loop: submit async work from anywhere; it is held until done, and finished before the program exits."""

from ._errors import (
    AlreadyRunningError,
    CannotStartError,
    ClosedError,
    ForkedError,
    LoopDiedError,
    NotAsyncError,
    OmniloopError,
    SettingError,
    WaitTimeoutError,
    WouldDeadlockError,
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
)
from ._stats import Stats
from ._task import Task

__all__ = [
    "AlreadyRunningError",
    "CannotStartError",
    "ClosedError",
    "Failure",
    "ForkedError",
    "LoopDiedError",
    "NotAsyncError",
    "OmniloopError",
    "Runtime",
    "SettingError",
    "Stats",
    "Task",
    "WaitTimeoutError",
    "WouldDeadlockError",
    "call_at",
    "call_later",
    "call_soon",
    "configure",
    "dump",
    "every",
    "flush",
    "go",
    "run",
    "shared_runtime",
    "shutdown",
    "stats",
    "tasks",
    "to_thread",
]
