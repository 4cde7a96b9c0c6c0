"""Waits for a task in async code that trio runs and asyncio does not. trio is never imported here, only found."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from .. import _hooks


def runs_here() -> bool:
    """Tell whether the calling code runs under trio. In guest mode and under trio-asyncio an asyncio loop runs as well."""
    # trio itself sets this around each step of a task.
    sniffio = sys.modules.get("sniffio")
    return sniffio is not None and getattr(sniffio.thread_local, "name", None) == "trio"


def serves_here() -> bool:
    """Tell whether trio runs in this thread, at any point of its run."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


async def wait(task: Any, asks: bool, timeout: float | None) -> None:
    """
    Wait under trio until *task* is done, whichever thread it ends on, or *timeout* passed.

    If a scope is cancelled, the work is asked to end, and the scope, as trio requires, learns of the end when the work's clean-up is done. If the
    work swallows the cancellation, its result comes out. If it can't be asked any more, or *asks* is false, the waiter leaves at once and the work
    goes on.
    """
    trio = sys.modules["trio"]
    token = trio.lowlevel.current_trio_token()
    waiter = trio.lowlevel.current_task()
    raise_cancelled: Callable[[], object] | None = None
    left = False

    def reschedule() -> None:
        if not left:
            trio.lowlevel.reschedule(waiter)

    def wake() -> None:
        try:
            token.run_sync_soon(reschedule)
        except trio.RunFinishedError:
            # The trio run crashed while its task still waited: there is nothing left to wake.
            pass

    def abort(raise_cancel: Callable[[], object]) -> object:
        nonlocal raise_cancelled, left
        if asks and task.cancel():
            raise_cancelled = raise_cancel
            # The abort fails for now: `wake` comes when the clean-up is done.
            return trio.lowlevel.Abort.FAILED
        left = True
        task._no_more(wake)
        return trio.lowlevel.Abort.SUCCEEDED

    task._when_done(wake)
    with trio.move_on_after(math.inf if timeout is None else timeout):
        await trio.lowlevel.wait_task_rescheduled(abort)
    if raise_cancelled is not None and task.cancelled():
        raise_cancelled()


def say_asyncio() -> bool:
    """
    Make sniffio answer "asyncio" on the calling thread, whatever it answers in the submitter's context; False if sniffio isn't loaded.

    `anyio.run` keeps the name of its backend in the context, and the work has a copy of that. Without this, anyio would take a task that was
    submitted under trio for one that trio runs.
    """
    sniffio = sys.modules.get("sniffio")
    if sniffio is None:
        return False
    sniffio.thread_local.name = "asyncio"
    return True


_hooks.elsewhere.take(sys.modules[__name__])
