"""
A re-entrant lock that no exception from outside, such as Ctrl-C, leaves locked forever when `with` enters it.

CPython raises such exceptions at the end of each call. Up to 3.13, and from 3.15 on, `with` enters a lock written in C without such a
point. 3.14 makes a plain call of it: an exception raised there leaves the lock acquired and the block not begun. That happened in half of
the interruptions of a loop that does nothing else. So on 3.14 entering is written in Python. Leaving stays in C, because a Python function
could be interrupted before its first step.

Two things have that gap on every version: `threading.Condition`, which enters its lock in Python, and `if lock.acquire():` in front of a
`try`. So enter the lock of a condition by itself; and record, in one step in C, that a thread has acquired something, inside the block that
releases it.
"""

from __future__ import annotations

import sys
from threading import RLock

if sys.version_info[:2] == (3, 14) and sys.implementation.name == "cpython":
    import _thread

    # typeshed declares the base class final, which it is not.
    class Guard(_thread.RLock):  # pyright: ignore[reportGeneralTypeIssues]
        """An `RLock` that an exception in `with` never leaves locked."""

        __slots__ = ()

        def __enter__(self) -> bool:
            held: list[bool] = []
            try:
                # One step in C: if the lock is acquired, that is recorded too.
                held.extend(map(_thread.RLock.acquire, (self,)))
            except BaseException:
                if held:
                    self.release()
                raise
            return True

else:
    Guard = RLock  # pyright: ignore[reportAssignmentType]

__all__ = ["Guard"]
