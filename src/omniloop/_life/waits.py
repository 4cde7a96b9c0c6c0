"""Knows which thread waits for which: a wait that can never end is an error, not a hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .._process.fork import forget_after_fork

# From the thread that waits to the loop thread that it waits for. One entry a thread, written by that thread alone.
_waits: dict[int, int] = {}


def begin(ident: int) -> bool:
    """
    Note that this thread waits for the thread *ident*; False where that closes a circle. Call `end` afterwards.

    The note is made before the look: of two threads that close a circle at once, at least one sees it.
    """
    me = threading.get_ident()
    _waits[me] = ident
    return ident not in _waits or not _leads_to(ident, me)


def end() -> None:
    """This thread waits no more. (Signal handlers and finalisers do not wait, so that waits are not nested.)"""
    _waits.pop(threading.get_ident(), None)


@contextmanager
def paused() -> Iterator[None]:
    """Around what this thread does in the middle of a wait, and may wait in itself."""
    me = threading.get_ident()
    waited_for = _waits.pop(me, None)
    try:
        yield
    finally:
        if waited_for is not None:
            _waits[me] = waited_for


def _leads_to(start: int, end: int) -> bool:
    seen: set[int] = set()
    ident: int | None = start
    while ident is not None and ident not in seen:
        if ident == end:
            return True
        seen.add(ident)
        ident = _waits.get(ident)
    return False


# In a forked child only the forking thread is left, and it does not wait.
forget_after_fork(_waits.clear)


def imports_now() -> bool:
    """Tell whether this thread is in the middle of an import, and so holds a module's lock."""
    return any(_is_importlib(frame) for frame in _frames(sys._getframe()))


def needs_my_import(ident: int) -> bool:
    """
    Tell whether the thread *ident* waits for the lock of a module that the calling thread is importing.

    Read off the frames: importlib keeps no public record. `_ModuleLock.acquire` and its `owner` are in 3.11 to 3.15.
    """
    me = threading.get_ident()
    for frame in _frames(sys._current_frames().get(ident)):
        if _is_importlib(frame) and frame.f_code.co_name == "acquire":
            lock = frame.f_locals.get("self")
            if getattr(lock, "owner", None) == me:
                return True
    return False


def _is_importlib(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "importlib._bootstrap"


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
