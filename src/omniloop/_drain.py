"""How a life ends: wait, cancel what is left and await its clean-up, name what is dropped, stop the thread."""

import asyncio
import concurrent.futures
import threading
import time
from itertools import count
from threading import Lock
from typing import Any, Final

from ._errors import ClosedError, WouldDeadlockError
from ._life import Life
from ._report import logger, thread_stack
from ._task import Task

# Beyond the deadlines: for a thread that was told to end to be gone.
_JOIN_TIMEOUT: Final = 0.5

# So many are named in the log, then only counted.
_NAMED: Final = 20


def flush(life: Life, deadline: float | None) -> bool:
    """Wait until all that was accepted before this call is done; False at the *deadline*, by `time.monotonic`."""
    quiet = _round(life, deadline)
    return quiet is not None


def drain(life: Life, deadline: float | None) -> bool:
    """Wait, in rounds, until nothing is left to wait for; what draining work submits is waited for too."""
    while True:
        quiet = _round(life, deadline)
        if quiet is not False:
            return bool(quiet)


def close(life: Life, deadline: float | None, cancel_timeout: float, patient: bool = True) -> None:
    """
    Drain until the *deadline*; cancel what is left, and the daemons; then end the thread. Delivered or refused: nothing between.

    The first Ctrl-C ends the waiting, a second one the waiting for the clean-up. Not *patient*: as after the first.
    """
    dropped: list[str] = []
    last = time.monotonic()
    try:
        try:
            while patient and drain(life, deadline):
                # Daemons, and tasks that were made without the runtime, when the others are done: those may need them.
                last = time.monotonic() + cancel_timeout
                if not _cancel(life, last):
                    break
                if _refuse(life, last):
                    return
        except KeyboardInterrupt:
            logger.warning("%s: interrupted while draining; what is left is cancelled.", life.name)
        dropped = _describe(life)
        last = time.monotonic() + cancel_timeout
        _cancel(life, last)
        _refuse(life, last)
    except KeyboardInterrupt:
        last = time.monotonic()
    finally:
        _end(life, last, dropped)


def guard(life: Life, what: str) -> None:
    """Raise if this thread can't wait for all of the work."""
    life.guard(what)
    if life.started and life.workers.is_worker():
        raise WouldDeadlockError(
            f"{what} in a worker thread of the same runtime would wait for itself. Call it from another thread."
        )


def _round(life: Life, deadline: float | None) -> bool | None:
    """
    Wait until what was accepted by now is done. True if then nothing was left, False if something came meanwhile.

    None at the deadline.
    """
    thread = life.thread
    if thread is None and not life.inbox:
        return True
    if thread is not None and not thread.alive and not life.inbox and not life.dead and life.ledger.is_quiet():
        # The thread was ended before a fork, because there was nothing to do.
        return True
    if life.inbox.closed:
        return True
    gate = Lock()
    gate.acquire()
    quiet = False

    def mark() -> None:
        # On the loop's thread, after all that came before was started.
        waited_for = life.ledger.waited_for()
        if not waited_for:
            finish()
            return
        # Of all that end at once in several threads, exactly one gets the last number.
        numbers = count(1)

        def one_less() -> None:
            if next(numbers) == len(waited_for):
                # By way of the inbox: reports are made before the next item, so that a flush leaves nothing unsaid.
                if not life.inbox.put(finish):
                    finish()

        for task in waited_for:
            task._when_done(one_less)

    def finish() -> None:
        nonlocal quiet
        quiet = life.inbox.closed or life.ledger.is_quiet()
        gate.release()

    if not life.inbox.put(mark):
        return True
    return quiet if _acquire(gate, deadline) else None


def _acquire(gate: Lock, deadline: float | None) -> bool:
    if deadline is None:
        return gate.acquire()
    return gate.acquire(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))


def _cancel(life: Life, deadline: float) -> bool:
    """Cancel all that is left on the loop and await its clean-up; False if that was not over at the *deadline*."""
    if life.thread is None or not life.thread.alive:
        return True
    try:
        future = asyncio.run_coroutine_threadsafe(_cancel_all(life, deadline), life.thread.loop)
    except RuntimeError:
        # The loop was closed by somebody else.
        return True
    try:
        return future.result(max(0.0, deadline - time.monotonic()) + _JOIN_TIMEOUT / 2)
    except concurrent.futures.TimeoutError:
        # The loop is stuck in a callback.
        return False


