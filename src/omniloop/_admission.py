"""Bounds how many tasks may pile up: each gets a place, waits for one, or is dropped and reported."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from threading import Lock
from typing import Any, Final

from ._errors import FullError, WouldDeadlockError
from ._life.life import Life
from ._process import signals
from ._report import Failure, Site, shown
from ._settings import WhenFull
from ._threads import Guard, time
from ._work.task import Dropped, Task

# Seconds between two reports of dropped tasks.
_REPORT_EVERY: Final = 1.0


class Admission:
    """
    A limited number of places for unfinished tasks. Waiting tasks get a place in the order in which they asked.

    From any thread. The lock is held for a look and a change, never during a call of user code or a wait. It is re-entrant, because a
    signal handler or a finaliser may submit in the middle (and may then get one place too many).
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._lock = Guard()
        # In order of admission. True once the task is delivered, and so can be ended.
        self._places: dict[Task[Any], bool] = {}
        self._queue: deque[tuple[Task[Any], Lock]] = deque()
        self._untold = 0
        self._last_site: Site | None = None
        self._last_name = ""
        self._report_is_due = False
        self._next_report = 0.0

    def resize(self, size: int | None) -> None:
        """Have *size* places from now on. Tasks that are there already stay."""
        with self._lock:
            self.size = size
            self._seat()

    def admit(self, task: Task[Any], life: Life, when_full: WhenFull) -> bool:
        """Give *task* a place; False if it was dropped instead. Raises FullError if it is refused."""
        with self._lock:
            if not self._queue and self._has_room():
                self._places[task] = False
                return True
        match when_full:
            case "block":
                self._wait(task, life)
                return True
            case "drop_old" if self._replace_oldest(task, life):
                return True
            case "raise":
                task._refuse()
                raise FullError(
                    f"{shown(task.get_name())} was refused, because max_pending={self.size} was reached. Submit it later."
                )
            case _:
                self._drop(task, life)
                return False

    def delivered(self, task: Task[Any]) -> None:
        """Note that *task* was delivered: from now on it may be dropped."""
        with self._lock:
            if task in self._places:
                self._places[task] = True

    def leave(self, task: Task[Any]) -> None:
        """Give the place of *task* to the next."""
        with self._lock:
            self._places.pop(task, None)
            self._seat()

    def report(self, life: Life) -> None:
        """Report how many tasks were dropped since the last report."""
        with self._lock:
            count, self._untold = self._untold, 0
            self._report_is_due = False
            self._next_report = time.monotonic() + _REPORT_EVERY
        if count:
            error = FullError(f"max_pending={self.size} was reached")
            message = f"{count} dropped, because {error}; the last was '{shown(self._last_name)}'"
            life.failures.tell_soon(Failure(message, error, life.name, self._last_site))

    # --- under the lock -----------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self.size is None or len(self._places) < self.size

    def _seat(self) -> None:
        while self._queue and self._has_room():
            task, gate = self._queue.popleft()
            self._places[task] = False
            gate.release()

    def _oldest(self) -> Task[Any] | None:
        while True:
            try:
                return next((task for task, delivered in self._places.items() if delivered), None)
            except RuntimeError:
                # A signal handler or a finaliser has submitted during the iteration.
                pass

    # --- when there is no room ----------------------------------------------------------------------------------------

    def _wait(self, task: Task[Any], life: Life) -> None:
        try:
            if asyncio._get_running_loop() is not None:
                raise FullError(self._may_not_wait(task, "this thread runs an event loop"))
            if life.workers.is_worker():
                raise FullError(self._may_not_wait(task, "a worker thread has one of these places itself"))
            if signals.in_signal_handler():
                raise FullError(self._may_not_wait(task, "a signal handler must not block"))
        except FullError:
            task._refuse()
            raise
        gate = Lock()
        gate.acquire()
        try:
            with self._lock:
                self._queue.append((task, gate))
                self._seat()
            life.wait(task, partial(gate.acquire, True), None)
        except BaseException as error:
            with self._lock:
                self._queue = deque(entry for entry in self._queue if entry[0] is not task)
            self.leave(task)
            task._refuse()
            if isinstance(error, WouldDeadlockError):
                raise FullError(self._may_not_wait(task, "the wait could never end")) from error
            raise

    def _may_not_wait(self, task: Task[Any], why: str) -> str:
        return (
            f"max_pending={self.size} was reached, and {shown(task.get_name())} can't wait for room here: {why}. "
            'Use try_go(), or another when_full than "block".'
        )

    def _replace_oldest(self, task: Task[Any], life: Life) -> bool:
        """Give *task* the place of the oldest task that can be ended; False if all are calls that already run in threads."""
        with self._lock:
            tries = len(self._places)
        for _ in range(tries):
            with self._lock:
                victim = self._oldest()
                if victim is None:
                    return False
                del self._places[victim]
                self._places[task] = False
            # Without the lock, because callbacks of the user may run.
            if self._end(victim, life):
                # Reported once it has ended: a running task may still end by itself before the cancellation reaches it.
                victim._when_done(partial(self._tell, victim, life))
                return True
            with self._lock:
                if victim.done():
                    # It has ended, and its place was about to become free.
                    return True
                del self._places[task]
                self._places[victim] = True
        return False

    def _end(self, victim: Task[Any], life: Life) -> bool:
        why = self._why()
        if not life.inbox.take_back(victim):
            return victim.cancel(why)
        # Ended here and not by the loop: while that is blocked, dropped tasks would pile up for it.
        victim._end_unstarted(why)
        return True

    def _drop(self, task: Task[Any], life: Life) -> None:
        task._end_unstarted(self._why())
        self._tell(task, life)

    def _why(self) -> Dropped:
        return Dropped(f"dropped, because max_pending={self.size} was reached")

    def _tell(self, task: Task[Any], life: Life) -> None:
        """Have *task* reported as dropped, unless it ended in another way meanwhile."""
        if not task.cancelled():
            return
        with self._lock:
            self._untold += 1
            self._last_site, self._last_name = task._site(), task.get_name()
            due, self._report_is_due = self._report_is_due, True
        if not due:
            # By the loop, because the caller may be a signal handler or a logging handler. If the loop does not get to it, the end of the
            # drain reports it.
            life.inbox.put(partial(self._schedule_report, life))

    def _schedule_report(self, life: Life) -> None:
        delay = max(0.0, self._next_report - time.monotonic())
        life.thread.loop.call_later(delay, self.report, life, context=life.thread.context)
