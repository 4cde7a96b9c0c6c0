"""Finds the frame of the caller, even if no Python code called: a greenlet, a bare thread or a C library may call any public function."""

import sys
from types import FrameType


def caller(depth: int = 1) -> FrameType:
    """Return the frame that called the asking function; if no Python code called it, that function's own frame."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        # No frame below: this is the first function of a greenlet, or of a thread started by `_thread`.
        return sys._getframe(1)
