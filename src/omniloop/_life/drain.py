"""
How a life ends: wait, cancel what is left and await its clean-up, name what is cut off, stop the thread.

What is guaranteed. What was accepted is done, or its handle says why not; there is nothing between. The end takes no longer than the two
deadlines: the one for the work, and the one for the clean-up of what is cancelled. Both hold for any number of tasks: each is asked to
cancel once, and has one turn of the loop after that, also where the deadline is past (without it the clean-up would not even begin, and
each would complain of an ignored GeneratorExit). Nothing else is done for each: sentences are made for the twenty that are shown.

How an end goes (`close`), by the names and in the order of the code below:

1. `drain` waits, until there is nothing of this (`_Drain._wait`):
   - work that nobody else's context marks as theirs (`rank_of`), again and again, because work may submit work
   - the closing of async generators, which is clean-up: for `cancel_timeout`
   - what work has left on the loop by asyncio's own means, if it is young: as long as what one of them waits for is known to come within
     their time, or anything has moved in the last half second
   - once in the whole end, what daemons had submitted by then; what they submit without end would be waited for without end
2. `finish` ends what is no work, in three stages (`_End._stages`). If a stage takes too long it goes on beside the others. Whenever there
   is work again, 1 comes again.
   - daemons; no turn of `every` begins any more, and those that are under way are work from now on
   - what is kept open (`Kind.KEEPER`), the youngest first, each followed by what was made in its opening: a client's own reader and
     heartbeat, which its `close()` needs
   - all other tasks on the loop, and what they submitted when they were past their time
3. If nothing is left then, the inbox is closed, in the same step in which that is seen (`_refuse`). Else 1 comes again.
4. `cut`, if the deadline or a Ctrl-C has ended the waiting: work is cancelled first, and then each stage has its turn once.
5. `_end`, in the thread that closes, and one at a time by `Life.closing`: the threads end, what was cut off is named, and nobody waits any more.

What ends a wait. A thread asks the loop for something (`_Asked`), and waits at its gate, with the deadline; the gate is opened by the end of
what was asked, or by the end of the life (`Life.fail_all`). So the tables are the loop's, and all that is asked, refused or counted there is
done there, in one step: nothing can be submitted, or end, in the middle of it. A callback that blocks the loop may come back when the
thread has given up: what was asked is not begun any more then, which the lock `_Asked._turn` is for.

A loop that is busy with 100,000 clean-ups and one that is blocked look alike from outside. So the loop's heart beats (`_End._beat`)
on its way: the thread waits longer, past the deadline too, as long as it does.

What was tried and does not work. Cancelling bare tasks together with the daemons: a client whose reader was gone could not close. Asking in
any other order than that of the start: a queue in which many wait (an `asyncio.Event`'s) searches for each that leaves it from its head,
and 100,000 took ten times as long. A callback for each piece of work that is waited for: it costs as much as its end. A count of what is
left, taken down where work settles: that is one more look on the way of every task, and of every thread. Waiting for the oldest first: it is
mostly the first to end, and so each is waited for. Waiting for work that is submitted while the end closes resources, without limit: a bare
task that reconnects by itself opened one 364 times. Waiting for leftovers by their age alone: each client that was left open cost five
seconds.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import Lock
from typing import Any, Final, NamedTuple

from .. import _cpython, _hooks
from .._arguments import close_unstarted
from .._clock import acquire, holding, time
from .._errors import CannotStartError, ClosedError
from .._process import exit
from .._report import frames_of, hurried, innermost, say, shown, thread_place, thread_stack
from .._work.ledger import is_asked, task_in
from .._work.leftovers import OF_OTHERS, OF_WHAT_ENDED, UNMARKED, rank_of, title_of
from .._work.task import Kind, Task
from .life import Life, Stage
from .thread import LoopThread
from .workers import ThreadWork, resolve

# How soon to look again whether another thread has started the loop's.
_STARTING: Final = 0.0005

# A wait that is over sooner says nothing. Half a second is where people begin to wonder (a guess).
_QUIET: Final = 0.5

# Beyond the deadlines: for a thread that was told to end to be gone.
_JOIN_TIMEOUT: Final = 0.5

# A loop whose heart does not beat for so long is blocked: beyond the deadlines too. (A guess; well above what a busy machine adds.)
_PATIENCE: Final = 1.5

# So many are named in the log, then only counted.
_NAMED: Final = 20

# So many are asked, and have their turn, between two beats: each may take some milliseconds.
_BATCH: Final = 16

# Leftovers of which nobody knows what they wait for are given up when nothing has moved for so long; and how often that is looked at.
_STILL: Final = 0.5
_LOOK: Final = 0.05


class LeftoverTime(NamedTuple):
    """Which leftovers are young, and until when they are waited for; both by `time.monotonic`."""

    since: float
    until: float


def flush(
    life: Life, deadline: float | None, progress: bool, cancel_timeout: float, leftovers: LeftoverTime | None
) -> bool:
    """Wait until all that was accepted before this call is done; False at the *deadline*, by `time.monotonic`."""
    waiting = _Drain(life, OF_OTHERS, cancel_timeout, leftovers)
    # What is left is looked at on the loop's thread, when all that came before was started.
    return _wait_on_loop(
        life, lambda: waiting.flush(life.ledger.left(OF_OTHERS)), deadline, leftovers, shown=progress, told=False
    )


def drain(
    life: Life,
    deadline: float | None,
    cancel_timeout: float,
    leftovers: LeftoverTime | None = None,
    rank: int = UNMARKED,
) -> bool:
    """Wait until nothing is left to wait for; what draining work submits is waited for too. False at the *deadline*."""
    begin = _Drain(life, rank, cancel_timeout, leftovers).run
    try:
        return _wait_on_loop(life, begin, deadline, leftovers, shown=exit.draining(), told=True)
    except CannotStartError:
        # What is left has nothing to run on, and whoever submitted it was told.
        return False


@hurried()
def close(
    life: Life, deadline: float | None, cancel_timeout: float, leftovers: LeftoverTime, interruptions: int
) -> int:
    """
    Drain until the *deadline*; cancel what is left, and the daemons; then end the thread. Delivered or refused: nothing between.

    The first Ctrl-C ends the waiting, a second one the waiting for the clean-up as well. Takes how many there were, and returns it.
    """
    end = _End(life)
    last = time.monotonic()
    try:
        left = cancel_timeout
        try:
            while not interruptions and drain(life, deadline, cancel_timeout, leftovers, end.rank):
                # Daemons and resources, when the work is done: it may need them.
                begun = time.monotonic()
                last = begun + left
                ended = end.finish(last)
                if ended:
                    return interruptions
                # Together they take no longer than once.
                left = max(0.0, left - (time.monotonic() - begun))
                if ended is None:
                    break
            else:
                left = cancel_timeout
        except KeyboardInterrupt:
            interruptions += 1
            left = cancel_timeout
        last = time.monotonic() + (left if interruptions < 2 else 0)
        end.cut(last, leftovers)
    except KeyboardInterrupt:
        interruptions += 1
        last = time.monotonic()
    finally:
        # Of two threads that close at once, one does this, and the other waits for it: it takes no longer than the deadline.
        with holding(life.closing):
            if life.stage is not Stage.CLOSED:
                _end(
                    life, last, end, "Ctrl-C ended the draining" if interruptions else "the time for draining was over"
                )
            else:
                life.fail_all(end.undelivered, _closed_error, told=True)
    return interruptions


# --- from a thread to the loop ----------------------------------------------------------------------------------------


class _Asked:
    """What a thread has asked of the loop and waits for: a coroutine that runs there, and what it returns."""

    def __init__(self, life: Life, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.gate = Lock()
        self.gate.acquire()
        self.value: Any = None
        self._life = life
        self._begin = begin
        # Held while it is begun: after it was given up it is not.
        self._turn = Lock()
        self._runner: asyncio.Task[Any] | None = None
        life.asked.add(self)

    def __call__(self) -> None:
        """Begin it; on the loop's thread. Elsewhere the loop is gone, and the end of the life answers."""
        life = self._life
        if life.thread is None or not life.thread.is_current():
            return
        with self._turn:
            if self in life.asked:
                # A task of asyncio's own, whatever factory the user has set.
                self._runner = asyncio.Task(self._begin(), loop=life.thread.loop, context=Context())
                life.ledger.leftovers.helpers.add(self._runner)
                self._runner.add_done_callback(self._done, context=life.thread.context)

    def _done(self, runner: asyncio.Task[Any]) -> None:
        self._life.ledger.leftovers.helpers.discard(runner)
        if runner.cancelled():
            self.answer(None)
            return
        self.answer(None if runner.exception() is not None else runner.result())
        # An error is a fault of this package: to the loop's handler.
        runner.result()

    def answer(self, value: Any) -> None:
        """Answer, if nobody did; from any thread."""
        try:
            # Atomic, and so there is one answer.
            self._life.asked.remove(self)
        except KeyError:
            return
        self.value = value
        self.gate.release()

    def give_up(self) -> None:
        """Wait no longer; for the thread that asked."""
        with self._turn:
            self._life.asked.discard(self)
        if self._runner is not None and self._life.thread is not None:
            with suppress(RuntimeError):
                # The loop is closed.
                self._life.thread.post(self._runner.cancel)


