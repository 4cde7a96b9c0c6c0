"""Ctrl-C at each line of a piece of code, one after the other, as a signal handler may raise it."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any


def interrupted_at_each_line(
    attempt: Callable[[Callable[[], AbstractContextManager[None]]], None], *files: str, through: tuple[str, ...] = ()
) -> int:
    """
    Call *attempt* again and again, and return how often it was interrupted.

    It gets a context manager. In that block KeyboardInterrupt is raised at a line of *files*, which are ends of paths: at the first one in the
    first attempt, at the second in the next, until there are no more. Code that *files* call is entered from *through* alone.
    """
    former = sys.gettrace()
    left = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        file = frame.f_code.co_filename
        if not file.endswith(files):
            return trace if file.endswith(through) else None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    @contextlib.contextmanager
    def interrupted() -> Iterator[None]:
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)

    try:
        for lines in itertools.count():
            left = lines + 1
            attempt(interrupted)
            if left > 0:
                return lines
    finally:
        sys.settrace(former)
    raise AssertionError("count() has no end")
