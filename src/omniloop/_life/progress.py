"""Shows one line to a person who waits at a terminal, and to nobody else."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Final, Self, TextIO

# A wait that is over sooner says nothing. Half a second is where people begin to wonder (a guess).
_PATIENCE: Final = 0.5

# Between two looks; the seconds that are left change more slowly.
_REFRESH: Final = 0.25


class Progress:
    """
    How much is left to do, and for how long that is waited for, as a line on stderr; erased when the wait is over.

    Written by the thread that waits, between the slices of its wait. Where stderr is no terminal, the wait is one slice.
    """

    def __init__(self, name: str, remaining: Callable[[], int], wanted: bool) -> None:
        self._name = name
        self._remaining = remaining
        self._stream = _terminal() if wanted else None
        self._start = time.monotonic()
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")

    def acquire(self, gate: Lock, deadline: float | None) -> bool:
        """Acquire *gate*; False at the *deadline*, by `time.monotonic`."""
        while True:
            now = time.monotonic()
            left = math.inf if deadline is None else max(0.0, deadline - now)
            pause = math.inf
            if self._stream is not None:
                quiet = self._start + _PATIENCE - now
                if quiet <= 0:
                    self._show(left)
                pause = quiet if quiet > 0 else _REFRESH
            # Not a wait without end, even without a deadline: that could not be interrupted on Windows.
            if gate.acquire(timeout=min(left, pause, threading.TIMEOUT_MAX)):
                return True
            if left <= pause:
                return False

    def _show(self, left: float) -> None:
        assert self._stream is not None
        line = f"{self._name}: {self._remaining()} unfinished"
        if left < math.inf:
            line += f", {math.ceil(left)} s left"
        try:
            # 0 is what a terminal says that does not know.
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            columns = 80
        # The last column stays free: writing there moves some terminals to the next line.
        line = line[: columns - 1]
        # Blanks, not an escape code: every terminal knows them.
        self._write("\r" + line.ljust(self._shown))
        self._shown = len(line)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone: the wait goes on without.
            self._stream = None


def _terminal() -> TextIO | None:
    try:
        return sys.stderr if sys.stderr.isatty() else None
    except (AttributeError, ValueError):
        # None, or closed.
        return None