def _wait_on_loop(
    life: Life,
    begin: Callable[[], Coroutine[Any, Any, bool]],
    deadline: float | None,
    leftovers: LeftoverTime | None,
    *,
    shown: bool,
    told: bool,
) -> bool:
    """Have the loop begin a wait, after all that was submitted before, and wait for its end. False at the deadline."""
    if life.inbox.closed:
        return True
    if not life.serving and not life.inbox and (life.thread is None or life.ledger.is_quiet()):
        # Never used; or the thread was ended before a fork, because there was nothing to do.
        return True
    since, until = time.monotonic(), math.inf if deadline is None else deadline
    asked = _Asked(life, begin)
    try:
        if not life.inbox.put(asked):
            return True
        # This may be the handler of a SIGTERM, which interrupts a submission that has taken the token and not yet woken the loop.
        life.inbox.wake_reader()
        while not life.serving:
            # Another thread is starting it. Should that fail, as it does on 3.12 when main has ended, nobody would come to it.
            life.wait_for_start()
            life.inbox.wake_reader()
            if asked.gate.acquire(timeout=_STARTING):
                return bool(asked.value)
            if time.monotonic() >= until:
                return False
        ended = acquire(asked.gate, min(_QUIET, until - time.monotonic()))
        if not ended and time.monotonic() < until:
            try:
                progress = _hooks.on_use("_seen.progress").Progress(
                    life, shown=shown, told=told, since=since, leftovers_until=leftovers and leftovers.until
                )
            except (ImportError, OSError):
                # The core is alone, or the process is short of descriptors: the wait goes on without a word.
                ended = acquire(asked.gate, until - time.monotonic())
            else:
                with progress:
                    ended = progress.acquire(asked.gate, deadline)
        return ended and bool(asked.value)
    except BaseException:
        life.inbox.take_back(asked)
        raise
    finally:
        asked.give_up()


