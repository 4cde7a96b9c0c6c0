"""The runtime that the whole process shares; its methods are the functions of the package."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from ._process.signals import set_up_sigterm
from ._runtime import Runtime

# Making it starts nothing; its settings are read from the environment on first use.
_runtime: Final = Runtime._make_shared()

# Bound methods, as in the standard library's `random`: help(), an editor and the debugger show the contract, and a call costs no extra
# frame.
go = _runtime.go
try_go = _runtime.try_go
call_soon = _runtime.call_soon
call_later = _runtime.call_later
call_at = _runtime.call_at
every = _runtime.every
to_thread = _runtime.to_thread
run = _runtime.run
flush = _runtime.flush
shutdown = _runtime.shutdown
configure = _runtime.configure
tasks = _runtime.tasks
stats = _runtime.stats
dump = _runtime.dump


if os.environ.get("OMNILOOP_SIGTERM") == "drain":
    # Set at import and not on first use, because a stop may come before that, while exit hooks of others wait for their own work.
    # Outside the main thread it can't be set; then the first use sets it, or raises.
    with suppress(ValueError):
        set_up_sigterm("drain")


def shared_runtime() -> Runtime:
    """
    Return the runtime that the module's functions use. It stays the same; after `shutdown()` it starts afresh.

    Example:
        >>> from omniloop import go, shared_runtime
        >>> go.__self__ is shared_runtime()
        True
    """
    return _runtime


def chosen(runtime: Runtime | None) -> Runtime:
    """Return *runtime*, or the shared one if it is None; TypeError if it is no Runtime."""
    if runtime is None:
        return _runtime
    if isinstance(runtime, Runtime):
        return runtime
    raise TypeError(f"runtime={runtime!r}: give a Runtime, or None for the one that the process shares.")
