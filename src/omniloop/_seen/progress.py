"""Shows how much a drain still waits for: a line on the terminal that comes and goes, and one line in the log if it takes long."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TextIO
from weakref import WeakSet

from .._report import say, shown
from .._threads import LOOK_UP, time
from .._work.leftovers import UNMARKED, rank_of, title_of
from .._work.task import HANDOVER

if TYPE_CHECKING:
    from .._life.life import Life

# Seconds between two looks; the remaining seconds, which the line shows, change more slowly.
_REFRESH: Final = 0.25


# A drain that takes longer, in seconds, is logged with the names of the work that it waits for. (As long as a server's own stop takes:
# a guess.)
_LONG: Final = 2.0

# How many tasks are named.
_NAMED: Final = 20

# The lives whose drain was logged: once for each life, whichever exit hooks wait for it.
_told_of: WeakSet[Life] = WeakSet()


class Progress:
    """
    How much work is left, and how much longer it is waited for.

    Shown by the waiting thread, between the slices of its wait.

    Args:
        shown: Show a line on stderr, if it is a terminal; it is erased when the wait is over.
        told: Log one line if the wait is long.
        since: When the wait began, by `time.monotonic`.
        leftovers_until: Until when the drain waits for leftovers, after the work is done.
    """

    def __init__(self, life: Life, *, shown: bool, told: bool, since: float, leftovers_until: float | None) -> None:
        self._life = life
        self._leftovers_until = leftovers_until
        self._stream = _terminal() if shown else None
        self._long = since + _LONG if told and life not in _told_of else math.inf
        self._shown = 0

    def acquire(self, gate: Lock, deadline: float | None) -> bool:
        """Acquire *gate*; False at the *deadline*, by `time.monotonic`."""
        try:
            while True:
                now = time.monotonic()
                left = math.inf if deadline is None else max(0.0, deadline - now)
                if now >= self._long:
                    self._long = math.inf
                    self._tell(left)
                pause = min(self._long - now, LOOK_UP)
                if self._stream is not None:
                    self._show(left)
                    pause = min(pause, _REFRESH)
                if gate.acquire(timeout=min(left, pause)):
                    return True
                if left <= pause:
                    return False
        finally:
            self._write("")

    def _remaining(self, left: float) -> tuple[int, float]:
        """Return how much is waited for, and for how long; the leftovers if the work is done."""
        count = self._life.ledger.remaining()
        if count or self._leftovers_until is None:
            return count, left
        return len(self._life.ledger.leftovers.unfinished()), min(
            left, max(0.0, self._leftovers_until - time.monotonic())
        )

    def _show(self, left: float) -> None:
        count, left = self._remaining(left)
        limit = f", {math.ceil(left)} s left" if left < math.inf else ""
        # Nothing if the last task has just ended.
        self._write(f"{self._life.name}: {count} unfinished{limit}" if count else "")

    def _write(self, line: str) -> None:
        """Show *line* in place of the last one; an empty one erases that."""
        if self._stream is None or not (line or self._shown):
            return
        try:
            # A terminal that does not know its width says 0.
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            columns = 80
        # The last column stays free: writing there moves some terminals to the next line.
        line = line[: columns - 1]
        try:
            # Blanks, not an escape code: every terminal knows them.
            self._stream.write(f"\r{line.ljust(self._shown)}" + ("" if line else "\r"))
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone: the wait goes on without the line.
            self._stream = None
        self._shown = len(line)

    def _tell(self, left: float) -> None:
        if self._life in _told_of:
            return
        _told_of.add(self._life)
        self._write("")
        tasks: list[Any] = list(islice(self._life.waited_for(), _NAMED))
        count, left = self._remaining(left)
        # The advice is for work of rank UNMARKED: what a daemon has submitted is waited for although it belongs to a daemon. It is not for
        # hand-overs, which can't be daemons.
        advice = any(rank_of(task) == UNMARKED and getattr(task, "_kind", None) is not HANDOVER for task in tasks)
        if not tasks:
            # The work is done; only leftovers are waited for.
            tasks = self._life.ledger.leftovers.unfinished()[:_NAMED]
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


def _terminal() -> TextIO | None:
    try:
        return sys.stderr if sys.stderr.isatty() else None
    except (AttributeError, ValueError):
        # stderr is None, or closed.
        return None
