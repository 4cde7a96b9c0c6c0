"""
How a life ends: wait, cancel what is left and await its clean-up, name what is dropped, stop the thread.

What is guaranteed. What was accepted is done, or its handle says why not; there is nothing between. The end takes no longer than the two
deadlines: the one for the work, and the one for the clean-up of what is cancelled. Both hold for any number of tasks: each is asked to
cancel once, and has one turn of the loop after that, also where the deadline is past (without it the clean-up would not even begin, and
each would complain of an ignored GeneratorExit). Nothing else is done for each: sentences are made for the twenty that are shown.

The order. Work is waited for, in rounds, because work may submit work; then the turns of `every` that are under way, once, for they are
work from then on and no other begins. (As work from the start, two that overlap went on until the deadline.) Then, on the loop: daemons;
resources (`Kind.KEEPER`), the youngest first, each followed by the bare tasks that were made in its opening (a client's own reader and
heartbeat, which its `close()` needs), and before the first of them those that are left of resources that were closed earlier; then all
other bare tasks. A stage is waited for before the next one is asked; if it takes too long it goes on beside the others, to the deadline.

Who may touch what. Each function says whose it is. The thread that closes waits; the tables of the ledger are the loop's, and so all that
is asked, refused or counted there is called on the loop, one step each: nothing can be submitted, or end, in the middle of it.
Closing the inbox and looking whether anything is left is one such step (`_End.refuse`). A callback that blocks the loop may come back when
the closing thread has given up: what was asked of the loop is not done any more then (`_on_loop`).

A loop that is busy with 100,000 clean-ups and one that is blocked look alike from outside. So the loop shows its progress (`_Beat`):
the closing thread waits longer, past the deadline too, as long as there is some.

What was tried and does not work. Cancelling bare tasks together with the daemons: a client whose reader was gone could not close. Asking in
any other order than that of the start: a queue in which many wait (an `asyncio.Event`'s) searches for each that leaves it from its head,
and 100,000 took ten times as long. A callback for each piece of work that is waited for: it costs as much as its end. Waiting for work
that is submitted while the end closes resources, without limit: a bare task that reconnects by itself opened one 364 times.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from itertools import chain, islice
from threading import Lock
from typing import Any, Final
from weakref import ref

from .._errors import CannotStartError, ClosedError
from .._process import exit
from .._report import called_frame, hurried, innermost, say, shown, thread_stack
from .._work.ledger import is_asked, opened_by, task_in
from .._work.task import Kind, Task
from .life import Life
from .progress import Progress
from .thread import LoopThread

# How soon to look again for a worker that has done its call, and is about to let go of it.
_LETTING_GO: Final = 0.0005

# Beyond the deadlines: for a thread that was told to end to be gone.
_JOIN_TIMEOUT: Final = 0.5

# A loop that shows no progress for so long is blocked: beyond the deadlines too. (A guess; well above what a busy machine adds.)
_PATIENCE: Final = 0.3

# A thread that is only late, because the machine is busy, is waited for so much longer.
_LATE: Final = 4 * _JOIN_TIMEOUT

# So many are named in the log, then only counted.
_NAMED: Final = 20

# The stages of the end, in their order.
_WORK: Final = 0
_DAEMONS: Final = 1
_KEEPERS: Final = 2
_BARE: Final = 3

# So many are asked, and have their turn, between two signs of progress: each may take some milliseconds.
_BATCH: Final = 16


def flush(life: Life, deadline: float | None, progress: bool) -> bool:
    """Wait until all that was accepted before this call is done; False at the *deadline*, by `time.monotonic`."""
    with Progress(life, shown=progress) as shown:
        quiet = _round(life, deadline, shown)
    return quiet is not None


def drain(life: Life, deadline: float | None) -> bool:
    """Wait, in rounds, until nothing is left to wait for; what draining work submits is waited for too."""
    with Progress(life, shown=exit.draining(), told=True) as progress:
        try:
            while (quiet := _round(life, deadline, progress)) is False:
                pass
        except CannotStartError:
            # What is left has nothing to run on, and whoever submitted it was told.
            return False
    return bool(quiet)


@hurried()
def close(life: Life, deadline: float | None, cancel_timeout: float, interruptions: int) -> int:
    """
    Drain until the *deadline*; cancel what is left, and the daemons; then end the thread. Delivered or refused: nothing between.

    The first Ctrl-C ends the waiting, a second one the waiting for the clean-up as well. Takes how many there were, and returns it.
    """
    dropped = _Named()
    why = "the time for draining was over"
    undelivered: list[Any] = []
    slow: list[Task[Any]] = []
    last = time.monotonic()
    end = _End(life)
    try:
        try:
            while not interruptions and drain(life, deadline):
                # Daemons, resources and bare tasks, when the work is done: it may need them.
                last = time.monotonic() + cancel_timeout
                if end.end_turns(last):
                    continue
                if not end.cancel(last, patient=True):
                    slow = life.ledger.ending()
                    break
                if end.refuse(last):
                    return interruptions
        except KeyboardInterrupt:
            interruptions += 1
        # Daemons and what is not due yet are not dropped but ended, as they were meant to; unless their clean-up took too long.
        dropped.add(describe, _unfinished(life, slow))
        why = "Ctrl-C ended the draining" if interruptions else why
        last = time.monotonic() + (cancel_timeout if interruptions < 2 else 0)
        answered = end.cancel(last) is not None
        if answered and not end.refuse(last):
            # There is always more. From here on it is refused; what was started meanwhile is cancelled too.
            undelivered = life.inbox.close()
            end.cancel(last)
    except KeyboardInterrupt:
        interruptions += 1
        last = time.monotonic()
    finally:
        # Of two threads that close at once, one does this, and the other waits for it: it takes no longer than the deadline.
        with life.closing:
            if not life.closed:
                _end(life, last, dropped, why, undelivered)
            else:
                life.fail_all(undelivered, _closed_error, told=True)
    return interruptions


# --- waiting for the work ---------------------------------------------------------------------------------------------


def _round(life: Life, deadline: float | None, progress: Progress) -> bool | None:
    """
    Wait until what was accepted by now is done. True if then nothing was left, False if something came meanwhile.

    None at the deadline.
    """
    thread = life.thread
    if thread is None and not life.inbox:
        return True
    if thread is not None and not life.serving and not life.inbox and life.ledger.is_quiet():
        # The thread was ended before a fork, because there was nothing to do.
        return True
    if life.inbox.closed:
        return True
    gate = Lock()
    gate.acquire()
    quiet = given_up = False
    # What is waited for. Weakly, because a reference would keep a failure from being reported.
    left: list[ref[Task[Any]]] = []
    # The calls in worker threads, by identity, for the same reason.
    calls: set[int] = set()

    def mark() -> None:
        # On the loop's thread, after all that came before was started.
        left.extend(map(ref, life.ledger.waited_for()))
        calls.update(map(id, list(life.ledger.in_threads)))
        go_on()

    def go_on() -> None:
        # One at a time, and the youngest first, which is mostly the last to end: a callback for each would cost as much as its end.
        while left and not given_up:
            task = left[-1]()
            if task is not None and not task.done():
                task._when_done(come_back)
                return
            left.pop()
        if not given_up:
            finish()

    def come_back() -> None:
        # By way of the inbox: reports are made before the next item, so that a flush leaves nothing unsaid.
        if not life.inbox.put(go_on):
            go_on()

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
        life.inbox.wake_reader()
        while not life.serving:
            # Another thread is starting it. Should that fail, as it does on 3.12 when main has ended, nobody would come to the mark.
            life.wait_for_start()
            life.inbox.wake_reader()
            if gate.acquire(timeout=_LETTING_GO):
                return quiet
            if deadline is not None and time.monotonic() >= deadline:
                return None
        return quiet if progress.acquire(gate, deadline) else None
    except BaseException:
        life.inbox.take_back(mark)
        raise
    finally:
        given_up = True


# --- on the loop ------------------------------------------------------------------------------------------------------


class _Beat:
    """Tells a loop that is on its way through what it was asked for from one that is blocked; only the loop's thread counts."""

    __slots__ = ("_life", "count")

    def __init__(self, life: Life) -> None:
        self._life = life
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self._life.goes_on()

    def twice(self) -> None:
        """Count now, and again in the turn after this one, where what was asked in this one is settled."""
        self()
        self._life.ledger.loop.call_soon(self)


