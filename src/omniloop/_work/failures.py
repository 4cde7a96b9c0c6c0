"""
The failures of a runtime that nobody has asked for: each is told once, by a thread that may log. Outlives the runtime's lives.

A failure is *held* while somebody holds the handle and has not asked, and *dropped* from the moment when nobody holds it any more.
Dropping happens in a finaliser, on any thread, in the middle of anything, inside a logging handler too; so it only appends, and has
the loop's thread told. Whoever may log tells what was dropped: the loop's thread between two pieces of work, `flush` and the drain.
What is still held is told by `shutdown()`, and at exit. Where no loop's thread is left to come, a failure waits for the next one, or
for the exit.

Logging in the finaliser itself was tried: a garbage collection inside a handler that holds a plain lock deadlocked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

from .._process.exit import tell_at_exit
from .._process.fork import forget_after_fork
from .._report import Failure, report

if TYPE_CHECKING:
    from .._report import Hook
    from .inbox import Inbox

# Those of which no loop's thread will come to tell; referred to here, because their runtime may be gone.
_stranded: deque[Failures] = deque()


class Failures:
    """What is held and dropped of one runtime. From any thread, except where a method says otherwise."""

    def __init__(self, hook: Callable[[], Hook | None]) -> None:
        self._hook = hook
        self._held: WeakSet[Unclaimed] = WeakSet()
        self._dropped: deque[Failure] = deque()
        # Whose reader tells what was dropped; a life gives its own when it begins.
        self.inbox: Inbox | None = None

    def __bool__(self) -> bool:
        """Tell whether anything was dropped and not told."""
        return bool(self._dropped)

    def hold(self, unclaimed: Unclaimed) -> None:
        """Remember a failure that somebody may still ask for."""
        self._held.add(unclaimed)

    def drop(self, failure: Failure) -> None:
        """Have *failure* told soon. Only appends, so that a finaliser may call it."""
        self._dropped.append(failure)
        inbox = self.inbox
        if inbox is not None and not inbox.closed:
            with suppress(RuntimeError):
                inbox.poke()
                # After the append: who closes the inbox tells afterwards what was dropped by then.
                if not inbox.closed:
                    return
        # Closed, or no thread can be started.
        _stranded.append(self)

    def tell(self, failure: Failure) -> None:
        """Tell of *failure* here and now. For threads that may log."""
        report(failure, self._hook())

    def tell_dropped(self) -> None:
        """Tell what was dropped. For threads that may log."""
        while True:
            try:
                failure = self._dropped.popleft()
            except IndexError:
                return
            self.tell(failure)

    def tell_all(self) -> None:
        """Tell what was dropped, and what is held. For threads that may log."""
        held: list[Unclaimed] | None = None
        while held is None:
            # Work that still goes on may fail, and be added, in the middle of the copying.
            with suppress(RuntimeError):
                held = list(self._held)
        for unclaimed in held:
            unclaimed.tell(self)
        self.tell_dropped()

    def abandon(self) -> None:
        """In a forked child: what is here is the parent's to tell, and so is what its handles drop here."""
        self._held = WeakSet()
        self._dropped = deque(maxlen=0)


class Unclaimed:
    """
    An error that waits to be asked for; whoever drops the last reference unasked gets it reported.

    Kept apart from the task, so that only failures pay for a `__del__` (on the hot path it would cost 0.1 µs a task).
    """

    __slots__ = ("__weakref__", "_failures", "failure", "traceback")

    def __init__(self, failure: Failure, failures: Failures) -> None:
        self.failure = failure
        self.traceback = failure.exception.__traceback__
        # None once it was asked for, or told.
        self._failures: Failures | None = failures

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

    def __del__(self) -> None:
        failures = self._failures
        if failures is not None:
            self.claim()
            failures.drop(self.failure)


def _tell_stranded() -> None:
    while True:
        try:
            failures = _stranded.popleft()
        except IndexError:
            return
        failures.tell_dropped()


tell_at_exit(_tell_stranded)
forget_after_fork(_stranded.clear)
