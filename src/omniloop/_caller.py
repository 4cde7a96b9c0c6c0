"""Names the code that called, also where no Python code did: a greenlet, a bare thread or a C library may call any door."""

import sys
from types import FrameType


def caller(depth: int = 1) -> FrameType:
    """Return the frame that called the function that asks; that function's own, if no Python code called it."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        # Nothing below: the first function of a greenlet, or of a thread by `_thread`.
        return sys._getframe(1)
