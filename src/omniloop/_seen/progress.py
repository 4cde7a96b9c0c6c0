"""Tells who waits for a drain how much is left: a line on a terminal that comes and goes, and one in the log if it takes long."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TextIO
from weakref import WeakSet

from .._clock import LOOK_UP, time
from .._report import say, shown
from .._work.leftovers import UNMARKED, rank_of, title_of

if TYPE_CHECKING:
    from .._life.life import Life

# Between two looks; the seconds that are left change more slowly.
_REFRESH: Final = 0.25


# A drain that takes longer is told of in the log, with the names of what it waits for. (As long as a server's own stop takes: a guess.)
_LONG: Final = 2.0

# So many are named.
_NAMED: Final = 20

# Of whose drain the log was told: once for each life, whichever hooks wait for it.
_told_of: WeakSet[Life] = WeakSet()


class Progress:
    """
    How much is left to do, and for how long that is waited for.

    Said by the thread that waits, between the slices of its wait.

    Args:
        shown: As a line on stderr, if it is a terminal; erased when the wait is over.
        told: In the log, once, if the wait is long.
        since: When the wait began, by `time.monotonic`.
        leftovers_until: Until when it waits for those, when the work is done.
    """

    def __init__(self, life: Life, *, shown: bool, told: bool, since: float, leftovers_until: float | None) -> None:
        self._life = life
        self._leftovers_until = leftovers_until
        self._stream = _terminal() if shown else None
        self._long = since + _LONG if told and life not in _told_of else math.inf
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._erase()

    def acquire(self, gate: Lock, deadline: float | None) -> bool:
        """Acquire *gate*; False at the *deadline*, by `time.monotonic`."""
        while True:
            now = time.monotonic()
            left = math.inf if deadline is None else max(0.0, deadline - now)
            if now >= self._long:
                self._long = math.inf
                self._tell(left)
            pause = self._long - now
            if self._stream is not None:
                self._show(left)
                pause = min(pause, _REFRESH)
            if gate.acquire(timeout=min(left, pause, LOOK_UP)):
                return True
            if left <= min(pause, LOOK_UP):
                return False

    def _remaining(self, left: float) -> tuple[int, float]:
        """How much is waited for, and for how long; the leftovers if the work is done."""
        count = self._life.remaining()
        if count or self._leftovers_until is None:
            return count, left
        return len(self._life.left_over()), min(left, max(0.0, self._leftovers_until - time.monotonic()))

    def _show(self, left: float) -> None:
        assert self._stream is not None
        count, left = self._remaining(left)
        if not count:
            # The last has just ended.
            self._erase()
            return
        line = f"{self._life.name}: {count} unfinished"
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

    def _erase(self) -> None:
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _tell(self, left: float) -> None:
        if self._life in _told_of:
            return
        _told_of.add(self._life)
        self._erase()
        tasks: list[Any] = list(islice(self._life.waited_for(), _NAMED))
        count, left = self._remaining(left)
        # What a daemon has submitted is waited for though it is one.
        advice = any(rank_of(task) == UNMARKED for task in tasks)
        if not tasks:
            # When the work is done.
            tasks = self._life.left_over()[:_NAMED]
        names = dict.fromkeys(
            title_of(task) if isinstance(task, asyncio.Task) else shown(task.get_name()) for task in tasks
        )
        say(
            "%s: waits for %d unfinished %s: %s%s.%s",
            self._life.name,
            count,
            "without a limit" if left == math.inf else f"for {math.ceil(left)} s more at the most",
            ", ".join(names),
            ", …" if count > _NAMED else "",
            " What never ends is started with daemon=True, and cancelled instead of waited for." if advice else "",
        )

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