async def _cancel_all(life: Life, deadline: float) -> bool:
    me = asyncio.current_task()
    asked: set[asyncio.Task[Any]] = set()
    while True:
        life.ledger.cancel_timers()
        left = {task for task in asyncio.all_tasks() if task is not me and not task.done()}
        if not left:
            break
        for task in left - asked:
            task.cancel()
        # Asked once: a second time would interrupt the clean-up.
        asked |= left
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        await asyncio.wait(
            left, timeout=remaining, return_when=asyncio.FIRST_COMPLETED if len(left) < 100 else asyncio.ALL_COMPLETED
        )
    try:
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), max(0.01, deadline - time.monotonic()))
    except TimeoutError:
        return False
    # The callbacks of what has just ended, which settle it, come before this goes on.
    await asyncio.sleep(0)
    return True


def _refuse(life: Life, deadline: float) -> bool:
    """Refuse from now on, if nothing came meanwhile; False if something did."""
    thread = life.thread
    if thread is None or not thread.alive:
        undelivered = life.inbox.close()
        if undelivered and not life.dead:
            life.inbox.reopen()
            for item in undelivered:
                life.inbox.put(item)
            return False
        return True
    gate = Lock()
    gate.acquire()
    refused = False

    def refuse() -> None:
        nonlocal refused
        undelivered = life.inbox.close()
        if undelivered or not life.ledger.is_quiet():
            life.inbox.reopen()
            for item in undelivered:
                life.inbox.put(item)
        else:
            refused = True
        gate.release()

    try:
        thread.post(refuse)
    except RuntimeError:
        # The loop was closed by somebody else.
        return True
    return _acquire(gate, deadline + _JOIN_TIMEOUT / 2) and refused


def _end(life: Life, deadline: float, dropped: list[str]) -> None:
    """Stop the threads, tell what was dropped, and let nobody wait for what will not come."""
    undelivered = life.inbox.close()
    thread = life.thread
    joined = True
    if thread is not None:
        life.stop_watching(_JOIN_TIMEOUT)
        if thread.alive:
            try:
                joined = thread.end(max(0.0, deadline - time.monotonic()) + _JOIN_TIMEOUT)
            except RuntimeError:
                # The loop was closed by somebody else; its thread ends by itself.
                joined = thread.join(_JOIN_TIMEOUT)
        busy = life.workers.stop(
            max(0.0, deadline - time.monotonic()) + _JOIN_TIMEOUT if not dropped else _JOIN_TIMEOUT
        )
        if not joined:
            logger.error(
                "%s: the loop's thread did not end, because a callback blocks it here:\n%s",
                life.name,
                thread_stack(thread.ident),
            )
        for worker in busy:
            logger.warning(
                "%s: worker thread %r did not end; it runs here:\n%s",
                life.name,
                worker.name,
                thread_stack(worker.ident),
            )
    if dropped:
        more = f"\n  … and {len(dropped) - _NAMED} more" if len(dropped) > _NAMED else ""
        logger.warning(
            "%s: %d unfinished when the time for draining was over, and cancelled:\n%s%s",
            life.name,
            len(dropped),
            "\n".join(dropped[:_NAMED]),
            more,
        )
    life.closed = True
    life.fail_all(undelivered, lambda: ClosedError("The runtime was shut down before this was done."))
    life.report_all()
    if thread is not None and joined:
        thread.close()


def _describe(life: Life) -> list[str]:
    """Name what will be dropped: name, age, where it was submitted, where it waits."""
    if life.thread is None:
        return []
    # Daemons and what is not due yet are not dropped but ended, as they were meant to.
    return [describe(task) for task in life.ledger.waited_for()]


def describe(task: Task[Any]) -> str:
    """One line on an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    return f"  {task.get_name()}{since}, submitted at {task._site().short()}, waits at {task._place()}"