# --- waiting, on the loop ---------------------------------------------------------------------------------------------


class _Drain:
    """Waits for what is left; on the loop's thread."""

    def __init__(self, life: Life, rank: int, cancel_timeout: float, leftovers: LeftoverTime | None) -> None:
        self._life = life
        self._rank = rank
        self._cancel_timeout = cancel_timeout
        self._time = leftovers
        # Clean-ups that have had their time.
        self._slow: set[asyncio.Future[Any]] = set()
        # What those leftovers wait for of which nothing is known, and when any of it was last seen to be another.
        self._waiters: dict[asyncio.Future[Any], object] = {}
        self._moved = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def flush(self, left: list[Any]) -> bool:
        life = self._life
        await _ended(life, left)
        # What is unheld, and is told of, may have been the last that referred to a generator.
        life.failures.tell_all_unheld()
        await self._clean_ups()
        if self._time is not None:
            while await self._leftovers(self._time):
                pass
        life.failures.tell_unheld()
        return True

    async def run(self) -> bool:
        ledger = self._life.ledger
        # To the end of the life: a daemon that submits in every turn does so between two drains as well, and each would begin another.
        ledger.heeds_marks = True
        try:
            self._give_up_late_ones()
            while await self._wait():
                pass
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return True

    def _give_up_late_ones(self) -> None:
        """What old leftovers, and those whose time is over, submit without end is not to be waited for."""
        if self._time is None:
            return
        ledger, left = self._life.ledger, self._time.until - time.monotonic()
        work = ledger.left(self._rank)
        ledger.leftovers.give_up_but(ledger.leftovers.old(self._time.since), work, in_vain=False)
        if left <= 0:
            ledger.leftovers.time_over = True
            ledger.leftovers.give_up_but(ledger.leftovers.young(self._time.since), work, in_vain=True)
        # What work makes from then on is given up in turn.
        self._timer = ledger.loop.call_later(left if left > 0 else _STILL, self._give_up_late_ones)

    async def _wait(self) -> bool:
        """Wait for the first thing that there is to wait for; False if there is none."""
        life, ledger = self._life, self._life.ledger
        if not ledger.is_done(self._rank):
            if left := ledger.left(self._rank):
                await _ended(life, left)
            else:
                # In the inbox.
                life.inbox.wake_reader(if_resting=True)
                await asyncio.sleep(0)
            return True
        life.failures.tell_all_unheld()
        if await self._clean_ups():
            return True
        if self._time is not None:
            if await self._leftovers(self._time):
                return True
            ledger.leftovers.give_up(ledger.leftovers.old(self._time.since))
            ledger.leftovers.give_up(ledger.leftovers.young(self._time.since), in_vain=True)
        if self._rank == UNMARKED and not life.waited_for_daemons:
            # While the program goes on (it has no time for leftovers) each drain does.
            life.waited_for_daemons = self._time is not None
            reached = ledger.loop.create_future()
            if life.inbox.put(partial(resolve, reached)):
                # All that came by now was started.
                await reached
            await _ended(life, ledger.left(OF_WHAT_ENDED))
            if life.waited_for_daemons:
                return True
        return not ledger.is_done(self._rank)

    async def _clean_ups(self) -> bool:
        """Wait for the clean-ups that there are, within their time; False if there are none."""
        found = [task for task in await _clean_ups(self._life) if task not in self._slow]
        if found and not await _ended(self._life, found, time.monotonic() + self._cancel_timeout):
            self._slow.update(found)
        return bool(found)

    async def _leftovers(self, when: LeftoverTime) -> bool:
        """Wait for young leftovers for a moment; False if there are none, or none that is worth it."""
        ledger, now = self._life.ledger, time.monotonic()
        young = ledger.leftovers.young(when.since)
        left = when.until - now
        if not young or left <= 0:
            return False
        until = ledger.loop.time() + left
        known = next(
            (task for task in young if ledger.leftovers.comes(task, until, ledger.running, ledger.timers)), None
        )
        if known is not None:
            self._moved, pause = now, min(left, _STILL)
        else:
            waiters: dict[asyncio.Future[Any], object] = {task: _cpython.waiter_of(task) for task in young}
            if waiters != self._waiters:
                self._waiters, self._moved = waiters, now
            if now - self._moved >= _STILL:
                return False
            # Looking at many takes its time as well.
            pause = min(left, max(_LOOK, 5 * (time.monotonic() - now)))
        await asyncio.wait([known or young[0]], timeout=pause)
        return True


