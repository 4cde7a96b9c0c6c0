"""
Holds failures that nobody has asked for until it is clear that nobody will; then each is reported once. Outlives the runtime's lives.

A failure is *held* while somebody holds the handle and has not asked for the outcome. It is *unheld* from the moment when the last reference
to the handle is gone.

    1. The last reference goes in a finaliser: on any thread, in the middle of anything, even of a logging handler. So the finaliser only
       appends the failure to a queue and wakes the loop's thread.
    2. Threads that may log report what is unheld: the loop's thread between two pieces of work, `flush` and the drain.
    3. `shutdown()` and the exit report what is still held.
    4. If no loop's thread will come, the failure waits for the next one, or for the exit.

What was tried: logging in the finaliser itself. A garbage collection inside a handler that held a plain lock deadlocked.

On a free-threaded build the finaliser may be late. There an object counts the references of the thread that made it apart from those of all
other threads (PEP 703, "biased reference counting"). If another thread drops the last one, the thread that made the object joins the two
counts when it runs Python again: not while it sleeps or waits. A handle is made by the submitting thread and dropped last by the loop's. So
there the loop's thread keeps the handle for a short time after the failure, and checks whether anybody else refers to it: sys.getrefcount
adds the two counts.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from .._process.exit import draining, tell_at_exit
from .._process.fork import forget_after_fork
from .._report import STORM, Failure, Storms, report
from .._threads import emptied, time

if TYPE_CHECKING:
    from .._report import Hook
    from .inbox import Inbox

# Whether a finaliser may be late: on a free-threaded build, whether or not its GIL is switched on.
LATE_FINALISERS: Final = "t" in getattr(sys, "abiflags", "")

# For how long after a failure the references to its handle are checked, in seconds. A submitter that dropped the handle either runs
# Python in this time, which joins the counts, or dropped it before it went to sleep.
_UNSURE: Final = 0.2

# How soon to look again, in seconds.
_LOOK_AGAIN: Final = 0.01

# For how long the last report waits until those who were woken by a failure have asked for it, in seconds.
_ASKED_SOON: Final = 0.1

# More than the references that the submitter makes and other threads drop: the inbox's, and that of a worker's job. With fewer the
# count of the other threads would come to 0, and the object would be queued for its thread to join the counts: then the queue has a
# reference of its own.
_REFERENCES: Final = 8

# Those whose failures no loop's thread will report. A strong reference, because their runtime may be gone.
_stranded: deque[Failures] = deque()


class Failures:
    """The held and unheld failures of one runtime. From any thread, unless a method says otherwise."""

    def __init__(self, hook: Callable[[], Hook | None]) -> None:
        self._hook = hook
        self._held: WeakSet[Unclaimed] = WeakSet()
        self._unheld: deque[Failure] = deque()
        # Handles that may or may not have other references, and until when to check; only where finalisers are late.
        self._unsure: deque[tuple[tuple[Any, ...], float]] = deque()
        # The loop on which the next check is scheduled.
        self._looks_on: asyncio.AbstractEventLoop | None = None
        self._storms = Storms()
        # The inbox whose reader reports what is unheld; each life sets its own when it begins.
        self.inbox: Inbox | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is unheld and not reported."""
        return bool(self._unheld or self._unsure)

    def hold(self, unclaimed: Unclaimed, handle: Any) -> None:
        """Remember a failure that may still be asked for through its *handle*."""
        self._held.add(unclaimed)
        if LATE_FINALISERS and self.inbox is not None:
            self._unsure.append(((handle,) * _REFERENCES, time.monotonic() + _UNSURE))
            with suppress(RuntimeError):
                # The inbox is closed, or no thread can be started: held failures are reported at the end.
                self.inbox.put(self._look_soon)

    def _look_soon(self) -> None:
        # Runs on the loop's thread.
        loop = asyncio.get_running_loop()
        if self._unsure and self._looks_on is not loop:
            self._looks_on = loop
            loop.call_later(_LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._looks_on = None
        self.tell_unheld()
        self._look_soon()

    def tell_soon(self, failure: Failure) -> None:
        """Have *failure* reported soon. Only appends and wakes, so that a finaliser may call it."""
        self._unheld.append(failure)
        inbox = self.inbox
        if inbox is not None and not inbox.closed:
            with suppress(RuntimeError):
                inbox.wake_reader(if_resting=True)
                # Checked after the append: whoever closes the inbox reports afterwards what is unheld by then.
                if not inbox.closed:
                    return
        # The inbox is closed, or no thread can be started.
        _stranded.append(self)

    def tell(self, failure: Failure) -> None:
        """Report *failure* here and now. For threads that may log."""
        if report(failure, self._hook(), self._storms) and self.inbox is not None:
            # The inbox is closed: the end reports everything that is kept.
            with suppress(RuntimeError):
                self.inbox.put(self._tell_kept_later)

    def _tell_kept_later(self) -> None:
        # Runs on the loop's thread. A little later than necessary, because a timer may be early.
        asyncio.get_running_loop().call_later(STORM + 0.01, self.tell_kept)

    def tell_kept(self, at_once: bool = False) -> None:
        """Log what was kept of a storm of equal failures; with *at_once*, even if the storm may go on. For threads that may log."""
        self._storms.log_kept(at_once)

    def tell_all_unheld(self) -> None:
        """Report what is unheld, and leave no report for later. For threads that may log."""
        if self._held and not hasattr(sys, "getrefcount"):
            # PyPy, where finalisers run only with the garbage collector.
            gc.collect()
        self.tell_unheld()

    def tell_unheld(self) -> None:
        """Report what is unheld. For threads that may log."""
        if self._unsure:
            self._find_unheld()
        for failure in emptied(self._unheld):
            self.tell(failure)

    def _find_unheld(self) -> None:
        """Report failures whose handle has no other reference."""
        for _ in range(len(self._unsure)):
            try:
                handles, until = self._unsure.popleft()
            except IndexError:
                # Another thread checks at the same time.
                return
            unclaimed: Unclaimed = handles[0]._ended()[1]
            if sys.getrefcount(handles[0]) <= _ALONE:
                unclaimed.let_go()
            elif unclaimed and time.monotonic() < until:
                self._unsure.append((handles, until))

    def tell_all(self) -> None:
        """Report what is unheld and what is held. For threads that may log."""
        held: list[Unclaimed] | None = None
        while held is None:
            # Work that still goes on may fail, and add to the set, during the copy.
            with suppress(RuntimeError):
                held = list(self._held)
        # A waiter that was woken by a failure asks for it in a moment.
        until = time.monotonic() + _ASKED_SOON
        while any(unclaimed and unclaimed.waiting for unclaimed in held) and time.monotonic() < until:
            time.sleep(0.001)
        for unclaimed in held:
            if draining() or not any(unclaimed.waiting):
                unclaimed.tell(self)
            # Else somebody still waits, on a loop that stands still, say, and asks for the error, or drops the handle, which makes the
            # failure unheld.
        self.tell_unheld()
        self.tell_kept(at_once=True)

    def abandon(self) -> None:
        """In a forked child, forget all failures, because the parent reports them. Handles that are dropped here report nothing either."""
        self._held = WeakSet()
        self._unheld = deque(maxlen=0)
        self._unsure = deque(maxlen=0)


class Unclaimed:
    """
    An error that waits to be asked for. If the last reference is dropped before anybody asked, the error is reported.

    Kept apart from the task, so that only failures pay for a `__del__` (on the hot path it would cost 0.1 µs a task).
    """

    __slots__ = ("__weakref__", "_failures", "failure", "traceback", "waiting")

    def __init__(self, failure: Failure, failures: Failures) -> None:
        self.failure = failure
        self.traceback = failure.exception.__traceback__
        # Those who waited for the outcome when it came, by how they wait; empty if nobody did. A waiter that gives up removes its own entry;
        # not so a thread, which asks as soon as it is woken.
        self.waiting: tuple[Sequence[object], ...] = ()
        # None once the error was asked for, or reported.
        self._failures: Failures | None = failures

    def __bool__(self) -> bool:
        """Tell whether nobody has asked for the error."""
        return self._failures is not None

    @property
    def exception(self) -> BaseException:
        # The traceback as it was when the work failed. Each raise adds frames to it, so it would grow with each `result()`, and keep
        # the frames of all callers alive.
        return self.failure.exception.with_traceback(self.traceback)

    def claim(self) -> BaseException:
        """Return the error, which is not reported any more."""
        self._failures = None
        return self.exception

    def tell(self, failures: Failures) -> None:
        """Report the error here and now, if nobody has asked for it."""
        if self._failures is not None:
            self.claim()
            failures.tell(self.failure)

    def let_go(self) -> None:
        """Have the error reported soon, if nobody has asked for it: nobody can any more."""
        failures = self._failures
        if failures is not None:
            self.claim()
            failures.tell_soon(self.failure)

    __del__ = let_go


def _alone() -> int:
    # Counts as `_find_unheld` does.
    handles = (object(),) * _REFERENCES
    return sys.getrefcount(handles[0])


_ALONE: Final = _alone() if LATE_FINALISERS else 0


def _tell_stranded() -> None:
    for failures in emptied(_stranded):
        failures.tell_unheld()


tell_at_exit(_tell_stranded)
forget_after_fork(_stranded.clear)
