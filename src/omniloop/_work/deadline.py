"""Limits the time of a piece of work: when it is over, the work is cancelled, and fails with a `TaskTimeoutError`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .._errors import TaskTimeoutError
from .._report import shown
from .._threads import time

T = TypeVar("T")


async def within(coro: Coroutine[Any, Any, T], name: str, timeout: float, until: float | None) -> T:
    """Await *coro* until *until*, by `time.monotonic()`, or for *timeout* seconds if that is None. If it is too late, *coro* never starts."""
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
            # A TimeoutError that the work itself raised, even while it was being cancelled, has another cause.
            if cut_off is None or error.__cause__ is not cut_off:
                raise
        # Raised outside the handler. Inside, asyncio's error would be the context of this one and keep its `Timeout` alive, which
        # refers to the task: a cycle.
        since = "its start" if until is None else "its submission"
        # The cause shows where the work was when the time was over.
        raise _of_handle(f"{shown(name)} was not done {timeout:g} s after {since}, and was cancelled.") from cut_off
    finally:
        # The traceback of the cause refers to this frame: another cycle.
        del cut_off


def _of_handle(words: str) -> TaskTimeoutError:
    error = TaskTimeoutError(words)
    error.of_handle = True
    return error
