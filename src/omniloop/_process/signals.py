"""What signals do: SIGTERM drains, if that is wanted; and whether the calling code is a handler."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Final

from .exit import beside, code_of, drain_at_exit, drain_no_longer_than, flush_streams, is_idle
from .hosts import is_multiprocessing_child

if TYPE_CHECKING:
    from .._settings import Sigterm

# Seconds. Who calls terminate() waits for the end.
_BRIEFLY: Final = 5.0


def in_signal_handler() -> bool:
    """Tell whether a function that is set for a signal is under way in this thread, whoever has called it."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def ignore_interrupts() -> None:
    """Have Ctrl-C, which goes to all processes of a terminal, do nothing in this one: what becomes of it is for its parent to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def set_up_sigterm(sigterm: Sigterm | None) -> None:
    """
    Have SIGTERM finish the work before the process dies of it, as *sigterm* says; or no longer.

    Over the default action alone. Any other handler decides what becomes of the process: one that ends it comes to the exit hooks,
    which drain; one that goes on needs its loop, which a drain in the handler would block.

    Main thread only, as all signal handlers: ValueError elsewhere, if there is something to set.
    """
    handler = signal.getsignal(signal.SIGTERM)
    brief = sigterm == "children" and is_multiprocessing_child()
    if sigterm == "drain" or brief:
        if handler is signal.SIG_DFL or _is_ours(handler):
            signal.signal(signal.SIGTERM, _drain_briefly if brief else _drain)
    elif _is_ours(handler):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def sigterm_handler() -> object:
    """What a SIGTERM meets now; the default action where that comes after a drain of ours."""
    handler = signal.getsignal(signal.SIGTERM)
    return signal.SIG_DFL if _is_ours(handler) else handler


def _is_ours(handler: object) -> bool:
    return handler is _drain or handler is _drain_briefly


def _drain(number: int, frame: FrameType | None) -> None:
    # As it would have been without us, to the exit status; and a second SIGTERM ends it at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _a_loop_runs_here():
        try:
            # The loop goes on meanwhile: its requests, and what the work wants of it.
            beside(_drain_and_die, "omniloop-sigterm")
        except RuntimeError:
            # The interpreter ends, or there is no room for a thread.
            pass
        else:
            return
    _drain_and_die()


def _drain_briefly(number: int, frame: FrameType | None) -> None:
    """In a child of multiprocessing, whose parent means it and waits: a `with Pool()` would be held up by the whole deadline."""
    if is_idle():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    drain_no_longer_than(_BRIEFLY)
    _drain(number, frame)


def _drain_and_die() -> None:
    try:
        drain_at_exit()
        flush_streams()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _a_loop_runs_here() -> bool:
    trio = sys.modules.get("trio")
    return asyncio._get_running_loop() is not None or (trio is not None and bool(trio.lowlevel.in_trio_run()))
