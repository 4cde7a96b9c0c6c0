"""SIGTERM drains, if the settings say so; and code can ask whether it runs in a signal handler."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from .._cpython import is_owned
from .._hooks import elsewhere
from .._report import callers
from .exit import beside, code_of, drain_at_exit, drain_no_longer_than, end_with, ends, flush_streams, is_idle, put_off
from .fork import is_multiprocessing_child

if TYPE_CHECKING:
    from .._settings import Sigterm

# The signals that ask a process to end. On Windows nobody can send SIGTERM, and CTRL_BREAK takes its place.
_ENDING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name))

# How many seconds a drain may take while a parent waits in terminate().
_BRIEFLY: Final = 5.0


# Derived, because a program may have vendored the package under another name.
_PACKAGE: Final = __name__.removesuffix("._process.signals")

# A signal handler runs on top of a frame that goes on only when the handler has returned. So it must not wait for what that frame holds:
# our start, shutdown or drain; or the lock of a module that is being imported, or of a logging handler.
_HOLDING: Final = frozenset({"importlib", "_frozen_importlib", "logging"})

# Our functions that only wait for work, and hold nothing.
_WAITING: Final = frozenset(
    (f"{_PACKAGE}.{module}", function)
    for module, functions in {
        "_runtime": ("run", "_run_to_end", "_run_task"),
        "_work.task": ("result", "exception", "_wait", "_wait_until_done", "_wait_for", "_wait_here"),
        "_life.waits": ("wait", "_wait_long"),
    }.items()
    for function in functions
)


def in_signal_handler() -> bool:
    """Tell whether the handler of a signal runs in this thread, whoever has called it."""
    return _handler() is not None


def handler_must_not_wait() -> bool:
    """Tell whether a signal handler runs in this thread and has interrupted code that may hold what a drain waits for."""
    handler = _handler()
    return handler is not None and _may_hold(handler.f_back)


def _handler() -> FrameType | None:
    if threading.current_thread() is not threading.main_thread():
        return None
    codes = {code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return next((frame for frame in callers(sys._getframe(2)) if frame.f_code in codes), None)


def _may_hold(innermost: FrameType | None) -> bool:
    """Tell whether *innermost*, or one of its callers, may hold what a drain waits for."""
    start = threading.Thread.start.__code__
    for frame in callers(innermost):
        module = frame.f_globals.get("__name__")
        if frame.f_code is start:
            return True
        if isinstance(module, str) and (
            module.partition(".")[0] in _HOLDING or f"{module}.".startswith(f"{_PACKAGE}.")
        ):
            if (module, frame.f_code.co_name) not in _WAITING:
                return True
            # For a moment a wait holds the lock under which the outcome is set.
            meeting = frame.f_locals.get("meeting")
            if meeting is not None and is_owned(meeting.lock):
                return True
    return False


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in this process. A terminal sends it to all its processes, and the parent decides what becomes of this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def set_up_sigterm(sigterm: Sigterm | None) -> None:
    """
    Have SIGTERM (on Windows CTRL_BREAK) finish the work before the process dies of it, if *sigterm* says so; otherwise undo that.

    Replaces only the default action. Any other handler decides for itself what becomes of the process: one that ends it reaches the exit
    hooks, which drain; one that goes on needs its loop, which a drain in the handler would block.

    Main thread only, like all signal handlers: ValueError elsewhere, if there is something to set.
    """
    if ends():
        # Such a signal has come already, perhaps in the middle of this start. The next one ends the process at once.
        return
    brief = sigterm == "children" and is_multiprocessing_child()
    for number in _ENDING:
        handler = signal.getsignal(number)
        if sigterm == "drain" or brief:
            if not _is_ours(handler):
                if (handler is not signal.SIG_DFL and not _drains(handler)) or _leads_to_ours(handler, number):
                    continue
                _former[number] = handler
            signal.signal(number, _drain_briefly if brief else _drain)
        elif _is_ours(handler):
            signal.signal(number, _former[number])


def sigterm_handler() -> object:
    """Return what handles a SIGTERM now; the default action if that follows a drain of ours."""
    handler = signal.getsignal(signal.SIGTERM)
    return signal.SIG_DFL if _drains(handler) else handler


def _is_ours(handler: object) -> bool:
    return handler is _drain or handler is _drain_briefly


def _drains(handler: object) -> bool:
    """Tell whether *handler* is ours, or that of another (vendored) copy of the package, which drains its own work and then dies."""
    module = str(getattr(handler, "__module__", ""))
    return module.endswith("._process.signals") and getattr(handler, "__name__", "") in ("_drain", "_drain_briefly")


def _leads_to_ours(handler: Any, number: int) -> bool:
    """Tell whether *handler*, of another copy of the package, leads to ours when it has drained, perhaps through further copies."""
    while _drains(handler) and not _is_ours(handler):
        handler = handler.__globals__["_former"][number]
    return _is_ours(handler)


# What handles each signal once we have drained: the default action, or the handler of another copy, which has its own work to finish.
_former: Final[dict[int, Any]] = {}
_dies = False


def _drain(number: int, frame: FrameType | None) -> None:
    # So that the process ends as it would without us, with the same exit status; and a second SIGTERM ends it at once.
    signal.signal(number, _former[number])
    # In case the exit hooks end first, or no thread can be started.
    end_with(partial(_die, number))
    held = _may_hold(frame)
    if held or _a_loop_runs_here():
        try:
            # The interrupted code goes on meanwhile, such as a loop with its requests, and whatever the work needs of it.
            beside(partial(_drain_and_die, number), "omniloop-sigterm")
        except RuntimeError:
            # The interpreter ends, or no thread can be started.
            if held:
                put_off()
                return
        else:
            return
    _drain_and_die(number)


def _drain_briefly(number: int, frame: FrameType | None) -> None:
    """Drain briefly in a child of multiprocessing: its parent waits for it, and a `with Pool()` would be held up for the whole deadline."""
    if is_idle():
        signal.signal(number, _former[number])
        os.kill(os.getpid(), number)
    drain_no_longer_than(_BRIEFLY)
    _drain(number, frame)


def _drain_and_die(number: int) -> None:
    try:
        drain_at_exit()
    finally:
        _die(number)


def _die(number: int) -> None:
    global _dies
    if _dies:
        # The first signal has reached the next copy, which may be draining in a thread: a second would end it.
        return
    _dies = True
    try:
        flush_streams()
    finally:
        os.kill(os.getpid(), number)


def _a_loop_runs_here() -> bool:
    if asyncio._get_running_loop() is not None:
        return True
    other = elsewhere()
    return other is not None and other.serves_here()
