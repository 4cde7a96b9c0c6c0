"""Counts what a runtime has accepted and what became of it, over all its lives; off the hot path but for one number."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from .._locks import Guard

Entry = Literal["aside", "failed", "cancelled", "dropped", "handed_over", "refused", "marked"]


class Tally:
    """
    Counts since the process began, from any thread.

    There is no counter of what was accepted, because adding to one from several threads would need a lock in `go`, and none of what
    is finished. Both follow from what was taken, and what is there: each look reads what was taken *before* what is there, and what
    was dropped last, so that it is behind the truth at worst. And each look remembers what it said, so that no total goes down.
    """

    __slots__ = ("_accepted", "_counts", "_finished", "_lock", "handing_over", "keeping", "taken")

    def __init__(self) -> None:
        # From the inbox, by the loop's thread alone, and so without the lock. After the ledger has it in hand, and not before.
        self.taken = 0
        # Of those, what keeps something open for others, and is no work of anybody's. By the same thread, before it is among the keepers.
        self.keeping = 0
        # By entry. Put aside: accepted, and not for the loop to take (calls in worker threads, and what was ended before its turn came).
        # Marked: of what a daemon has submitted, as far as it was counted, in a drain. Dropped: not finished, because the bounds had no
        # room for it. Of calls for engines: how many the engines have taken, and how many never set out.
        self._counts: Counter[Entry] = Counter()
        # The ids of calls on the way to an engine.
        self.handing_over: set[str] = set()
        # What the last look said.
        self._accepted = 0
        self._finished = 0
        # Re-entrant, because a signal handler may submit in the middle of a count.
        self._lock = Guard()

    def count(self, *entries: Entry) -> None:
        """One more of each, in one step. From any thread."""
        with self._lock:
            for entry in entries:
                self._counts[entry] += 1

    def begun(self) -> int:
        """How much was ever taken, or put aside, and is nothing that a daemon has submitted."""
        return self.taken + self._counts["aside"] - self._counts["marked"]

    def look(self) -> tuple[int, int, int]:
        """Begin a look: how much was begun, failed and cancelled. What is there is to be counted after this."""
        with self._lock:
            return self.taken + self._counts["aside"], self._counts["failed"], self._counts["cancelled"]

    def sum_up(
        self, look: tuple[int, int, int], running: int, scheduled: int, waiting: int, queued: int
    ) -> dict[str, int]:
        """
        Say what the book says, by field of `Stats`, where so much is there now; *waiting* are the calls that no worker has come to yet.

        It adds up: ``accepted == queue_depth + running + scheduled + finished + dropped``.
        """
        begun, failed, cancelled = look
        with self._lock:
            dropped = self._counts["dropped"]
            # Read last: what began to keep since the look began is subtracted, and not in there, which is behind the truth.
            begun -= self.keeping
            # What failed or was cancelled is finished, also where so much was begun since that the difference is behind that.
            finished = max(self._finished, begun - running - scheduled - waiting - dropped, failed + cancelled)
            accepted = max(self._accepted, begun + queued, finished + dropped)
            self._finished, self._accepted = finished, accepted
            handed_over, refused = self._counts["handed_over"], self._counts["refused"]
        # What came during the look is left for the next one.
        left = accepted - finished - dropped
        scheduled = min(scheduled, left)
        running = min(running, left - scheduled)
        return {
            "accepted": accepted,
            "finished": finished,
            "failed": failed,
            "cancelled": cancelled,
            "dropped": dropped,
            "running": running,
            "scheduled": scheduled,
            "queue_depth": left - scheduled - running,
            "handed_over": handed_over,
            "handing_over": len(self.handing_over),
            "refused": refused,
        }