class _Call:
    """Tells, from outside, whether the loop is still in the call that it was in when this was last asked: then that blocks it."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._frame = called_frame(thread.ident)

    def __call__(self) -> bool:
        former, self._frame = self._frame, called_frame(self._thread.ident)
        return former is not None and former is self._frame


def _on_loop(
    thread: LoopThread, call: Callable[[Callable[[bool], None]], None], deadline: float, beat: _Beat
) -> bool | None:
    """
    Have the loop make *call*, and wait for its answer; None if it is blocked, at the *deadline* at the earliest.

    From then on it is not made any more: a callback that blocked the loop may come back when all is over.
    """
    gate = Lock()
    gate.acquire()
    turn = Lock()
    answered: bool | None = None
    given_up = False

    def answer(value: bool) -> None:
        nonlocal answered
        answered = value
        gate.release()

    def make() -> None:
        beat()
        with turn:
            if not given_up:
                call(answer)

    try:
        thread.post(make)
    except RuntimeError:
        # The loop was closed by somebody else.
        return True
    call_goes_on = _Call(thread)
    # No sign since: given up `_LATE` seconds after the first such look. Every sign begins that anew.
    late = math.inf
    while True:
        seen = beat.count
        until = max(deadline, time.monotonic()) + _PATIENCE
        if gate.acquire(timeout=min(until - time.monotonic(), threading.TIMEOUT_MAX)):
            return answered
        late = time.monotonic() + _LATE if beat.count != seen else min(late, time.monotonic() + _LATE)
        if beat.count == seen and (call_goes_on() or time.monotonic() >= late):
            break
    with turn:
        given_up = True
    return answered


class _End:
    """What the end asks of the loop. The public methods are for the thread that closes, the others for the loop's."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._beat = _Beat(life)
        # Each is asked once: a second time would interrupt its clean-up.
        self._asked: set[asyncio.Future[Any]] = set()
        # The keepers that were asked, in this order.
        self._closed: list[asyncio.Future[Any]] = []
        # Who was told of what goes wrong on the loop, before the closing.
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    def end_turns(self, deadline: float) -> bool:
        """Have no turn of `every` begin any more; True if any is under way: that is work, to be waited for once."""
        life, thread = self._life, self._life.thread
        if thread is None or not self._life.serving:
            return False
        return bool(_on_loop(thread, lambda answer: answer(life.ledger.end_turns()), deadline, self._beat))

    def cancel(self, deadline: float, patient: bool = False) -> bool | None:
        """
        Cancel all that is left on the loop and await its clean-up; False if that was not over at the *deadline*, None if it is blocked.

        *patient*: not if there is work to drain, which came meanwhile; and not what the program itself has asked to end.
        """
        thread = self._life.thread
        if thread is None or not self._life.serving:
            return True

        def begin(answer: Callable[[bool], None]) -> None:
            # A task of asyncio's own, whatever factory the user has set.
            runner = asyncio.Task(self._cancel_all(deadline, patient), loop=thread.loop)
            runner.add_done_callback(lambda ended: answer(not ended.cancelled() and ended.result()))

        return _on_loop(thread, begin, deadline, self._beat)

    def refuse(self, deadline: float) -> bool:
        """Refuse from now on, if nothing came meanwhile; False if something did."""
        life = self._life
        thread = life.thread
        if thread is None or not life.serving:
            undelivered = life.inbox.close()
            if undelivered and not life.dead:
                with suppress(CannotStartError):
                    life.inbox.reopen(undelivered)
                return False
            return True

        def close(answer: Callable[[bool], None]) -> None:
            undelivered = life.inbox.close()
            ledger = life.ledger
            quiet = not undelivered and ledger.is_quiet() and not ledger.keepers and not ledger.has_open_generators()
            if not quiet:
                life.inbox.reopen(undelivered)
            answer(quiet)

        return _on_loop(thread, close, deadline, self._beat) is True

    # --- on the loop's thread -----------------------------------------------------------------------------------------

    async def _cancel_all(self, deadline: float, patient: bool) -> bool:
        loop = self._life.ledger.loop
        try:
            ended = await self._cancel_in_order(deadline, patient)
        finally:
            self._allow_opening()
        if ended is not True:
            # None: work came meanwhile. True as well: `refuse` finds that work, and the draining goes on.
            return ended is None
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

    async def _cancel_in_order(self, deadline: float, patient: bool) -> bool | None:
        """True if all has ended, False if that was not so at the *deadline*; None if there is work to drain again."""
        ledger = self._life.ledger
        # Asked, and not waited for until all others have ended too.
        slow: set[asyncio.Future[Any]] = set()
        rank = 0
        if not patient:
            self._end_untaken()
        while True:
            if patient and not ledger.is_quiet():
                # What was accepted since the draining is to be done, and not cancelled; the bare tasks may be its own.
                return None
            ledger.cancel_timers()
            # Not patient, each stage has its turn once: what its clean-up submits may be without end.
            stages = [
                (kind, now)
                for kind, runners in self._stages()
                if (patient or kind >= rank) and (now := [runner for runner in runners if runner not in slow])
            ]
            if time.monotonic() >= deadline:
                for _, runners in stages:
                    self._ask(runners, patient)
                # One turn of the loop for each that was asked just now, and one in which it is settled.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return not any(runners for _, runners in self._stages())
            if not stages:
                break
            rank, now = stages[0]
            if rank == _KEEPERS:
                self._forbid_opening()
                self._closed += [runner for runner in now if runner in ledger.keepers]
            self._ask(now, patient)
            # For closing what is open, and for the bare tasks, a part of the time is kept.
            shares = 1 if len(stages) == 1 else 2 if rank < _KEEPERS else len(stages)
            begun = time.monotonic()
            if not await self._ended(now, begun + (deadline - begun) / shares):
                slow.update(now)
            if rank != _KEEPERS:
                # It had its turn. The keepers are a stage each, of one rank: that stays until none is left.
                rank += 1
        return await self._ended(slow, deadline)

    def _stages(self) -> Iterator[tuple[int, list[asyncio.Future[Any]]]]:
        """What is left, in the order in which it is to end."""
        ledger = self._life.ledger
        yield _WORK, list(ledger.running)
        yield _DAEMONS, list(ledger.daemons)
        bare = self._bare()
        # Also of those that were closed before the end began.
        yield _KEEPERS, [runner for runner in bare if self._is_closed(_opener(runner))]
        for keeper in reversed(ledger.keepers):
            yield _KEEPERS, [keeper]
        yield _BARE, bare

    def _is_closed(self, opener: ref[asyncio.Future[Any]] | None) -> bool:
        """Tell whether a bare task's opener is a keeper that has closed what it kept, or was asked to and has had its time."""
        if opener is None:
            return False
        keeper = opener()
        return keeper is None or keeper.done() or keeper in self._closed

    def _bare(self) -> list[asyncio.Future[Any]]:
        """The tasks that were made without the runtime."""
        ledger = self._life.ledger
        return [
            runner
            for runner in asyncio.all_tasks(ledger.loop)
            if ledger.is_bare(runner) and not _cancels_all(runner) and not runner.done()
        ]

    def _forbid_opening(self) -> None:
        """From now on bare tasks may open no resource; the errors that they get for trying are not logged."""
        ledger = self._life.ledger
        if ledger.bereft is None:
            ledger.bereft = set()
        ledger.bereft.update(self._bare())
        if self._handler is not None:
            return
        former = self._handler = ledger.loop.get_exception_handler() or type(ledger.loop).default_exception_handler

        def hush(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            # asyncio's own words; of a task that was made only now and is gone already.
            if not str(context.get("message")).endswith("exception was never retrieved"):
                former(loop, context)

        ledger.loop.set_exception_handler(hush)

    def _allow_opening(self) -> None:
        ledger = self._life.ledger
        bereft, ledger.bereft = ledger.bereft or set(), None
        for runner in bereft:
            if runner.done() and not runner.cancelled():
                # Retrieved: nobody will hear of it.
                runner.exception()
        if self._handler is not None:
            ledger.loop.set_exception_handler(self._handler)
            self._handler = None

    def _ask(self, runners: list[asyncio.Future[Any]], patient: bool) -> None:
        asked, loop = self._asked, self._life.ledger.loop
        # In the order in which they were started: see the story above.
        for number, runner in enumerate(runners):
            if runner not in asked and not (patient and is_asked(runner)):
                asked.add(runner)
                runner.cancel()
            if not number % _BATCH:
                self._beat()
                # Between their turns, and so a sign that they are had.
                loop.call_soon(self._beat.twice)

    def _end_untaken(self) -> None:
        """End what waits in the inbox now, as cancelled."""
        ledger, inbox = self._life.ledger, self._life.inbox
        for number in range(len(inbox)):
            try:
                item = inbox.take()
            except IndexError:
                return
            if (task := task_in(item)) is not None:
                ledger.end_untaken(task)
            else:
                item()
            if not number % _BATCH:
                self._beat()

    async def _ended(self, runners: Iterable[asyncio.Future[Any]], until: float) -> bool:
        """Wait until all of *runners* have ended and are settled; False at *until*."""
        left = list(runners)
        while left:
            # One at a time, as in `_round`.
            if left[-1].done():
                left.pop()
                continue
            remaining = until - time.monotonic()
            if remaining <= 0:
                return False
            await asyncio.wait(left[-1:], timeout=remaining)
        # The callbacks of what has just ended, which settle it, come before this goes on.
        await asyncio.sleep(0)
        return True


def _cancels_all(runner: asyncio.Future[Any]) -> bool:
    """Tell whether *runner* is the one that cancels the others, here or for another thread that closes the same life."""
    return isinstance(runner, asyncio.Task) and getattr(runner.get_coro(), "cr_code", None) is _End._cancel_all.__code__


def _opener(runner: asyncio.Future[Any]) -> ref[asyncio.Future[Any]] | None:
    """The keeper in whose opening the bare task *runner* was made, if it was made in one."""
    context = _context_of(runner)
    return None if context is None else context.get(opened_by)


def _context_of(runner: asyncio.Future[Any]) -> Context | None:
    if sys.version_info >= (3, 12):
        return runner.get_context() if isinstance(runner, asyncio.Task) else None
    # 3.11 does not show it. The task's own comes before those of its callbacks.
    return next((thing for thing in gc.get_referents(runner) if type(thing) is Context), None)


# --- the end ----------------------------------------------------------------------------------------------------------


def _closed_error() -> ClosedError:
    return ClosedError("The runtime was shut down before this was done.")


def _end(life: Life, deadline: float, dropped: _Named, why: str, undelivered: list[Any]) -> None:
    """Stop the threads, tell what was dropped, and let nobody wait for what will not come. For the thread that closes."""
    undelivered += life.inbox.close()
    # Whoever starts the thread now did not see that it is closed; who comes later does.
    life.wait_for_start()
    thread = life.thread
    blocked = None
    if thread is not None:
        life.stop_watching(_JOIN_TIMEOUT)
        blocked = _stop(thread, life.serving, deadline)
        # Where something was dropped, the time for the work is over, and the calls in threads were named with it.
        busy = life.workers.stop(_JOIN_TIMEOUT + (0 if dropped.count else max(0.0, deadline - time.monotonic())))
        if blocked is not None:
            exit.leave_behind(thread.ident)
            say("%s: the loop's thread did not end, because a callback blocks it here:\n%s", life.name, blocked)
        for worker in busy:
            if stack := thread_stack(worker.ident):
                exit.leave_behind(worker.ident)
                say("%s: worker thread %r did not end; it runs here:\n%s", life.name, worker.name, stack)
    if dropped.count:
        say("%s: %d unfinished when %s, and cancelled:%s", life.name, dropped.count, why, dropped)
    if thread is not None and not life.dead:
        deaf = _deaf(life, thread.loop)
        if deaf.count and blocked is None:
            say("%s: %d did not end when cancelled, and will not be done:%s", life.name, deaf.count, deaf)
    late = _Named()
    late.add(describe, (item for item in undelivered if type(item) is Task))
    if late.count:
        say("%s: %d came while it was being shut down, and were not started:%s", life.name, late.count, late)
    life.shut()
    life.fail_all(undelivered, _closed_error, told=True)
    life.failures.tell_all()
    if thread is not None:
        thread.close()


def _stop(thread: LoopThread, serving: bool, deadline: float) -> str | None:
    """Stop and join the loop's thread. None, or where it is if a callback blocks it: it is left alone then."""
    call_goes_on = _Call(thread)
    try:
        # It may leave for a fork, or have left.
        joined = (
            thread.stop(max(0.0, deadline - time.monotonic()) + _JOIN_TIMEOUT)
            if serving
            else thread.join(_JOIN_TIMEOUT)
        )
    except RuntimeError:
        # The loop was closed by somebody else; its thread ends by itself.
        joined = thread.join(_JOIN_TIMEOUT)
    late = time.monotonic() + _LATE
    while not joined:
        # Else the machine is busy: the thread is on its way out, or in another call than before.
        if call_goes_on() or time.monotonic() > late:
            return thread_stack(thread.ident)
        joined = thread.join(_JOIN_TIMEOUT)
    return None


def _deaf(life: Life, loop: asyncio.AbstractEventLoop) -> _Named:
    """Name the tasks that outlasted their cancellation, those that were made without the runtime included."""
    known = {**life.ledger.running, **life.ledger.daemons, **life.ledger.keepers}
    deaf = _Named()

    def name(runner: asyncio.Future[Any]) -> str:
        task = known.get(runner)
        if task is not None:
            return describe(task)
        assert isinstance(runner, asyncio.Task)
        return f"  {shown(runner.get_name())}, waits at {innermost(runner.get_coro())}"

    left: list[asyncio.Future[Any]] = []
    # A loop that is blocked may come back in the middle, and change it.
    with suppress(RuntimeError):
        left = list(asyncio.all_tasks(loop))
    for runner in left:
        # asyncio's own name for it: without this it says the same again, and less, when the task is destroyed.
        runner._log_destroy_pending = False  # type: ignore[attr-defined]
    deaf.add(name, (runner for runner in left if not _cancels_all(runner)))
    return deaf


# --- naming -----------------------------------------------------------------------------------------------------------


class _Named:
    """How many there are of something, and a line for each of the first; what is not shown costs no more than its counting."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: list[str] = []

    def add(self, name: Callable[[Any], str], *groups: Iterable[Any]) -> None:
        """Count all that is in *groups*, and have *name* make a line for those that will be shown."""
        things = chain(*groups)
        shown = list(islice(things, _NAMED - len(self._lines)))
        self._lines += map(name, shown)
        self.count += len(shown) + sum(1 for _ in things)

    def __str__(self) -> str:
        more = self.count - len(self._lines)
        return "".join(f"\n{line}" for line in [*self._lines, *([f"  … and {more} more"] if more else [])])


def _unfinished(life: Life, slow: list[Task[Any]]) -> Iterator[Task[Any]]:
    """What will be dropped."""
    if life.thread is not None:
        yield from life.ledger.waited_for()
        yield from (item for item in life.inbox.waiting() if type(item) is Task)
        yield from (task for task in slow if not task.done())


def describe(task: Task[Any]) -> str:
    """One line on an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    kind = " (daemon)" if task._kind is Kind.DAEMON else ""
    return f"  {shown(task.get_name())}{kind}{since}, submitted at {task._site().short()}, {task._place()}"
