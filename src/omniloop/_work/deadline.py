"""The time that a piece of work may take: when it is over, the work is cancelled, and fails with an error that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .._clock import time
from .._errors import TaskTimeoutError
from .._report import shown

T = TypeVar("T")


async def within(coro: Coroutine[Any, Any, T], name: str, timeout: float, until: float | None) -> T:
    """Await *coro* until the moment *until*, by `time.monotonic()`; None for *timeout* seconds from now. Too late already, it never starts."""
    left = timeout if until is None else until - time.monotonic()
    if left <= 0:
        coro.close()
        raise _of_handle(f"{shown(name)} was not started within {timeout:g} s of its submission, and never will be.")
    cut_off = None
    try:
        try:
            async with asyncio.timeout(left):
                try:
                    return await coro
                except asyncio.CancelledError as error:
                    cut_off = error
                    raise
        except TimeoutError as error:
            # One that the work raised by itself, also while it was being cancelled, has another cause.
            if cut_off is None or error.__cause__ is not cut_off:
                raise
        # Not in the handler: as this one's context asyncio's would keep its `Timeout` alive, which refers to the task, in a cycle.
        since = "its start" if until is None else "its submission"
        # The cause shows where the work was at that moment.
        raise _of_handle(f"{shown(name)} was not done {timeout:g} s after {since}, and was cancelled.") from cut_off
    finally:
        # This frame is in its traceback: another cycle.
        del cut_off


def _of_handle(words: str) -> TaskTimeoutError:
    error = TaskTimeoutError(words)
    error.of_handle = True
    return error
