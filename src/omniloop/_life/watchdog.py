"""Tells, while it happens, that a callback blocks the loop, and afterwards for how long. Sleeps when the loop does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final

# The watchdog's own timer this late means that the interpreter is busy with other threads: no fault of the loop's.
_LATE: Final = 0.25


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
    ) -> None:
        self._name = name
        self._slow = slow
        self._stack = stack
        self._tell = tell
        # Asks the loop to call back, and returns True, if there is work pending; only for loops that can't say when they work.
        self._ping = ping
        self._attached = False
        self._busy_since: float | None = None
        self._turn = 0
        # The start of the blockage that was told of, and its length when it is over.
        self._incident: float | None = None
        self._took: float | None = None
        self._asleep = False
        self._gate = Lock()
        self._thread: threading.Thread | None = None
        self._told_to_end = False

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

    def start(self) -> None:
        self._told_to_end = False
        thread = threading.Thread(target=self._watch, name=f"{self._name}-watchdog", daemon=True)
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
        self._told_to_end = True
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
        while not self._told_to_end:
            took, self._took = self._took, None
            if took is not None:
                self._tell(f"The loop goes on, after a callback blocked it for {took:.1f} s.")
            slow, since, turn, now = self._slow(), self._busy_since, self._turn, time.monotonic()
            pause: float | None
            if slow is None:
                pause = None
            elif since is None:
                if not self._attached and self._ping(self.idle):
                    self._busy_since, pause = now, slow
                else:
                    # One more look, if something has happened since the last; then none until it happens again.
                    pause = slow if turn != seen else None
            elif now - since < slow:
                pause = slow - (now - since)
            else:
                if since != self._incident:
                    # Noted first, so that the loop knows that its end is to be told as well.
                    self._incident = since
                    if self._busy_since == since:
                        self._tell_blocked(now - since, slow)
                # Until its end wakes us.
                pause = None
            seen = turn
            self._asleep = pause is None
            if self._asleep and (self._turn != turn or self._took is not None):
                # It went to work before it could see that it has to wake somebody.
                self._asleep = False
                continue
            self._gate.acquire(timeout=-1 if pause is None else min(pause, threading.TIMEOUT_MAX))

    def _tell_blocked(self, for_seconds: float, slow: float) -> None:
        busy = (
            " Other threads keep the interpreter busy, which alone may be the cause."
            if for_seconds > slow + _LATE
            else ""
        )
        self._tell(
            f"A callback has blocked the loop for {for_seconds:.1f} s; nothing else runs on it meanwhile.{busy} "
            f"Use to_thread() for what blocks. It is here:\n{self._stack()}"
        )
