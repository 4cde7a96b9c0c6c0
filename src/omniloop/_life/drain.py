"""How a life ends: wait, cancel what is left and await its clean-up, name what is dropped, stop the thread."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Lock
from typing import Any, Final

from .._errors import CannotStartError, ClosedError, WouldDeadlockError
from .._report import innermost, say, thread_stack
from .._work.ledger import is_asked
from .._work.task import Kind, Task
from . import waits
from .life import Life
from .progress import Progress
from .thread import LoopThread

# How soon to look again for a worker that has done its call, and is about to let go of it.
_LETTING_GO: Final = 0.0005

# Beyond the deadlines: for a thread that was told to end to be gone.
_JOIN_TIMEOUT: Final = 0.5

# So many are named in the log, then only counted.
_NAMED: Final = 20


def flush(life: Life, deadline: float | None, show: bool) -> bool:
    """Wait until all that was accepted before this call is done; False at the *deadline*, by `time.monotonic`."""
    with Progress(life.name, life.remaining, show) as progress:
        quiet = _round(life, deadline, progress)
    return quiet is not None


def drain(life: Life, deadline: float | None, show: bool) -> bool:
    """Wait, in rounds, until nothing is left to wait for; what draining work submits is waited for too."""
    with Progress(life.name, life.remaining, show) as progress:
        try:
            while (quiet := _round(life, deadline, progress)) is False:
                pass
        except CannotStartError:
            # What is left has nothing to run on, and whoever submitted it was told.
            return False
    return bool(quiet)


def close(life: Life, deadline: float | None, cancel_timeout: float, interruptions: int, show: bool) -> int:
    """
    Drain until the *deadline*; cancel what is left, and the daemons; then end the thread. Delivered or refused: nothing between.

    The first Ctrl-C ends the waiting, a second one the waiting for the clean-up as well. Takes how many there were, and returns it.
    """
    dropped: dict[Task[Any], str] = {}
    why = "the time for draining was over"
    undelivered: list[Any] = []
    slow: list[Task[Any]] = []
    last = time.monotonic()
    try:
        try:
            while not interruptions and drain(life, deadline, show):
                # Daemons, and tasks that were made without the runtime, when the others are done: those may need them.
                last = time.monotonic() + cancel_timeout
                if not _cancel(life, last, patient=True):
                    slow = life.ledger.ending()
                    break
                if _refuse(life, last):
                    return interruptions
        except KeyboardInterrupt:
            interruptions += 1
        dropped = _describe(life, slow)
        why = "Ctrl-C ended the draining" if interruptions else why
        last = time.monotonic() + (cancel_timeout if interruptions < 2 else 0)
        _cancel(life, last)
        if not _refuse(life, last):
            # There is always more. From here on it is refused; what was started meanwhile is cancelled too.
            undelivered = life.inbox.close()
            _cancel(life, last)
    except KeyboardInterrupt:
        interruptions += 1
        last = time.monotonic()
    finally:
        # Of two threads that close at once, one does this, and the other waits for it: it takes no longer than the deadline.
        with life.ending:
            if not life.closed:
                _end(life, last, dropped, why, undelivered)
            else:
                life.fail_all(undelivered, _closed_error)
    return interruptions


@contextmanager
def waiting(life: Life, what: str) -> Iterator[None]:
    """Around a wait for all of the work: raise if it could never end, and have others that wait for this thread told of theirs."""
    life.guard(what)
    if life.started and life.workers.is_worker():
        raise WouldDeadlockError(
            f"{what} in a worker thread of the same runtime would wait for itself. Call it from another thread."
        )
    ident = life.thread.ident if life.thread is not None else None
    try:
        if ident is not None and not waits.begin(ident):
            raise WouldDeadlockError(f"{what} would never end: the loop {life.name!r} waits for this thread.")
        yield
    finally:
        waits.end()


def _round(life: Life, deadline: float | None, progress: Progress) -> bool | None:
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
    # The calls in worker threads, by identity: a reference would keep a failure from being reported.
    calls: set[int] = set()

    def mark() -> None:
        # On the loop's thread, after all that came before was started.
        waited_for = life.ledger.waited_for()
        total = len(waited_for)
        if not total:
            finish()
            return
        calls.update(map(id, life.ledger.in_threads))
        # Of all that end at once in several threads, exactly one gets the last number.
        numbers = count(1)

        def one_less() -> None:
            if next(numbers) == total:
                # By way of the inbox: reports are made before the next item, so that a flush leaves nothing unsaid.
                if not life.inbox.put(finish):
                    finish()

        for task in waited_for:
            task._when_done(one_less)

    def finish() -> None:
        nonlocal quiet
        if not calls.isdisjoint(map(id, list(life.ledger.in_threads))) and not life.inbox.closed:
            # A worker is about to let go of what it did.
            life.ledger.loop.call_later(_LETTING_GO, finish)
            return
        life.failures.tell_dropped()
        quiet = life.inbox.closed or life.ledger.is_quiet()
        gate.release()

    try:
        if not life.inbox.put(mark):
            return True
        # This may be the handler of a SIGTERM, which interrupts a submission that has taken the token and not yet woken the loop.
        life.inbox.nudge()
        while not (life.thread is not None and life.thread.alive):
            # Another thread is starting it. Should that fail, as it does on 3.12 when main has ended, nobody would come to the mark.
            life.wait_for_start()
            life.inbox.nudge()
            if gate.acquire(timeout=_LETTING_GO):
                return quiet
            if deadline is not None and time.monotonic() >= deadline:
                return None
    except BaseException:
        life.inbox.take_back(mark)
        raise
    return quiet if progress.acquire(gate, deadline) else None


def _acquire(gate: Lock, deadline: float) -> bool:
    return gate.acquire(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))


def _cancel(life: Life, deadline: float, patient: bool = False) -> bool:
    """
    Cancel all that is left on the loop and await its clean-up; False if that was not over at the *deadline*.

    *patient*: not if there is work to drain, which came meanwhile; and not what the program itself has asked to end.
    """
    thread = life.thread
    if thread is None or not thread.alive:
        return True

    def begin(answer: Callable[[bool], None]) -> None:
        # A task of asyncio's own, whatever factory the user has set.
        runner = asyncio.Task(_cancel_all(life, deadline, patient), loop=thread.loop)
        runner.add_done_callback(lambda ended: answer(ended.result()))

    return _on_loop(thread, begin, deadline)


def _on_loop(thread: LoopThread, call: Callable[[Callable[[bool], None]], None], deadline: float) -> bool:
    """
    Have the loop make *call*, and wait for its answer; False at the *deadline*.

    From then on it is not made any more: a callback that blocked the loop may come back when all is over.
    """
    gate = Lock()
    gate.acquire()
    turn = Lock()
    answered = given_up = False

    def answer(value: bool) -> None:
        nonlocal answered
        answered = value
        gate.release()

    def make() -> None:
        with turn:
            if not given_up:
                call(answer)

    try:
        thread.post(make)
    except RuntimeError:
        # The loop was closed by somebody else.
        return True
    if not _acquire(gate, deadline + _JOIN_TIMEOUT / 2):
        with turn:
            given_up = True
    return answered


async def _cancel_all(life: Life, deadline: float, patient: bool) -> bool:
    asked: set[asyncio.Task[Any]] = set()
    # While something is kept open, half of the time is for closing it.
    halftime = (time.monotonic() + deadline) / 2
    while True:
        if patient and not life.ledger.is_quiet():
            # What was accepted since the draining is to be done, and not cancelled; the bare tasks may be its own.
            return True
        life.ledger.cancel_timers()
        left = {task for task in asyncio.all_tasks() if not _cancels_all(task) and not task.done()}
        if not left:
            break
        kept = [runner for runner in life.ledger.keepers if runner in left]
        now, until = left.difference(kept), halftime if kept else deadline
        if kept and (not now or time.monotonic() >= halftime):
            # The youngest first: it may need the older ones.
            now, until = left & {kept[-1]}, deadline
        if time.monotonic() >= deadline:
            now = left
        # In the order they were started, for a queue in which many wait (an `asyncio.Event`'s) searches for each that leaves it from
        # its head: in any other order 100,000 take ten times as long.
        for task in dict.fromkeys([*life.ledger.running, *life.ledger.daemons, *now]):
            if task in now and task not in asked and not (patient and is_asked(task)):
                task.cancel()
        # Asked once: a second time would interrupt the clean-up.
        asked |= now
        remaining = until - time.monotonic()
        if remaining <= 0:
            # One turn of the loop for those that were asked just now.
            await asyncio.sleep(0)
            return False
        # All of them, before the next look: what their clean-up starts is not to be cancelled, but waited for.
        await asyncio.wait(now, timeout=remaining)
    loop = life.ledger.loop
    if (generators := getattr(loop, "_asyncgens", None)) is not None:
        # Nothing is refused yet, and asyncio's own hook complains of those that are opened from now on.
        sys.set_asyncgen_hooks(firstiter=generators.add)
    try:
        async with asyncio.timeout(max(0.01, deadline - time.monotonic())):
            await loop.shutdown_asyncgens()
    except TimeoutError:
        return False
    # The callbacks of what has just ended, which settle it, come before this goes on.
    await asyncio.sleep(0)
    return True


def _cancels_all(task: asyncio.Task[Any]) -> bool:
    """Tell whether *task* is the one that cancels the others, here or in another thread that closes the same life."""
    return getattr(task.get_coro(), "cr_code", None) is _cancel_all.__code__


def _refuse(life: Life, deadline: float) -> bool:
    """Refuse from now on, if nothing came meanwhile; False if something did."""
    thread = life.thread
    if thread is None or not thread.alive:
        undelivered = life.inbox.close()
        if undelivered and not life.dead:
            with suppress(CannotStartError):
                life.inbox.reopen(undelivered)
            return False
        return True

    def refuse(answer: Callable[[bool], None]) -> None:
        undelivered = life.inbox.close()
        ledger = life.ledger
        quiet = not undelivered and ledger.is_quiet() and not ledger.keepers and not ledger.has_open_generators()
        if not quiet:
            life.inbox.reopen(undelivered)
        answer(quiet)

    return _on_loop(thread, refuse, deadline)


def _closed_error() -> ClosedError:
    return ClosedError("The runtime was shut down before this was done.")


def _end(life: Life, deadline: float, dropped: dict[Task[Any], str], why: str, undelivered: list[Any]) -> None:
    """Stop the threads, tell what was dropped, and let nobody wait for what will not come."""
    undelivered += life.inbox.close()
    # Whoever starts the thread now did not see that it is closed; who comes later does.
    life.wait_for_start()
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
        else:
            # It leaves for a fork, or has left.
            joined = thread.join(_JOIN_TIMEOUT)
        busy = life.workers.stop(
            max(0.0, deadline - time.monotonic()) + _JOIN_TIMEOUT if not dropped else _JOIN_TIMEOUT
        )
        if not joined:
            say(
                "%s: the loop's thread did not end, because a callback blocks it here:\n%s",
                life.name,
                thread_stack(thread.ident),
            )
        for worker in busy:
            say(
                "%s: worker thread %r did not end; it runs here:\n%s",
                life.name,
                worker.name,
                thread_stack(worker.ident),
            )
    if dropped:
        say(
            "%s: %d unfinished when %s, and cancelled:%s",
            life.name,
            len(dropped),
            why,
            _named(dropped.values()),
        )
    if thread is not None and joined and not life.dead and (deaf := _deaf(life, thread.loop)):
        say("%s: %d did not end when cancelled, and will not be done:%s", life.name, len(deaf), _named(deaf))
    life.closed = True
    life.fail_all(undelivered, _closed_error, dropped)
    life.failures.tell_all()
    if thread is not None:
        thread.close()


def _deaf(life: Life, loop: asyncio.AbstractEventLoop) -> list[str]:
    """Name the tasks that outlasted their cancellation, those that were made without the runtime included."""
    known = {**life.ledger.running, **life.ledger.daemons, **life.ledger.keepers}
    lines = []
    for runner in asyncio.all_tasks(loop):
        # asyncio's own name for it: without this it says the same again, and less, when the task is destroyed.
        runner._log_destroy_pending = False  # type: ignore[attr-defined]
        if _cancels_all(runner):
            continue
        task = known.get(runner)
        lines.append(
            f"  {runner.get_name()}, waits at {innermost(runner.get_coro())}" if task is None else describe(task)
        )
    return lines


def _named(entries: Iterable[str]) -> str:
    """The first of *entries*, line by line, and how many more there are."""
    lines = list(entries)
    more = [f"  … and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "".join(f"\n{line}" for line in [*lines[:_NAMED], *more])


def _describe(life: Life, slow: list[Task[Any]]) -> dict[Task[Any], str]:
    """Name what will be dropped: name, age, where it was submitted, where it waits."""
    if life.thread is None:
        return {}
    # Daemons and what is not due yet are not dropped but ended, as they were meant to; unless their clean-up took too long.
    not_started = [item for item in life.inbox.waiting() if type(item) is Task]
    left = [*life.ledger.waited_for(), *not_started, *(task for task in slow if not task.done())]
    return {task: describe(task) for task in left}


def describe(task: Task[Any]) -> str:
    """One line on an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    kind = " (daemon)" if task._kind is Kind.DAEMON else ""
    return f"  {task.get_name()}{kind}{since}, submitted at {task._site().short()}, {task._place()}"
