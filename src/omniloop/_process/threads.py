"""The threads of this package: how they are made and joined, and why one can't be made."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from .._clock import slices, time

# How long, in seconds, to wait for the system to forget a thread that `Thread.join` says has ended: on 3.12.1 that returned earlier in 30 of
# 400 forks.
_GONE_TIMEOUT: Final = 0.1


def new_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """
    Return a daemon thread, not started yet, with an empty context.

    From 3.14 on a thread may inherit the context of the thread that starts it (without a GIL it does). It would keep whatever a request
    left there alive for as long as it lives itself.
    """
    options: dict[str, Any] = {"context": contextvars.Context()} if sys.version_info >= (3, 14) else {}
    return threading.Thread(target=target, name=name, daemon=True, **options)


def join(thread: threading.Thread, timeout: float | None) -> bool:
    """
    Join *thread*; False if that took longer than *timeout* seconds. None waits without end.

    One that is just being started, by another thread or below this call, ends when it looks, and is not waited for; nor is the calling thread.
    Also waits, up to `_GONE_TIMEOUT`, until the system has forgotten it: CPython's warning about forking with threads counts the threads that
    the system lists. Only Linux has such a list.
    """
    for seconds in slices(timeout):
        try:
            thread.join(seconds)
        except RuntimeError:
            return True
        if not thread.is_alive():
            break
    else:
        return False
    until = time.monotonic() + _GONE_TIMEOUT
    while (
        sys.platform == "linux" and os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < until
    ):
        time.sleep(0.0001)
    return True


def is_running_thread(thing: object) -> bool:
    """Tell whether *thing* is a thread that has not ended."""
    return isinstance(thing, threading.Thread) and thing.is_alive()


def why_no_thread(error: BaseException) -> str:
    """Say why no thread can be started here, as the end of a sentence, and the way out if there is one."""
    if "daemon threads are disabled" in str(error):
        # CPython's message from 3.12 on. The way to ask beforehand is private, and named differently in each version.
        return (
            "this is an isolated sub-interpreter, and those have no daemon threads. Use omniloop in the main interpreter, and "
            "asyncio.run() in this one."
        )
    return f"{error}."
