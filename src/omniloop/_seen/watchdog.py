"""
Logs, while it happens, that a callback blocks the loop, and afterwards for how long. Sleeps while the loop does.

A callback that makes no progress may be innocent: on a starved machine its thread waits for a core, or for the interpreter. So the watchdog
looks twice, in the same turn of the loop, at how much of the machine the thread had, and compares that with the wall clock.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from .. import _cpython
from .._report import CAN_LOOK_AT_WHAT_RUNS, Site, frame_of, say, thread_stack
from .._threads import join, let_through, new_thread, time
from .._work.ledger import waiting_in

if TYPE_CHECKING:
    from .._life.thread import LoopThread
    from .._settings import Settings
    from .._work.ledger import Ledger

# The part of *slow* between the two looks, at least; a report may come later by as much. On a starved machine a thread has a core for 10 ms
# now and then: with a window of a tenth, a callback was blamed that just had its turn.
_WINDOW: Final = 0.3

# How many other threads are looked at, at most: each costs 10 µs.
_MOST_THREADS: Final = 100

# Wake-ups a second. A thread that waits for the interpreter wakes every 5 ms to ask for it; one that sleeps or waits for a lock does not.
# This lies well between the two.
_WAKES: Final = 40

# How many pending tasks are too many, at 1 to 2 kB each 200 MB: more than anybody intends. And how many submitting sites the warning names.
_CROWD: Final = 100_000
_MOST_SITES: Final = 3


class Usage:
    """What a thread had of the machine up to a moment. All but *place* are sums, in seconds by several clocks."""

    __slots__ = ("cpu", "others", "place", "queue", "wakes", "wall")

    def __init__(
        self, wall: float, cpu: float, others: float, queue: float, wakes: int, place: tuple[int, int]
    ) -> None:
        self.wall = wall
        # Seconds on a core; seconds the process's other threads were on a core or waited for one; seconds this thread waited for a core.
        self.cpu = cpu
        self.others = others
        self.queue = queue
        # How often the thread gave up its core by itself.
        self.wakes = wakes
        # Its frame and instruction.
        self.place = place

    def held_up(self, before: Usage) -> str | None:
        """Return what other than its own code has held the callback up since *before*, taken in the same callback; None if nothing has."""
        wall = self.wall - before.wall
        if self.cpu - before.cpu >= wall / 2:
            return None
        if self.queue - before.queue >= wall / 4:
            return "the machine has more to do than it has cores for"
        moves = self.place != before.place or self.wakes - before.wakes >= wall * _WAKES
        if moves and self.others - before.others >= wall / 2:
            return "other threads keep the interpreter busy"
        return None


def usage_of(ident: int | None, native_id: int | None) -> Usage | None:
    """What the thread had so far; None where the system does not say, which is everywhere but on Linux, and in some sandboxes."""
    frame = frame_of(ident)
    if frame is None or native_id is None or sys.platform != "linux":
        return None
    place = id(frame), frame.f_lasti if CAN_LOOK_AT_WHAT_RUNS else 0
    del frame
    try:
        cpu, queue = _had(native_id)
        others = 0.0
        for other in islice(os.listdir("/proc/self/task"), _MOST_THREADS):
            if other != str(native_id):
                # A thread that waits for a core may hold the interpreter meanwhile.
                others += sum(_had(other))
        with open(f"/proc/self/task/{native_id}/status", "rb") as file:
            wakes = int(file.read().rpartition(b"\nvoluntary_ctxt_switches:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        # No such files here, or a thread ended in the middle.
        return None
    return Usage(time.monotonic(), cpu, others, queue, wakes, place)


def _had(native_id: int | str) -> tuple[float, float]:
    """The seconds that a thread was on a core, and that it waited for one."""
    with open(f"/proc/self/task/{native_id}/schedstat", "rb") as file:
        ran, queued, _ = map(int, file.read().split())
    return ran / 1e9, queued / 1e9


class Watchdog:
    """
    Watches one loop from a thread of its own.

    The loop tells it when it starts to work and when it sleeps. The watchdog looks only if something has happened since its last look: at a
    busy loop every `slow_callback` seconds, at an idle one never.
    """

    def __init__(self, thread: LoopThread, ledger: Ledger, settings: Callable[[], Settings]) -> None:
        self._loop_thread = thread
        self._ledger = ledger
        self._settings = settings
        # Whether the loop tells when it works, and so wakes the watchdog; otherwise each submission does.
        self.attached = False
        self.asleep = False
        self._busy_since: float | None = None
        self._turn = 0
        # When the current turn began, and what the loop's thread had had of the machine at the first look in it.
        self._first: tuple[float | None, Usage | None] = None, None
        # When the next look is due; and the turn in which one was late, and was not judged by.
        self._due = math.inf
        self._late_in: float | None = None
        # The start of the blockage that was logged, and its length once it is over.
        self._incident: float | None = None
        self._took: float | None = None
        self._told_of_hunger = False
        self._told_of_crowd = False
        self._gate = Lock()
        # The watchdog's own thread while it should watch, else None.
        self._thread: threading.Thread | None = None
        if thread.runs:
            thread.post(self._attach_in_turn)
        else:
            self._attach()

    def _attach_in_turn(self) -> None:
        self._attach()
        # The next callback of this turn may block, and the loop only tells when a turn begins.
        self.goes_on()

    def _attach(self) -> None:
        """Have the loop tell when it works. A loop that can't (uvloop) is asked by the watchdog, but only while work is pending."""
        selector = _cpython.selector_of(self._loop_thread.loop)
        if selector is None:
            return
        # On the instance, because there is no public place between two callbacks. Costs 0.2 µs a turn of the loop;
        # tests/life/test_watchdog.py fails without it.
        select: Callable[[float | None], Sequence[Any]] = selector.select
        idle, busy = self.idle, self.busy

        def select_and_tell(timeout: float | None = None) -> Sequence[Any]:
            idle()
            try:
                return select(timeout)
            finally:
                busy()

        selector.select = select_and_tell
        self.attached = True

    # --- said by the loop ---------------------------------------------------------------------------------------------

    def busy(self) -> None:
        self._busy_since = time.monotonic()
        self._turn += 1
        if self.asleep:
            self.wake()

    def goes_on(self) -> None:
        """Note that a turn of the loop is long because it calls much, while no single call blocks."""
        if self.attached:
            self.busy()

    def idle(self) -> None:
        since, self._busy_since = self._busy_since, None
        if since is not None and since == self._incident:
            self._took = time.monotonic() - since
            self.wake()

    # --- the watchdog -------------------------------------------------------------------------------------------------

    def busy_for(self) -> float | None:
        """Seconds that the loop has worked without a look at its sockets; None while it sleeps, or if it can't tell. From any thread."""
        since = self._busy_since
        return time.monotonic() - since if self.attached and since is not None else None

    def watch(self) -> None:
        """Start to watch if `slow_callback` is set; if it watches already, look at the settings again."""
        if self._thread is not None:
            self.wake()
        elif self._settings().slow_callback is not None:
            thread = new_thread(self._watch, f"{self._loop_thread.name}-watchdog")
            try:
                self._thread = thread
                thread.start()
            except BaseException:
                # No thread can be started, or Ctrl-C interrupted the start. If the thread runs nevertheless it ends at once.
                self._thread = None
                raise

    def stop(self, timeout: float) -> None:
        """End the thread and join it, *timeout* seconds at the most."""
        thread, self._thread = self._thread, None
        self.wake()
        if thread is not None:
            join(thread, timeout)

    def wake(self) -> None:
        """Have the watchdog look now. Harmless if it is awake."""
        self.asleep = False
        let_through(self._gate)

    def _watch(self) -> None:
        me = threading.current_thread()
        self._gate.acquire(False)
        seen = -1
        while self._thread is me:
            took, self._took = self._took, None
            if took is not None:
                self._tell(f"The loop goes on, after a callback blocked it for {took:.1f} s.")
            turn = self._turn
            pause = self._look(turn != seen)
            seen = turn
            self.asleep = pause is None
            if self.asleep and (self._turn != turn or self._took is not None):
                # The loop went to work before it could see that the watchdog sleeps.
                self.asleep = False
                continue
            self._due = math.inf if pause is None else time.monotonic() + pause
            self._gate.acquire(timeout=-1 if pause is None else min(pause, threading.TIMEOUT_MAX))

    def _look(self, has_moved: bool) -> float | None:
        """
        Look at the loop; return after how many seconds to look again, None to wait until something happens.

        *has_moved* says whether the loop has begun a turn since the last look.
        """
        crowding = self._is_crowding()
        slow, since, now = self._settings().slow_callback, self._busy_since, time.monotonic()
        if slow is None:
            return None
        if since is None and not self.attached:
            # Noted before the loop is asked, because it may answer at once.
            since = self._busy_since = now
            if not self._ping():
                since = self._busy_since = None
        if since is None:
            # One more look if something has happened since the last, and then none until it happens again.
            return slow if has_moved else None
        if self._first[0] != since:
            # The first look, to compare with. (If the watchdog is itself late, on a busy machine, the next look tells.)
            self._first = since, self._usage()
            return max(slow - (now - since), slow * _WINDOW)
        if now - since < slow:
            return slow - (now - since)
        if now - self._due > slow * _WINDOW and self._late_in != since:
            # Late itself, once in a turn: the process was stopped, or the machine slept, and the loop has not had its time either.
            self._late_in = since
            self._first = since, self._usage()
            return slow * _WINDOW
        if since != self._incident:
            before, usage = self._first[1], self._usage()
            if before is None and usage is not None:
                # At the first look the loop's thread had not begun.
                self._first = since, usage
                return slow * _WINDOW
            why = None if before is None or usage is None else usage.held_up(before)
            if why is not None:
                self._tell_hungry(now - since, why)
                # It may still turn out to block.
                self._first = since, usage
                return slow
            # Set before the log, so that the loop knows that the end of this blockage is logged as well.
            self._incident = since
            if self._busy_since == since:
                self._tell(
                    f"A callback has blocked the loop for {now - since:.1f} s; nothing else runs on it meanwhile. "
                    f"Use to_thread() for what blocks. It is here:\n{thread_stack(self._loop_thread.ident)}"
                )
        # The end of the blockage wakes the watchdog. Meanwhile submissions may pile up.
        return max(slow, 1.0) if crowding else None

    def _usage(self) -> Usage | None:
        return usage_of(self._loop_thread.ident, self._loop_thread.native_id)

    def _ping(self) -> bool:
        """Ask a loop that can't tell when it works to call back; False if it has nothing to do."""
        ledger = self._ledger
        if ledger.daemons or ledger.inbox.is_due() or ledger.remaining():
            with suppress(RuntimeError):
                # The loop is closed, and would never answer.
                self._loop_thread.post(self._answer)
                return True
        return False

    def _answer(self) -> None:
        # By now it may tell when it sleeps.
        if not self.attached:
            self.idle()

    def _is_crowding(self) -> bool:
        """
        Warn, once, if so much is pending that memory may run out; False if there is no need to look again.

        Done here, so that it costs a submission nothing.
        """
        if self._told_of_crowd or self._settings().max_pending is not None:
            return False
        ledger = self._ledger
        if (pending := ledger.remaining()) >= _CROWD:
            self._told_of_crowd = True
            tasks = [*ledger.unfinished(), *waiting_in(ledger.inbox)]
            sites = Counter((task._code, task._lasti) for task in tasks)
            most = "".join(
                f"\n  {number:,} at {Site(*site).short()}" for site, number in sites.most_common(_MOST_SITES)
            )
            self._tell(
                f"{pending:,} are pending, and nothing bounds them: should it be more and more, the process is killed when its memory is "
                "full, and all is lost. Bound them by configure(max_pending=…), or OMNILOOP_MAX_PENDING. The most were submitted"
                f"{most}"
            )
        return not self._told_of_crowd

    def _tell_hungry(self, for_seconds: float, why: str) -> None:
        if not self._told_of_hunger:
            self._told_of_hunger = True
            self._tell(
                f"The loop has not come on for {for_seconds:.1f} s, because its thread got too little time, and not because of a callback: "
                f"{why}. Everything on it is late by as much. This is said once."
            )

    def _tell(self, message: str) -> None:
        say("%s: %s", self._loop_thread.name, message)