async def _clean_ups(life: Life) -> list[asyncio.Future[Any]]:
    """What closes async generators now."""
    # asyncio makes them one turn of the loop after it was seen that they are needed.
    await asyncio.sleep(0)
    leftovers = life.ledger.leftovers
    leftovers.look()
    return list(leftovers.clean_ups)


async def _ended(life: Life, runners: Iterable[Any], until: float = math.inf) -> bool:
    """Wait until all of *runners*, asyncio's tasks or calls in worker threads, have ended and are settled; False at *until*."""
    left = list(runners)
    while left:
        # One at a time, and the youngest first, which is mostly the last to end: a callback for each would cost as much as its end.
        runner = left[-1]
        if isinstance(runner, ThreadWork):
            runner = runner.over(life.ledger)
        if runner is None or runner.done():
            left.pop()
            continue
        remaining = until - time.monotonic()
        if remaining <= 0:
            return False
        await asyncio.wait([runner], timeout=None if until == math.inf else remaining)
    # The callbacks of what has just ended, which settle it, come before this goes on.
    await asyncio.sleep(0)
    return True


# --- the end, on the loop ---------------------------------------------------------------------------------------------


class _End:
    """Ends what is left on the loop. The public methods are for the thread that closes, the others for the loop's."""

    def __init__(self, life: Life) -> None:
        self._life = life
        # Whose work is waited for: from when daemons have ended, theirs too.
        self.rank = UNMARKED
        # What is cut off, for the log; with sentences on the first, made before they were cancelled.
        self.cut_off: dict[Task[Any], str | None] = {}
        # Leftovers that were waited for in vain.
        self.in_vain = _Named()
        self.undelivered: list[Any] = []
        # Whether the loop answered when it was last asked.
        self.answered = True
        # Counts up while the loop makes its way.
        self.beats = 0
        # What was asked to end, once, because a second time would interrupt its clean-up; and the work that this has cut off.
        self._asked: set[Any] = set()
        # What had its turn, and is not waited for until all others had theirs.
        self._slow: set[Any] = set()

    def finish(self, deadline: float) -> bool | None:
        """
        End daemons, what is kept open and all other tasks, and refuse work from then on. Nothing that the program itself asked to end.

        False if there is work to be waited for; None if something did not end by the *deadline*.
        """
        life = self._life
        if life.thread is None or not life.serving:
            undelivered = life.inbox.close()
            if undelivered and life.stage is not Stage.DEAD:
                with suppress(CannotStartError):
                    life.inbox.reopen(undelivered)
                return False
            return True
        answer: bool | None = self._ask_loop(lambda: self._finish(deadline), deadline)
        return answer

    def cut(self, deadline: float, leftovers: LeftoverTime) -> None:
        """Cancel all that is left, work too, and refuse what comes from then on."""
        life = self._life
        if life.thread is not None:
            for task in life.waited_for():
                self._drop(task)
            if life.serving:
                self._ask_loop(lambda: self._cut_all(deadline, leftovers), deadline)

    def lines(self) -> _Named:
        """Name what was cut off. What has ended by itself before it was asked to was not."""
        cut_off = [
            line for task, line in self.cut_off.items() if task in self._asked or not task.done() or not self.answered
        ]
        return _Named(lambda line: line, cut_off)

    def _ask_loop(self, begin: Callable[[], Coroutine[Any, Any, Any]], deadline: float) -> Any:
        """Have the loop run a coroutine, and wait for its end; None if the loop is blocked, at the *deadline* at the earliest."""
        assert self._life.thread is not None
        asked = _Asked(self._life, begin)
        try:
            self._life.thread.post(asked)
        except RuntimeError:
            # The loop was closed by somebody else.
            asked.give_up()
            return True
        self.answered = False
        try:
            while not self.answered:
                beats = self.beats
                until = max(deadline, time.monotonic()) + _PATIENCE
                self.answered = acquire(asked.gate, until - time.monotonic())
                if beats == self.beats and time.monotonic() >= until:
                    break
        finally:
            asked.give_up()
        return asked.value

    # --- on the loop's thread -----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self.beats += 1
        self._life.goes_on()

    def _beat_twice(self) -> None:
        # In the turn after this one what was asked in this one is settled.
        self._beat()
        self._life.ledger.loop.call_soon(self._beat)

    def _drop(self, task: Task[Any]) -> None:
        if task not in self.cut_off:
            self.cut_off[task] = describe(task) if len(self.cut_off) < _NAMED else None

    async def _finish(self, deadline: float) -> bool | None:
        ledger = self._life.ledger
        if ledger.end_turns():
            return False
        try:
            ended = await self._cancel(deadline, patient=True)
        finally:
            self._hush(False)
        if ended is not True:
            return ended
        if not await self._close_generators(deadline):
            return None if ledger.is_done(self.rank) else False
        return self._refuse()

    async def _cut_all(self, deadline: float, leftovers: LeftoverTime) -> bool:
        ledger = self._life.ledger
        ledger.leftovers.in_vain.update(ledger.leftovers.young(leftovers.since))
        self._end_untaken()
        try:
            await self._cancel(deadline, patient=False)
            await self._close_generators(deadline)
            if not self._refuse():
                # There is always more. From here on it is refused; what was started meanwhile is cancelled too.
                self.undelivered = self._life.inbox.close()
                await self._cancel(0.0, patient=False)
        finally:
            self._hush(False)
        return True

    def _refuse(self) -> bool:
        """Refuse from now on, if nothing is left; False if something is."""
        life, ledger = self._life, self._life.ledger
        undelivered = life.inbox.close()
        if (
            undelivered
            or not ledger.is_quiet()
            or ledger.keepers
            or ledger.has_open_generators()
            or ledger.leftovers.clean_ups
            or self._rest()
        ):
            life.inbox.reopen(undelivered)
            return False
        return True

    async def _close_generators(self, deadline: float) -> bool:
        loop, helpers = self._life.ledger.loop, self._life.ledger.leftovers.helpers
        if (generators := _cpython.open_generators(loop)) is not None:
            # Nothing is refused yet, and asyncio's own hook complains of those that are opened from now on.
            sys.set_asyncgen_hooks(firstiter=generators.add)
        closing = asyncio.Task(loop.shutdown_asyncgens(), loop=loop)
        helpers.add(closing)
        closing.add_done_callback(helpers.discard)
        if not await _ended(self._life, [closing], max(deadline, time.monotonic() + 0.01)):
            closing.cancel()
            return False
        return True

    async def _cancel(self, deadline: float, patient: bool) -> bool | None:
        """
        Ask what is left to end, stage by stage, and wait for it. True if all has ended, None if that was not so at the *deadline*.

        *patient*: leave work alone, and return False if there is any.
        """
        life, ledger = self._life, self._life.ledger
        stages = self._stages(patient)
        while True:
            if patient and not ledger.is_done(self.rank):
                # What was accepted since the draining is to be done, and not cancelled; other tasks may be its own.
                return False
            runners, parts = next(stages, (None, 1))
            if runners is None:
                break
            ledger.cancel_timers()
            busy = self._ask(runners, patient)
            left = deadline - time.monotonic()
            until = deadline - left + left / parts
            while busy and not await _ended(life, busy, min(until, time.monotonic() + _LOOK)):
                busy = self._ask(busy, patient) if time.monotonic() < until else []
            if left <= 0 or not await _ended(life, runners, until):
                self._slow.update(runners)
            if left > 0:
                await _ended(life, await _clean_ups(life), until)
        if time.monotonic() >= deadline:
            self._ask(list(ledger.leftovers.clean_ups), patient)
            # One turn of the loop for each that was asked just now, and one in which it is settled.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await _ended(life, [*self._slow, *await _clean_ups(life)], deadline) or None

    def _stages(self, patient: bool) -> Iterator[tuple[list[Any], int]]:
        """
        What is left, in the order in which it is to end, each looked at when its turn has come; and in how many parts the time is divided.

        What takes longer than its part goes on beside the others.
        """
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers
        if not patient:
            yield self._in_time(ledger.running), 2
        yield self._in_time(ledger.daemons), 2
        if self.rank == UNMARKED:
            # Their makers have ended: what they submit without end is not waited for.
            self.rank = OF_WHAT_ENDED
            leftovers.orphan_others()
            # What daemons have submitted comes before what it may need.
            yield [], 1
        self._hush(True)
        while kept := self._kept():
            yield kept[0], len(kept) + 1
        while rest := self._in_time(self._rest()):
            leftovers.late.over = leftovers.orphans.over = True
            yield rest, 1
            if not patient:
                # What its clean-up makes may be without end.
                return

    def _in_time(self, runners: Iterable[Any]) -> list[Any]:
        return [runner for runner in runners if runner not in self._slow]

    def _kept(self) -> list[list[Any]]:
        """What is kept open, one after the other, the youngest first; before these what is left of those that were closed earlier."""
        ledger = self._life.ledger
        kept = []
        for keeper, owner in ledger.leftovers.belongings.items():
            if (keeper.done() or keeper in self._asked) and owner.tasks:
                owner.over = True
                kept.append(self._in_time(owner.tasks))
        kept += [self._in_time([keeper]) for keeper in reversed(ledger.keepers)]
        return [runners for runners in kept if runners]

    def _rest(self) -> list[asyncio.Future[Any]]:
        """All other tasks, and the work of those that are past their time."""
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers
        theirs = [runner for runner, task in ledger.running.items() if rank_of(task) == OF_OTHERS]
        bare = asyncio.all_tasks(ledger.loop) - leftovers.helpers - leftovers.clean_ups.keys()
        # In the order of their making, as far as that is known: see the story above.
        known = dict.fromkeys(task for task in leftovers.all() if task in bare)
        return theirs + [task for task in [*known, *(bare - known.keys())] if ledger.is_bare(task) and not task.done()]

    def _hush(self, on: bool) -> None:
        """While it is on tasks made without the runtime may open no resource, and what they raise is not reported."""
        leftovers = self._life.ledger.leftovers
        leftovers.look()
        leftovers.hushed = on

    def _ask(self, runners: list[Any], patient: bool) -> list[Any]:
        """Cancel *runners*, and return those that are to be left alone for now: in the middle of a clean-up, or of a time limit of their own."""
        ledger, asked = self._life.ledger, self._asked
        busy = []
        # In the order in which they were started: see the story above.
        for number, runner in enumerate(runners):
            # What is done, and not settled yet, is not cancelled.
            if runner in asked or runner.done():
                pass
            elif patient and is_asked(runner):
                busy.append(runner)
            else:
                asked.add(runner)
                task = ledger.running.get(runner)
                if task is not None and patient:
                    # Submitted by what is past its time. Without a word if that was made by a daemon, which has ended.
                    if ledger.leftovers.is_late(task):
                        self.in_vain.add(describe, [task])
                elif task is not None:
                    self._drop(task)
                    asked.add(task)
                elif runner in ledger.leftovers.in_vain and not _waits_for_more(runner):
                    self.in_vain.add(_describe_bare, [runner])
                runner.cancel()
            if not number % _BATCH:
                self._beat()
                # Between their turns, and so a sign that they are had.
                ledger.loop.call_soon(self._beat_twice)
        return busy

    def _end_untaken(self) -> None:
        """End what waits in the inbox now, as cancelled."""
        ledger, inbox = self._life.ledger, self._life.inbox
        for number in range(len(inbox)):
            try:
                item = inbox.take()
            except IndexError:
                return
            if (task := task_in(item)) is not None:
                self._drop(task)
                self._asked.add(task)
                ledger.end_untaken(task)
            else:
                item()
            if not number % _BATCH:
                self._beat()


