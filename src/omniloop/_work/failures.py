"""
The failures of a runtime that nobody has asked for: each is told once, by a thread that may log. Outlives the runtime's lives.

A failure is *held* while somebody holds the handle and has not asked, and *unheld* from the moment when nobody holds it any more.
Dropping happens in a finaliser, on any thread, in the middle of anything, inside a logging handler too; so it only appends, and has
the loop's thread told. Whoever may log tells what is unheld: the loop's thread between two pieces of work, `flush` and the drain.
What is still held is told by `shutdown()`, and at exit. Where no loop's thread is left to come, a failure waits for the next one, or
for the exit.

Logging in the finaliser itself was tried: a garbage collection inside a handler that holds a plain lock deadlocked.

On a free-threaded build the finaliser may be late. There an object counts the references of the thread that made it apart from those of all
others (PEP 703, "biased reference counting"); if another thread lets go of the last one, the two counts are joined by the thread that made
it, when it runs Python again: not while it sleeps or waits. A handle is made by who submits, and let go of last by the loop. So there the
loop's thread keeps it for a short time after the failure, and looks whether anybody else refers to it: sys.getrefcount adds the two.
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

from .._clock import time
from .._process.exit import draining, tell_at_exit
from .._process.fork import forget_after_fork
from .._report import STORM, Failure, Storms, report

if TYPE_CHECKING:
    from .._report import Hook
    from .inbox import Inbox

# Whether a finaliser may come late: so it is on a free-threaded build, whether or not its GIL is switched on.
LATE_FINALISERS: Final = "t" in getattr(sys, "abiflags", "")

# For how long after a failure it is looked who refers to its handle, in seconds. Who submitted it and let it go either runs Python in this
# time, and joins the counts, or had let it go when it went to rest.
_UNSURE: Final = 0.2

# How soon to look again, in seconds.
_LOOK_AGAIN: Final = 0.01

# For how long the last report waits for those who were woken by a failure, in seconds.
_ASKED_SOON: Final = 0.1

# More than the references to a handle that who submits makes and others let go of: the inbox's, and that of a worker's job. With fewer
# the count of the others would come to 0, and the object be handed to its thread to join the two: then the queue has a reference of its own.
_REFERENCES: Final = 8

# Those of which no loop's thread will come to tell; referred to here, because their runtime may be gone.
_stranded: deque[Failures] = deque()


class Failures:
    """What is held and unheld of one runtime. From any thread, except where a method says otherwise."""

    def __init__(self, hook: Callable[[], Hook | None]) -> None:
        self._hook = hook
        self._held: WeakSet[Unclaimed] = WeakSet()
        self._unheld: deque[Failure] = deque()
        # Handles of which it is not known whether anybody else holds them, and until when to look; only where finalisers are late.
        self._unsure: deque[tuple[tuple[Any, ...], float]] = deque()
        # The loop on which a look is due.
        self._looks_on: asyncio.AbstractEventLoop | None = None
        self._storms = Storms()
        # Whose reader tells what is unheld; a life gives its own when it begins.
        self.inbox: Inbox | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is unheld and not told."""
        return bool(self._unheld or self._unsure)

    def hold(self, unclaimed: Unclaimed, handle: Any) -> None:
        """Remember a failure that somebody may still ask for, by its *handle*."""
        self._held.add(unclaimed)
        if LATE_FINALISERS and self.inbox is not None:
            self._unsure.append(((handle,) * _REFERENCES, time.monotonic() + _UNSURE))
            with suppress(RuntimeError):
                # Closed, or no thread can be started: what is held is told at the end.
                self.inbox.put(self._look_soon)

    def _look_soon(self) -> None:
        # On the loop's thread.
        loop = asyncio.get_running_loop()
        if self._unsure and self._looks_on is not loop:
            self._looks_on = loop
            loop.call_later(_LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._looks_on = None
        self.tell_unheld()
        self._look_soon()

    def tell_soon(self, failure: Failure) -> None:
        """Have *failure* told soon. Only appends, so that a finaliser may call it."""
        self._unheld.append(failure)
        inbox = self.inbox
        if inbox is not None and not inbox.closed:
            with suppress(RuntimeError):
                inbox.wake_reader(if_resting=True)
                # After the append: who closes the inbox tells afterwards what is unheld by then.
                if not inbox.closed:
                    return
        # Closed, or no thread can be started.
        _stranded.append(self)

    def tell(self, failure: Failure) -> None:
        """Tell of *failure* here and now. For threads that may log."""
        if report(failure, self._hook(), self._storms) and self.inbox is not None:
            # Whoever finds the inbox closed tells everything at the end.
            with suppress(RuntimeError):
                self.inbox.put(self._tell_kept_later)

    def _tell_kept_later(self) -> None:
        # On the loop's thread. A little later than need be, for the timer may be early.
        asyncio.get_running_loop().call_later(STORM + 0.01, self.tell_kept)

    def tell_kept(self, at_once: bool = False) -> None:
        """Log what was kept of a storm of equal failures; *at_once*: though it may go on. For threads that may log."""
        self._storms.log_kept(at_once)

    def tell_all_unheld(self) -> None:
        """Tell what is unheld, and leave no report to come. For threads that may log."""
        if self._held and not hasattr(sys, "getrefcount"):
            # PyPy, where finalisers come with the collector.
            gc.collect()
        self.tell_unheld()

    def tell_unheld(self) -> None:
        """Tell what is unheld. For threads that may log."""
        if self._unsure:
            self._find_unheld()
        while True:
            try:
                failure = self._unheld.popleft()
            except IndexError:
                return
            self.tell(failure)

    def _find_unheld(self) -> None:
        """Find what nobody holds any more, of that of which nobody could tell."""
        for _ in range(len(self._unsure)):
            try:
                handles, until = self._unsure.popleft()
            except IndexError:
                # Another thread looks as well.
                return
            unclaimed: Unclaimed = handles[0]._ended()[1]
            if sys.getrefcount(handles[0]) <= _ALONE:
                unclaimed.let_go()
            elif unclaimed and time.monotonic() < until:
                self._unsure.append((handles, until))

    def tell_all(self) -> None:
        """Tell what is unheld, and what is held. For threads that may log."""
        held: list[Unclaimed] | None = None
        while held is None:
            # Work that still goes on may fail, and be added, in the middle of the copying.
            with suppress(RuntimeError):
                held = list(self._held)
        # Who was woken by one asks for it in a moment.
        until = time.monotonic() + _ASKED_SOON
        while any(unclaimed and unclaimed.awaited for unclaimed in held) and time.monotonic() < until:
            time.sleep(0.001)
        for unclaimed in held:
            if draining() or not any(unclaimed.waiting):
                unclaimed.tell(self)
            # Else somebody waits still, on a loop that stands still, say, and asks for it, or drops the handle, and with it the failure.
        self.tell_unheld()
        self.tell_kept(at_once=True)

    def abandon(self) -> None:
        """In a forked child: what is here is the parent's to tell, and so is what its handles let go here."""
        self._held = WeakSet()
        self._unheld = deque(maxlen=0)
        self._unsure = deque(maxlen=0)


class Unclaimed:
    """
    An error that waits to be asked for; whoever drops the last reference unasked gets it reported.

    Kept apart from the task, so that only failures pay for a `__del__` (on the hot path it would cost 0.1 µs a task).
    """

    __slots__ = ("__weakref__", "_failures", "awaited", "failure", "traceback", "waiting")

    def __init__(self, failure: Failure, failures: Failures) -> None:
        self.failure = failure
        self.traceback = failure.exception.__traceback__
        # Whether somebody waited for the outcome when it came.
        self.awaited = False
        # Those who did, by how they wait. Who waits no more takes his own out again, but for threads that ask as soon as they are woken.
        self.waiting: tuple[Sequence[object], ...] = ()
        # None once it was asked for, or told.
        self._failures: Failures | None = failures

    def __bool__(self) -> bool:
        """Tell whether nobody has asked for it."""
        return self._failures is not None

    @property
    def exception(self) -> BaseException:
        # As it was when the work failed: every raise adds its frames to an exception's traceback,
        # so without this it would grow with each `result()`, and keep the frames of whoever asked alive.
        return self.failure.exception.with_traceback(self.traceback)

    def claim(self) -> BaseException:
        """Return the error; it is not reported any more."""
        self._failures = None
        return self.exception

    def tell(self, failures: Failures) -> None:
        """Tell of the error here and now, if nobody has asked for it."""
        if self._failures is not None:
            self.claim()
            failures.tell(self.failure)

    def let_go(self) -> None:
        """Have the error told of soon, if nobody has asked for it: nobody can any more."""
        failures = self._failures
        if failures is not None:
            self.claim()
            failures.tell_soon(self.failure)

    __del__ = let_go


def _alone() -> int:
    # As it is looked at in `_find_unheld`.
    handles = (object(),) * _REFERENCES
    return sys.getrefcount(handles[0])


_ALONE: Final = _alone() if LATE_FINALISERS else 0


def _tell_stranded() -> None:
    while True:
        try:
            failures = _stranded.popleft()
        except IndexError:
            return
        failures.tell_unheld()


tell_at_exit(_tell_stranded)
forget_after_fork(_stranded.clear)
