"""Counts the work that a runtime has accepted and how it ended, over all its lives; only one number is counted on the hot path."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from .._threads import Guard

Entry = Literal["aside", "failed", "cancelled", "dropped", "handed_over", "refused", "marked"]


class Tally:
    """
    Counts since the process began, from any thread.

    There is no counter of accepted work, because several threads would add to it and `go` would need a lock; nor one of finished work. Both
    follow from the number of items taken and the work that is there now. A look reads the number taken *before* the work, and the number dropped
    last, so that it is never ahead of the truth. Each look also remembers its totals, so that none goes down.
    """

    __slots__ = ("_accepted", "_counts", "_finished", "_lock", "handing_over", "keeping", "taken")

    def __init__(self) -> None:
        # Items taken from the inbox. Counted by the loop's thread alone, and so without the lock, after the ledger holds the item.
        self.taken = 0
        # How many of those are keepers, which are nobody's work. Counted by the same thread, before the task is among the keepers.
        self.keeping = 0
        # By entry. Aside: accepted work that the loop does not take (calls in worker threads, and work that was ended before its turn).
        # Marked: work submitted by daemons, as far as it was counted, in a drain. Dropped: not finished, because the bounds had no room
        # for it. Handed over and refused: calls that an engine has taken, and calls that were refused and never sent to one.
        self._counts: Counter[Entry] = Counter()
        # The ids of calls that are on their way to an engine.
        self.handing_over: set[str] = set()
        # The totals of the last look.
        self._accepted = 0
        self._finished = 0
        # Re-entrant, because a signal handler may submit in the middle of a count.
        self._lock = Guard()

    def count(self, *entries: Entry) -> None:
        """Count one more of each entry, in one step. From any thread."""
        with self._lock:
            for entry in entries:
                self._counts[entry] += 1

    def begun(self) -> int:
        """Return how much work was ever taken or put aside, without what daemons have submitted."""
        return self.taken + self._counts["aside"] - self._counts["marked"]

    def look(self) -> tuple[int, int, int]:
        """Begin a look: return how much was begun, failed and cancelled. The work that is there is to be counted after this."""
        with self._lock:
            return self.taken + self._counts["aside"], self._counts["failed"], self._counts["cancelled"]

    def sum_up(
        self, look: tuple[int, int, int], running: int, scheduled: int, waiting: int, queued: int
    ) -> dict[str, int]:
        """
        Return the counts, by field of `Stats`, given how much there is now; *waiting* is the number of calls that no worker has taken yet.

        They add up: ``accepted == queue_depth + running + scheduled + finished + dropped``.
        """
        begun, failed, cancelled = look
        with self._lock:
            dropped = self._counts["dropped"]
            # Read last: a keeper that began during the look is subtracted without having been added, so the count is at worst too low.
            begun -= self.keeping
            # Failed and cancelled work is finished, even if so much was begun during the look that the difference is too low.
            finished = max(self._finished, begun - running - scheduled - waiting - dropped, failed + cancelled)
            accepted = max(self._accepted, begun + queued, finished + dropped)
            self._finished, self._accepted = finished, accepted
            handed_over, refused = self._counts["handed_over"], self._counts["refused"]
        # Work that came during the look is left for the next one.
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