# --- the end, in the thread that closes ------------------------------------------------------------------------------


def _closed_error() -> ClosedError:
    return ClosedError("The runtime was shut down before this was done.")


def _end(life: Life, deadline: float, end: _End, why: str) -> None:
    """Stop the threads, tell what was cut off, and let nobody wait for what will not come. For the thread that closes."""
    undelivered = end.undelivered + life.inbox.close()
    # Whoever starts the thread now did not see that it is closed; who comes later does.
    life.wait_for_start()
    thread = life.thread
    blocked = None
    if thread is not None:
        life.stop_watching(_JOIN_TIMEOUT)
        blocked = _stop(thread, life.serving, deadline, end.answered)
    cut_off = end.lines()
    if thread is not None:
        busy = life.workers.stop(_JOIN_TIMEOUT)
        if blocked is not None:
            exit.leave_behind(thread.ident)
            say("%s: the loop's thread did not end, because a callback blocks it here:\n%s", life.name, blocked)
        for worker in busy:
            if stack := thread_stack(worker.ident):
                exit.leave_behind(worker.ident)
                say("%s: worker thread %r did not end; it runs here:\n%s", life.name, worker.name, stack)
    _tell(life, _threads(life.daemon_threads), "left running in daemon threads, which nobody waits for")
    _tell(life, cut_off, f"unfinished when {why}, and cancelled")
    _tell(life, end.in_vain, "left on the loop when their time was over, and cancelled")
    if thread is not None and life.stage is not Stage.DEAD:
        deaf = _deaf(life, thread.loop)
        if blocked is None:
            _tell(life, deaf, "did not end when cancelled, and will not be done")
    late = _Named(describe, (item for item in undelivered if type(item) is Task))
    _tell(life, late, "came while it was being shut down, and were not started")
    life.shut()
    life.fail_all(undelivered, _closed_error, told=True)
    life.failures.tell_all()
    if thread is not None:
        thread.close()


