"""What signals do: SIGTERM drains, if that is wanted; and whether the calling code is a handler."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any

from .exit import drain_at_exit, flush_streams, wait_for_all
from .fork import forget_after_fork


def in_signal_handler() -> bool:
    """Tell whether the calling code was called by a Python signal handler, and not by the program."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # A handler is given the frame that it interrupts, and that is its caller: nobody calls one by hand like that.
        if frame.f_code in codes and any(
            value is frame.f_back or (isinstance(value, tuple) and frame.f_back in value)
            for value in frame.f_locals.values()
        ):
            return True
        frame = frame.f_back
    return False


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        # B004 takes it for a question whether it can be called.
        handler = getattr(handler, "__func__", None) or getattr(type(handler), "__call__", None)  # noqa: B004
    return getattr(handler, "__code__", None)


def ignore_interrupts() -> None:
    """Have Ctrl-C, which goes to all processes of a terminal, do nothing in this one: what becomes of it is for its parent to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_Handler = Callable[[int, FrameType | None], Any] | int | None
_draining_on_sigterm = False


def drain_on_sigterm(wanted: bool) -> None:
    """
    Drain on SIGTERM, then let happen what would have happened; or no longer.

    Main thread only, as all signal handlers: ValueError elsewhere.
    """
    handler = signal.getsignal(signal.SIGTERM)
    ours = handler if isinstance(handler, partial) and handler.func is _on_sigterm else None
    if wanted and not ours:
        if handler is signal.SIG_IGN:
            # The process was told to survive SIGTERM; there is no end to drain for.
            return
        # Each knows the one before it: a handler that the program set in between may call an earlier one of ours.
        signal.signal(signal.SIGTERM, partial(_on_sigterm, handler))
    elif ours and not wanted:
        (former,) = ours.args
        signal.signal(signal.SIGTERM, former if former is not None else signal.SIG_DFL)


def _on_sigterm(former: _Handler, number: int, frame: FrameType | None) -> None:
    global _draining_on_sigterm
    if callable(former):
        # It decides what becomes of the process, so nothing is closed yet.
        if not _draining_on_sigterm:
            _draining_on_sigterm = True
            try:
                wait_for_all()
            finally:
                _draining_on_sigterm = False
        former(number, frame)
        return
    if not _draining_on_sigterm:
        _draining_on_sigterm = True
        drain_at_exit()
        flush_streams()
    # As it would have been without us, to the exit status. A second SIGTERM during the drain comes here at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _forget() -> None:
    """In a forked child: the drain that goes on is the parent's."""
    global _draining_on_sigterm
    _draining_on_sigterm = False


forget_after_fork(_forget)
