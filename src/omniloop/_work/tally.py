"""Counts what a runtime has accepted and what became of it, over all its lives; off the hot path but for one number."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .._locks import Guard

Entry = Literal["aside", "failed", "cancelled", "dropped", "handed_over", "refused", "marked"]


class Sums(NamedTuple):
    """A count that adds up: ``accepted == queue_depth + running + scheduled + finished + dropped``."""

    accepted: int
    finished: int
    failed: int
    cancelled: int
    dropped: int
    running: int
    scheduled: int
    queue_depth: int


class Tally:
    """
    Counts since the process began, from any thread.

    There is no counter of what was accepted, because adding to one from several threads would need a lock in `go`, and none of what
    is finished. Both follow from what was taken, and what is there: each look reads what was taken *before* what is there, and what
    was dropped last, so that it is behind the truth at worst. And each look remembers what it said, so that no total goes down.
    """

    __slots__ = (
        "_accepted",
        "_aside",
        "_cancelled",
        "_dropped",
        "_failed",
        "_finished",
        "_handed_over",
        "_lock",
        "_marked",
        "_refused",
        "handing_over",
        "keeping",
        "taken",
    )

    def __init__(self) -> None:
        # From the inbox, by the loop's thread alone, and so without the lock. After the ledger has it in hand, and not before.
        self.taken = 0
        # Of those, what keeps something open for others, and is no work of anybody's. By the same thread, before it is among the keepers.
        self.keeping = 0
        # Accepted, and not for the loop to take: calls in worker threads, and what was ended before its turn came.
        self._aside = 0
        # Of what a daemon has submitted, as far as it was counted: in a drain.
        self._marked = 0
        # Of what is finished; and of what is not, because the bounds had no room for it.
        self._failed = 0
        self._cancelled = 0
        self._dropped = 0
        # Calls for engines: the ids of those on the way; how many the engines have taken, and how many never set out.
        self.handing_over: set[str] = set()
        self._handed_over = 0
        self._refused = 0
        self._accepted = 0
        self._finished = 0
        # Re-entrant, because a signal handler may submit in the middle of a count.
        self._lock = Guard()

    def count(self, *entries: Entry) -> None:
        """One more of each, in one step. From any thread."""
        with self._lock:
            for entry in entries:
                name = f"_{entry}"
                setattr(self, name, getattr(self, name) + 1)

    def handovers(self) -> dict[str, int]:
        """What became of the calls for engines, by field of `Stats`."""
        with self._lock:
            return {
                "handed_over": self._handed_over,
                "handing_over": len(self.handing_over),
                "refused": self._refused,
            }

    def begun(self) -> int:
        """How much was ever taken, or put aside, and is nothing that a daemon has submitted."""
        return self.taken + self._aside - self._marked

    def look(self) -> Look:
        """Begin a look; what is there is to be counted after this."""
        return Look(self)

    def _sum_up(self, look: Look, running: int, scheduled: int, waiting: int, queued: int) -> Sums:
        with self._lock:
            dropped = self._dropped
            # Read last: what began to keep since the look began is subtracted, and not in there, which is behind the truth.
            begun = look.begun - self.keeping
            # What failed or was cancelled is finished, also where so much was begun since that the difference is behind that.
            finished = max(
                self._finished, begun - running - scheduled - waiting - dropped, look.failed + look.cancelled
            )
            accepted = max(self._accepted, begun + queued, finished + dropped)
            self._finished, self._accepted = finished, accepted
        # What came during the look is left for the next one.
        left = accepted - finished - dropped
        scheduled = min(scheduled, left)
        running = min(running, left - scheduled)
        return Sums(
            accepted, finished, look.failed, look.cancelled, dropped, running, scheduled, left - scheduled - running
        )


class Look:
    """What was counted when a look began."""

    __slots__ = ("_tally", "begun", "cancelled", "failed")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        with tally._lock:
            aside, self.failed, self.cancelled = tally._aside, tally._failed, tally._cancelled
        self.begun = tally.taken + aside

    def sum_up(self, running: int, scheduled: int, waiting: int, queued: int) -> Sums:
        """Say what the book says, where so much is there now; *waiting* are the calls that no worker has come to yet."""
        return self._tally._sum_up(self, running, scheduled, waiting, queued)