def name_left_behind(life: Life) -> None:
    """After a fork, in the parent: name the threads of daemons that the child is without, each once."""
    unnamed = {daemon: said for daemon, said in list(life.daemon_threads.items()) if not said}
    for said in unnamed.values():
        said.append("named")
    _tell(
        life,
        _threads(unnamed),
        "left running in daemon threads, which the forked child is without; a lock that one of them held is held there for ever. "
        "Start them after the fork, or the child by spawn",
    )


def _stop(thread: LoopThread, serving: bool, deadline: float, answered: bool) -> str | None:
    """Stop and join the loop's thread. None, or where it is if a callback blocks it: it is left alone then."""
    # A thread that is only late, because the machine is busy, is waited for longer than one that gave no answer.
    patience = _JOIN_TIMEOUT + (_PATIENCE if answered else 0.0)
    try:
        # It may leave for a fork, or have left.
        joined = thread.stop(max(0.0, deadline - time.monotonic()) + patience) if serving else thread.join(patience)
    except RuntimeError:
        # The loop was closed by somebody else; its thread ends by itself.
        joined = thread.join(patience)
    return None if joined else thread_stack(thread.ident)


def _deaf(life: Life, loop: asyncio.AbstractEventLoop) -> _Named:
    """Name the tasks that outlasted their cancellation, those that were made without the runtime included."""
    known = {**life.ledger.running, **life.ledger.daemons, **life.ledger.keepers}
    helpers = life.ledger.leftovers.helpers
    left: list[asyncio.Future[Any]] = []
    # A loop that is blocked may come back in the middle, and change it.
    with suppress(RuntimeError):
        left = list(asyncio.all_tasks(loop))
    for runner in left:
        # It would say the same again, and less.
        _cpython.destroy_quietly(runner)
        if runner in helpers and isinstance(runner, asyncio.Task):
            # Another thread's, which closes at the same time: the loop may have been stopped before its first step.
            close_unstarted(runner.get_coro())
    return _Named(
        lambda runner: describe(known[runner]) if runner in known else _describe_bare(runner),
        (runner for runner in left if runner not in helpers),
    )


