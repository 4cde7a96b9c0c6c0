"""
The re-entrant lock of whatever a caller's thread comes to: `with` takes and frees it, and Ctrl-C, or another exception that comes from
outside, finds it free or in the block, never taken for ever.

CPython looks for such exceptions at the end of each call. Up to 3.13, and from 3.15 on, a `with` enters a lock that is written in C
without one. 3.14 makes a plain call of it, and an exception that comes in it finds the lock taken and the block not begun: in half of
those that interrupt a loop that does nothing else. Entering is written in Python there. Leaving stays in C: a function in Python could
be interrupted before its first step.

On every version it happens to `threading.Condition`, which enters its lock in Python, and to `if lock.acquire():` in front of a `try`.
So enter the lock of a condition by itself, and note who has something with what is one step in C, in the block that gives it back.
"""

from __future__ import annotations

import sys
from threading import RLock

if sys.version_info[:2] == (3, 14) and sys.implementation.name == "cpython":
    import _thread

    # typeshed has its base class final, which it is not.
    class Guard(_thread.RLock):  # pyright: ignore[reportGeneralTypeIssues]
        """An `RLock` that is never left taken."""

        __slots__ = ()

        def __enter__(self) -> bool:
            held: list[bool] = []
            try:
                # In one step: what was taken is noted.
                held.extend(map(_thread.RLock.acquire, (self,)))
            except BaseException:
                if held:
                    self.release()
                raise
            return True

else:
    Guard = RLock  # pyright: ignore[reportAssignmentType]

__all__ = ["Guard"]
