"""
Tells, while it happens, that a callback blocks the loop, and afterwards for how long. Sleeps when the loop does.

A callback that does not come on may be innocent: on a starved machine its thread waits for a core, or for the interpreter. So what the
thread had of the machine is looked at twice in the same turn of the loop, and compared with the wall clock.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Any, Final, NamedTuple

from .._clock import time
from .._process.threads import new_thread
from .._report import CAN_LOOK_AT_WHAT_RUNS, frame_of

# So much of *slow* is compared at the least, and so a report may come later by as much. On a starved machine a thread has a core for 10 ms
# now and then: with a window of a tenth a callback was blamed that just had its turn.
_WINDOW: Final = 0.3

# Of more threads not all are looked at: 10 µs each.
_MOST_THREADS: Final = 100

# A thread that waits for the interpreter wakes every 5 ms to ask for it; one that sleeps, or waits for a lock, does not. Well between.
_WAKES: Final = 40


class Usage(NamedTuple):
    """What a thread had of the machine up to a moment: all but *place* are sums, in seconds by several clocks."""

    wall: float
    # On a core; what the other threads of the process were on one, or waited for one; and what this one waited for one.
    cpu: float
    others: float
    queue: float
    # How often it gave up its core by itself.
    wakes: int
    # Where in the code it is.
    place: tuple[int, int]

    def held_up(self, before: Usage) -> str | None:
        """Since *before*, which was at most as long ago as the callback began: what else than its own code held it up, if anything."""
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
    """What the thread had so far; None where the system does not say: only Linux does, and not in every sandbox."""
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
                # Who waits for a core may hold the interpreter meanwhile.
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

    The loop says when it goes to work and when to sleep. The watchdog looks only where something has happened since its last
    look: a busy loop is looked at every *slow* seconds, an idle one never.
    """

    def __init__(
        self,
        name: str,
        slow: Callable[[], float | None],
        stack: Callable[[], str],
        tell: Callable[[str], None],
        ping: Callable[[Callable[[], None]], bool],
        usage: Callable[[], Usage | None],
        look_around: Callable[[], bool],
    ) -> None:
        self._name = name
        self._slow = slow
        self._stack = stack
        self._tell = tell
        # Asks the loop to call back, and returns True, if there is work pending; only for loops that can't say when they work.
        self._ping = ping
        # What the loop's thread has had of the machine. And where a callback began, what it had when that was first looked at.
        self._usage = usage
        self._first: tuple[float, Usage | None] | None = None
        self._told_of_hunger = False
        # What else is to be looked at now and then; false when it need not be any more.
        self._look_around = look_around
        self._attached = False
        self._busy_since: float | None = None
        self._turn = 0
        # The start of the blockage that was told of, and its length when it is over.
        self._incident: float | None = None
        self._took: float | None = None
        self._asleep = False
        self._gate = Lock()
        self._thread: threading.Thread | None = None
        self._told_to_stop = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have *loop* say when it works. On one that can't (uvloop) the watchdog asks, but only while work is pending."""
        selector = getattr(loop, "_selector", None)
        if selector is None:
            return
        # On the instance, by asyncio's own name for it, the same from 3.11 to 3.15: there is no public place between two
        # callbacks. Costs 0.2 µs a turn of the loop; tests/life/test_watchdog.py fails without it.
        select: Callable[[float | None], Sequence[Any]] = selector.select
        idle, busy = self.idle, self.busy

        def select_and_tell(timeout: float | None = None) -> Sequence[Any]:
            idle()
            try:
                return select(timeout)
            finally:
                busy()

        selector.select = select_and_tell
        self._attached = True

    # --- said by the loop ---------------------------------------------------------------------------------------------

    def busy(self) -> None:
        self._busy_since = time.monotonic()
        self._turn += 1
        if self._asleep:
            self.wake()

    def goes_on(self) -> None:
        """A turn of the loop is long, because much is called in it, and no single call blocks."""
        if self._attached:
            self.busy()

    def idle(self) -> None:
        since, self._busy_since = self._busy_since, None
        if since is not None and since == self._incident:
            self._took = time.monotonic() - since
            self.wake()

    # --- the watchdog -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Tell whether the thread was started and not stopped."""
        return self._thread is not None

    @property
    def must_be_told(self) -> bool:
        """Tell whether it sleeps, and whoever submits work has to wake it, because the loop can't."""
        return self._asleep and not self._attached

    @property
    def native_id(self) -> int | None:
        """The system's id of the thread, if it runs."""
        return self._thread.native_id if self._thread is not None else None

    def busy_for(self) -> float | None:
        """Seconds that the loop has been at work without a look at its sockets; None while it sleeps, or if it can't say. From any thread."""
        since = self._busy_since
        return time.monotonic() - since if self._attached and since is not None else None

    def start(self) -> None:
        self._told_to_stop = False
        thread = new_thread(self._watch, f"{self._name}-watchdog")
        try:
            self._thread = thread
            thread.start()
        except BaseException:
            # No thread can be started; or interrupted (Ctrl-C), and it may come to run all the same.
            if thread.ident is None:
                self._thread = None
            raise

    def stop(self, timeout: float) -> None:
        """End the thread and join it, *timeout* seconds at the most."""
        self._told_to_stop = True
        self.wake()
        if self._thread is not None:
            with suppress(RuntimeError):
                # In the middle of its start, by another thread; it ends when it looks.
                self._thread.join(timeout)
            self._thread = None

    def wake(self) -> None:
        """Have it look now. Harmless if it is awake."""
        self._asleep = False
        try:
            self._gate.release()
        except RuntimeError:
            # It is awake, or about to be.
            pass

    def _watch(self) -> None:
        if self._thread not in (None, threading.current_thread()):
            # Another was started, because the start of this one was interrupted.
            return
        self._gate.acquire(False)
        seen = -1
        while not self._told_to_stop:
            took, self._took = self._took, None
            if took is not None:
                self._tell(f"The loop goes on, after a callback blocked it for {took:.1f} s.")
            crowding = self._look_around()
            slow, since, turn, now = self._slow(), self._busy_since, self._turn, time.monotonic()
            pause: float | None
            if slow is None:
                pause = None
            elif since is None:
                if not self._attached and self._ping(self.idle):
                    self._busy_since, pause = now, slow
                    self._first = now, self._usage()
                else:
                    # One more look, if something has happened since the last; then none until it happens again.
                    pause = slow if turn != seen else None
            elif self._first is None or self._first[0] != since:
                # To compare with. (Late itself, on a busy machine, the look after this one tells.)
                self._first = since, self._usage()
                pause = max(slow - (now - since), slow * _WINDOW)
            elif now - since < slow:
                pause = slow - (now - since)
            elif since == self._incident:
                # Until its end wakes us; but meanwhile what is submitted may pile up.
                pause = max(slow, 1.0) if crowding else None
            elif (why := self._held_up()) is not None:
                self._tell_hungry(now - since, why)
                # It may come to block all the same.
                self._first = since, self._usage()
                pause = slow
            else:
                # Noted first, so that the loop knows that its end is to be told as well.
                self._incident = since
                if self._busy_since == since:
                    self._tell_blocked(now - since)
                pause = max(slow, 1.0) if crowding else None
            seen = turn
            self._asleep = pause is None
            if self._asleep and (self._turn != turn or self._took is not None):
                # It went to work before it could see that it has to wake somebody.
                self._asleep = False
                continue
            self._gate.acquire(timeout=-1 if pause is None else min(pause, threading.TIMEOUT_MAX))

    def _held_up(self) -> str | None:
        before, now = self._first[1] if self._first is not None else None, self._usage()
        return None if before is None or now is None else now.held_up(before)

    def _tell_hungry(self, for_seconds: float, why: str) -> None:
        if self._told_of_hunger:
            return
        self._told_of_hunger = True
        self._tell(
            f"The loop has not come on for {for_seconds:.1f} s, because its thread got too little time, and not because of a callback: "
            f"{why}. Everything on it is late by as much. This is said once."
        )

    def _tell_blocked(self, for_seconds: float) -> None:
        self._tell(
            f"A callback has blocked the loop for {for_seconds:.1f} s; nothing else runs on it meanwhile. "
            f"Use to_thread() for what blocks. It is here:\n{self._stack()}"
        )