# --- naming -----------------------------------------------------------------------------------------------------------


class _Named:
    """How many there are of something, and a line for each of the first; what is not shown costs no more than its counting."""

    def __init__(self, name: Callable[[Any], str | None] = str, things: Iterable[Any] = ()) -> None:
        self.count = 0
        self._lines: list[str] = []
        self.add(name, things)

    def add(self, name: Callable[[Any], str | None], things: Iterable[Any]) -> None:
        """Count *things*, and have *name* make a line for those that will be shown."""
        for thing in things:
            self.count += 1
            if len(self._lines) < _NAMED and (line := name(thing)) is not None:
                self._lines.append(line)

    def __str__(self) -> str:
        more = self.count - len(self._lines)
        return "".join(f"\n{line}" for line in [*self._lines, *([f"  … and {more} more"] if more else [])])


def _tell(life: Life, named: _Named, what: str) -> None:
    if named.count:
        say("%s: %d %s:%s", life.name, named.count, what, named)


def describe(task: Task[Any]) -> str:
    """One line on an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    kind = " (daemon)" if task._kind is Kind.DAEMON else ""
    return f"  {shown(task.get_name())}{kind}{since}, submitted at {task._site().short()}, {task._place()}"


def _threads(threads: Iterable[Any]) -> _Named:
    """Name threads that make the calls of daemons."""
    return _Named(
        lambda thread: f"  {shown(thread.name)}, runs at {thread_place(thread.ident) or 'its end'}", list(threads)
    )


def _waits_for_more(runner: asyncio.Future[Any]) -> bool:
    """Tell whether a task waits at an empty queue: a library's worker, say, that has done all that it was given."""
    coro = runner.get_coro() if isinstance(runner, asyncio.Task) else None
    return any(frame.f_code is asyncio.Queue.get.__code__ for frame in frames_of(coro))


def _describe_bare(runner: asyncio.Future[Any]) -> str:
    """One line on a task that was made without the runtime."""
    assert isinstance(runner, asyncio.Task)
    return f"  {title_of(runner)}, waits at {innermost(runner.get_coro())}"
