"""
How a life ends: wait for the work, cancel the rest, await its clean-up, log what was cut off, and stop the threads.

What is guaranteed. Accepted work is done, or its handle says why not; there is no third outcome. The end takes no longer than its two
deadlines: one for the work, and one for the clean-up of cancelled tasks. Both hold for any number of tasks. Each task is cancelled once and
then has one turn of the loop, even when the deadline has passed: without that turn its clean-up would not even begin, and Python would
complain of an ignored GeneratorExit. A task costs nothing more than that: only the twenty that the log shows are described.

The steps of an end (`close`), under the names and in the order of the code below:

1. `drain` waits until none of the following is left (`_Drain._wait`):
   - work whose context does not mark it as submitted for a daemon, a resource or another owner (`rank_of`). This is looked at repeatedly,
     because work may submit work.
   - the closing of async generators. It is clean-up, and has `cancel_timeout`.
   - young tasks that work has left on the loop by asyncio's own means. They are waited for as long as one of them is known to end within
     their time, or any of them has moved in the last half second.
   - what daemons have submitted so far. This is waited for once in the whole end, because a daemon may submit without end.
2. `finish` ends everything that is not work, in three stages (`_End._stages`). A stage that takes too long goes on beside the next ones. If
   new work appears, step 1 is repeated.
   - daemons. No turn of `every` begins any more; a turn that is under way counts as work from now on.
   - resources (`Kind.KEEPER`), the youngest first. After each follow the tasks that were made in its opening: its client's own reader and
     heartbeat, which the client's `close()` needs.
   - all other tasks on the loop, and what they submitted after their time was over.
3. If nothing is left, `_refuse` closes the inbox in the same step in which it sees this. Otherwise step 1 is repeated.
4. If the deadline or a Ctrl-C has ended the waiting, `cut` cancels the work first, and then each stage has its turn once.
5. `_end` runs in the thread that closes, one thread at a time (`Life.closing`). It ends the threads, logs what was cut off, and fails every
   handle that is left, so that nobody waits any more.

How the closing thread and the loop talk. The thread puts a request on the loop (`_Asked`) and waits at its gate until the deadline. The
gate is opened when the request is done, or by the end of the life (`Life.fail_all`). So the tables belong to the loop: it looks, counts and
refuses in one step, and nothing can be submitted or end in between. A callback that blocks the loop may return only after the thread has
given up. The loop must not begin the request then; the lock `_Asked._turn` ensures that.

From outside, a loop that is busy with 100,000 clean-ups looks the same as a blocked one. So the loop counts beats while it makes progress
(`_End._beat`), and as long as it does the thread waits on, past the deadline too.

What was tried and does not work.
- Cancelling bare tasks together with the daemons: a client whose reader was gone could not close.
- Cancelling in any other order than that of the start: a queue in which many wait, such as that of an `asyncio.Event`, is searched from its
  head for each waiter that leaves it, and 100,000 took ten times as long.
- A callback for each piece of work that is waited for: it costs as much as the end of the work.
- A count of unfinished work, decreased where work settles: it adds a step to every task and every thread.
- Waiting for the oldest task first: it is mostly the first to end, so that each task is waited for in turn.
- Waiting without limit for work that is submitted while resources are closed: a bare task that reconnects by itself opened one 364 times.
- Waiting for leftovers by their age alone: each client that was left open cost five seconds.
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
from .._locks import Guard
from .._process import exit
from .._report import frames_of, hurried, innermost, say, shown, thread_place, thread_stack
from .._work.ledger import is_asked, task_in
from .._work.leftovers import OF_OTHERS, OF_WHAT_ENDED, UNMARKED, rank_of, title_of
from .._work.task import Kind, Task
from .life import Life, Stage
from .thread import LoopThread
from .workers import ThreadWork, resolve

# How soon to look again whether another thread has started the loop's thread.
_STARTING: Final = 0.0005

# A shorter wait logs nothing. Half a second is where people begin to wonder (a guess).
_QUIET: Final = 0.5

# Added to the deadlines: how long to wait for a thread that was told to end.
_JOIN_TIMEOUT: Final = 0.5

# A loop that counts no beat for so long is blocked; this is added to the deadlines too. (A guess; well above what a busy machine adds.)
_PATIENCE: Final = 1.5

# How many tasks the log describes. The rest are only counted.
_NAMED: Final = 20

# How many tasks are cancelled, and have their turn, between two beats. Each may take some milliseconds.
_BATCH: Final = 16

# Leftovers that wait for something unknown are given up when none of them has moved for `_STILL` seconds. `_LOOK` is the pause between two
# looks.
_STILL: Final = 0.5
_LOOK: Final = 0.05

# So often the end cancels daemons that have begun since it cancelled the others: who begins a daemon for each that ends is not followed.
_MOST_ROUNDS: Final = 10


class LeftoverTime(NamedTuple):
    """Leftovers made after *since* are young, and are waited for until *until*; both by `time.monotonic`."""

    since: float
    until: float


def flush(
    life: Life, deadline: float | None, progress: bool, cancel_timeout: float, leftovers: LeftoverTime | None
) -> bool:
    """Wait until all that was accepted before this call is done; False at the *deadline*, by `time.monotonic`."""
    waiting = _Drain(life, OF_OTHERS, cancel_timeout, leftovers)
    # The loop's thread looks at what is left, after it has started everything that was submitted before.
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
    """Wait until nothing is left to wait for, including what work submits meanwhile; False at the *deadline*."""
    begin = _Drain(life, rank, cancel_timeout, leftovers).run
    try:
        return _wait_on_loop(life, begin, deadline, leftovers, shown=exit.draining(), told=True)
    except CannotStartError:
        # There is no thread to run the rest, and whoever submitted it was told.
        return False


@hurried()
def close(
    life: Life, deadline: float | None, cancel_timeout: float, leftovers: LeftoverTime, interruptions: int
) -> int:
    """
    Drain until the *deadline*, cancel daemons and whatever is left, and end the threads. All work is either delivered or refused.

    The first Ctrl-C ends the wait for work, the second the wait for clean-up. *interruptions* is the number so far; the new number is
    returned.
    """
    end = _End(life)
    last = time.monotonic()
    try:
        left = cancel_timeout
        try:
            while not interruptions and drain(life, deadline, cancel_timeout, leftovers, end.rank):
                # Only now daemons and resources: the work may have needed them.
                begun = time.monotonic()
                last = begun + left
                ended = end.finish(last)
                if ended:
                    return interruptions
                # All rounds together take no longer than one may.
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
        # If two threads close at once, one of them does this and the other waits for it, which takes no longer than the deadline.
        with holding(life.closing):
            if life.stage is not Stage.CLOSED:
                why = "Ctrl-C ended the draining" if interruptions else "the time for draining was over"
                try:
                    _end(life, last, end, why)
                except KeyboardInterrupt:
                    # In its wait for the threads, for example. Whoever waits for a handle is to be told nevertheless.
                    interruptions += 1
                    _end(life, time.monotonic(), end, why)
            else:
                life.fail_all(end.undelivered, _closed_error, told=True)
    return interruptions


# --- from a thread to the loop ----------------------------------------------------------------------------------------


class _Asked:
    """A request of a thread to the loop: the coroutine to run there, and its result, which the thread waits for."""

    def __init__(self, life: Life, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.gate = Lock()
        self.gate.acquire()
        self.value: Any = None
        self._life = life
        self._begin = begin
        # Held while the request is begun, so that it never begins after `give_up`. A `Guard`, because the loop waits for it: a Ctrl-C in
        # `give_up` must not leave it taken.
        self._turn = Guard()
        self._runner: asyncio.Task[Any] | None = None
        life.asked.add(self)

    def __call__(self) -> None:
        """Begin the request, on the loop's thread. Elsewhere do nothing: the loop is gone, and the end of the life answers."""
        life = self._life
        if life.thread is None or not life.thread.is_current():
            return
        with self._turn:
            if self in life.asked:
                # A plain asyncio task, whatever task factory the user has set.
                self._runner = asyncio.Task(self._begin(), loop=life.thread.loop, context=Context())
                life.ledger.leftovers.helpers.add(self._runner)
                self._runner.add_done_callback(self._done, context=life.thread.context)

    def _done(self, runner: asyncio.Task[Any]) -> None:
        self._life.ledger.leftovers.helpers.discard(runner)
        if runner.cancelled():
            self.answer(None)
            return
        self.answer(None if runner.exception() is not None else runner.result())
        # An error here is a bug of this package: let the loop's exception handler report it.
        runner.result()

    def answer(self, value: Any) -> None:
        """Answer, unless it is answered already. From any thread."""
        try:
            # Atomic, so that there is only one answer.
            self._life.asked.remove(self)
        except KeyError:
            return
        self.value = value
        self.gate.release()

    def give_up(self) -> None:
        """Stop waiting. For the thread that asked."""
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
    """Have the loop begin a wait, after everything submitted before, and block until it ends. False at the deadline."""
    if life.inbox.closed:
        return True
    if not life.serving and not life.inbox and (life.thread is None or life.ledger.is_quiet()):
        # Never used, or parked before a fork because there was nothing to do.
        return True
    since, until = time.monotonic(), math.inf if deadline is None else deadline
    asked = _Asked(life, begin)
    try:
        if not life.inbox.put(asked):
            return True
        # This may be a SIGTERM handler, which interrupts a submission that has taken the token and not yet woken the loop.
        life.inbox.wake_reader()
        while not life.serving:
            # Another thread is starting the loop's thread. If that fails, as it does on 3.12 when main has ended, nobody else would take
            # this request.
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
                # The core is installed alone, or the process is short of descriptors: wait without logging progress.
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
        # Clean-ups that did not end within their time.
        self._slow: set[asyncio.Future[Any]] = set()
        # What each leftover that waits for something unknown waits for, and when this last changed.
        self._waiters: dict[asyncio.Future[Any], object] = {}
        self._moved = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def flush(self, left: list[Any]) -> bool:
        life = self._life
        await _ended(life, left)
        # A failed task whose handle nobody holds, reported here, may hold the last reference to a generator.
        life.failures.tell_all_unheld()
        await self._clean_ups()
        if self._time is not None:
            while await self._leftovers(self._time):
                pass
        life.failures.tell_unheld()
        return True

    async def run(self) -> bool:
        ledger = self._life.ledger
        # From now on, until the life ends: a daemon that submits in every turn does so between two drains too, and each submission would
        # begin another drain.
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
        """Stop waiting for what old leftovers, and those whose time is over, may submit without end."""
        if self._time is None:
            return
        ledger, left = self._life.ledger, self._time.until - time.monotonic()
        work = ledger.left(self._rank)
        ledger.leftovers.give_up_but(ledger.leftovers.old(self._time.since), work, in_vain=False)
        if left <= 0:
            ledger.leftovers.time_over = True
            ledger.leftovers.give_up_but(ledger.leftovers.young(self._time.since), work, in_vain=True)
        # Repeated, because work may leave further tasks.
        self._timer = ledger.loop.call_later(left if left > 0 else _STILL, self._give_up_late_ones)

    async def _wait(self) -> bool:
        """Wait for the first kind of thing that is left; False if nothing is."""
        life, ledger = self._life, self._life.ledger
        if not ledger.is_done(self._rank):
            if left := ledger.left(self._rank):
                await _ended(life, left)
            else:
                # All of it is still in the inbox.
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
            # A drain while the program goes on, which has no time for leftovers, waits for daemons' work each time.
            life.waited_for_daemons = self._time is not None
            reached = ledger.loop.create_future()
            if life.inbox.put(partial(resolve, reached)):
                # When this resolves, everything submitted so far was started.
                await reached
            await _ended(life, ledger.left(OF_WHAT_ENDED))
            if life.waited_for_daemons:
                return True
        return not ledger.is_done(self._rank)

    async def _clean_ups(self) -> bool:
        """Wait for the clean-ups under way, up to `cancel_timeout`; False if there are none."""
        found = [task for task in await _clean_ups(self._life) if task not in self._slow]
        if found and not await _ended(self._life, found, time.monotonic() + self._cancel_timeout):
            self._slow.update(found)
        return bool(found)

    async def _leftovers(self, when: LeftoverTime) -> bool:
        """Wait a moment for young leftovers; False if there are none, or none that may still end in time."""
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
            # A look at many leftovers takes time as well, so the pause grows with it.
            pause = min(left, max(_LOOK, 5 * (time.monotonic() - now)))
        await asyncio.wait([known or young[0]], timeout=pause)
        return True


async def _clean_ups(life: Life) -> list[asyncio.Future[Any]]:
    """Return the tasks that are closing async generators now."""
    # asyncio makes such a task one turn of the loop after it notices that one is needed.
    await asyncio.sleep(0)
    leftovers = life.ledger.leftovers
    leftovers.look()
    return list(leftovers.clean_ups)


async def _ended(life: Life, runners: Iterable[Any], until: float = math.inf) -> bool:
    """Wait until all *runners* (asyncio tasks, or calls in worker threads) have ended and are settled; False at *until*."""
    left = list(runners)
    while left:
        # One at a time, and the youngest first, because it is mostly the last to end. A callback for each would cost as much as its end.
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
    # The callbacks that settle what has just ended run before this goes on.
    await asyncio.sleep(0)
    return True


# --- the end, on the loop ---------------------------------------------------------------------------------------------


class _End:
    """Ends what is left on the loop. The public methods are for the thread that closes, the others for the loop's."""

    def __init__(self, life: Life) -> None:
        self._life = life
        # The rank of the work that is waited for. Once daemons have ended, it includes what they submitted.
        self.rank = UNMARKED
        # What is cut off, for the log. The first few have a description, made before they were cancelled.
        self.cut_off: dict[Task[Any], str | None] = {}
        # Leftovers that did not end while they were waited for.
        self.in_vain = _Named()
        self.undelivered: list[Any] = []
        # Whether the loop answered when it was last asked.
        self.answered = True
        # Increases while the loop makes progress.
        self.beats = 0
        # How often nothing but daemons, begun late, was left.
        self._rounds_of_daemons = 0
        # What was cancelled: only once, because a second time would interrupt its clean-up. Includes the handles of work that was cut off.
        self._asked: set[Any] = set()
        # What did not end in its stage. It is waited for only after all other stages.
        self._slow: set[Any] = set()

    def finish(self, deadline: float) -> bool | None:
        """
        End daemons, resources and all other tasks, and refuse work from then on. Work itself is not cancelled.

        False if there is work to wait for, None if something did not end by the *deadline*.
        """
        life = self._life
        if life.thread is None or not life.serving:
            undelivered = life.inbox.close()
            # Until then another thread may have started the loop, which has begun what was submitted. Any later start is refused.
            life.wait_for_start()
            if (undelivered or life.serving) and life.stage is not Stage.DEAD:
                with suppress(CannotStartError):
                    life.inbox.reopen(undelivered)
                return False
            return True
        answer: bool | None = self._ask_loop(lambda: self._finish(deadline), deadline)
        return answer

    def cut(self, deadline: float, leftovers: LeftoverTime) -> None:
        """Cancel everything that is left, including work, and refuse whatever is submitted from then on."""
        life = self._life
        if life.thread is not None:
            for task in life.waited_for():
                self._drop(task)
            if life.serving:
                self._ask_loop(lambda: self._cut_all(deadline, leftovers), deadline)

    def lines(self) -> _Named:
        """Describe what was cut off. A task that ended by itself before it was cancelled does not count."""
        cut_off = [
            line for task, line in self.cut_off.items() if task in self._asked or not task.done() or not self.answered
        ]
        return _Named(lambda line: line, cut_off)

    def _ask_loop(self, begin: Callable[[], Coroutine[Any, Any, Any]], deadline: float) -> Any:
        """Have the loop run a coroutine and wait for its result; None if the loop is blocked, but not before the *deadline*."""
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
        # What was cancelled in this turn is settled in the next.
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
        if self._refuse():
            return True
        if not ledger.is_done(self.rank):
            return False
        # Each daemon that is cancelled may begin the next: then there is no work to wait for, and no round would be the last.
        self._rounds_of_daemons += 1
        return None if self._rounds_of_daemons >= _MOST_ROUNDS or time.monotonic() >= deadline else False

    async def _cut_all(self, deadline: float, leftovers: LeftoverTime) -> bool:
        ledger = self._life.ledger
        ledger.leftovers.in_vain.update(ledger.leftovers.young(leftovers.since))
        self._end_untaken()
        try:
            await self._cancel(deadline, patient=False)
            await self._close_generators(deadline)
            if not self._refuse():
                # New work appears again and again. Refuse it from here on, and cancel what was started meanwhile.
                self.undelivered = self._life.inbox.close()
                await self._cancel(0.0, patient=False)
        finally:
            self._hush(False)
        return True

    def _refuse(self) -> bool:
        """Close the inbox if nothing is left; return False if something is."""
        life = self._life
        # First with the inbox open: what other threads submit is not refused as long as the end goes on.
        if self._is_left():
            return False
        undelivered = life.inbox.close()
        # A second look, because other threads may have submitted until then.
        if undelivered or self._is_left():
            life.inbox.reopen(undelivered)
            return False
        return True

    def _is_left(self) -> bool:
        ledger = self._life.ledger
        return bool(
            not ledger.is_quiet()
            or ledger.keepers
            # One that has begun since their stage is still to be asked to end.
            or ledger.daemons
            or ledger.has_open_generators()
            or ledger.leftovers.clean_ups
            or self._rest()
        )

    async def _close_generators(self, deadline: float) -> bool:
        loop, helpers = self._life.ledger.loop, self._life.ledger.leftovers.helpers
        if (generators := _cpython.open_generators(loop)) is not None:
            # Work is still accepted, and asyncio's own hook would complain of generators that are opened from now on.
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
        Cancel what is left, stage by stage, and wait for it. True if all has ended, None if not by the *deadline*.

        *patient*: do not cancel work, and return False as soon as there is any.
        """
        life, ledger = self._life, self._life.ledger
        stages = self._stages(patient)
        while True:
            if patient and not ledger.is_done(self.rank):
                # Work that was accepted after the drain must be done and not cancelled. The remaining tasks may belong to it.
                return False
            runners, parts = next(stages, (None, 1))
            if runners is None:
                break
            ledger.cancel_timers()
            busy = self._ask(runners, patient)
            now = time.monotonic()
            left = deadline - now
            until = now + left / parts
            while busy and not await _ended(life, busy, min(until, time.monotonic() + _LOOK)):
                busy = self._ask(busy, patient) if time.monotonic() < until else []
            if left <= 0 or not await _ended(life, runners, until):
                self._slow.update(runners)
            if left > 0:
                await _ended(life, await _clean_ups(life), until)
        if time.monotonic() >= deadline:
            self._ask(list(ledger.leftovers.clean_ups), patient)
            # One turn in which each task that was just cancelled runs, and one in which it is settled.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await _ended(life, [*self._slow, *await _clean_ups(life)], deadline) or None

    def _stages(self, patient: bool) -> Iterator[tuple[list[Any], int]]:
        """
        Yield what is left, in the order in which it should end, each stage looked at when its turn comes; and into how many parts to divide
        the time.

        A stage that takes longer than its part goes on beside the others.
        """
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers
        if not patient:
            yield self._in_time(ledger.running), 2
        yield self._in_time(ledger.daemons), 2
        if self.rank == UNMARKED:
            # The daemons have ended; what their tasks may submit without end is not waited for.
            self.rank = OF_WHAT_ENDED
            leftovers.orphan_others()
            # An empty stage, so that the caller first waits for what daemons have submitted: it may need the resources.
            yield [], 1
        self._hush(True)
        while kept := self._kept():
            yield kept[0], len(kept) + 1
        while rest := self._in_time(self._rest()):
            leftovers.late.over = leftovers.orphans.over = True
            yield rest, 1
            if not patient:
                # Clean-up may make new tasks without end.
                return

    def _in_time(self, runners: Iterable[Any]) -> list[Any]:
        return [runner for runner in runners if runner not in self._slow]

    def _kept(self) -> list[list[Any]]:
        """Return the resources to close, one after the other, the youngest first; before them, what is left of those closed earlier."""
        ledger = self._life.ledger
        kept = []
        for keeper, owner in ledger.leftovers.belongings.items():
            if (keeper.done() or keeper in self._asked) and owner.tasks:
                owner.over = True
                kept.append(self._in_time(owner.tasks))
        kept += [self._in_time([keeper]) for keeper in reversed(ledger.keepers)]
        return [runners for runners in kept if runners]

    def _rest(self) -> list[asyncio.Future[Any]]:
        """Return all other tasks, and the work submitted by tasks whose time is over."""
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers
        theirs = [runner for runner, task in ledger.running.items() if rank_of(task) == OF_OTHERS]
        bare = asyncio.all_tasks(ledger.loop) - leftovers.helpers - leftovers.clean_ups.keys()
        # In the order in which they were made, where that is known: see the module's docstring.
        known = dict.fromkeys(task for task in leftovers.all() if task in bare)
        return theirs + [task for task in [*known, *(bare - known.keys())] if ledger.is_bare(task) and not task.done()]

    def _hush(self, on: bool) -> None:
        """While *on*, tasks made without the runtime may open no resource, and their errors are not reported."""
        leftovers = self._life.ledger.leftovers
        leftovers.look()
        leftovers.hushed = on

    def _ask(self, runners: list[Any], patient: bool) -> list[Any]:
        """Cancel *runners*; return those to leave alone for now, because they are in a clean-up or a time limit of their own."""
        ledger, asked = self._life.ledger, self._asked
        busy = []
        # In the order of their start: see the module's docstring.
        for number, runner in enumerate(runners):
            # A runner that is done but not settled yet is not cancelled either.
            if runner in asked or runner.done():
                pass
            elif patient and is_asked(runner):
                busy.append(runner)
            else:
                asked.add(runner)
                task = ledger.running.get(runner)
                if task is not None and patient:
                    # Submitted by a task whose time was over. Not logged if that task was made by a daemon, which has ended.
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
                # Runs between the turns of those tasks, and so shows that they had them.
                ledger.loop.call_soon(self._beat_twice)
        return busy

    def _end_untaken(self) -> None:
        """End everything that waits in the inbox now, as cancelled."""
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
    """
    Stop the threads, log what was cut off, and fail what is left, so that nobody waits for it. For the thread that closes.

    May be called again if it was interrupted.
    """
    # Kept in `end`, because a second call finds the inbox empty.
    end.undelivered += life.inbox.close()
    undelivered = end.undelivered
    # A start that is under way may not have seen that the inbox is closed. Any later one does.
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
    """In the parent after a fork: log, each once, the daemons' threads that the child does not have."""
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
    """Stop and join the loop's thread. Returns None, or the stack of the callback that blocks it; the thread is left alone then."""
    # The loop answered, so its thread is only late because the machine is busy: wait longer than for one that gave no answer.
    patience = _JOIN_TIMEOUT + (_PATIENCE if answered else 0.0)
    try:
        # If it does not serve it has left for a fork, or is about to.
        joined = thread.stop(max(0.0, deadline - time.monotonic()) + patience) if serving else thread.join(patience)
    except RuntimeError:
        # Somebody else closed the loop; its thread ends by itself.
        joined = thread.join(patience)
    return None if joined else thread_stack(thread.ident)


def _deaf(life: Life, loop: asyncio.AbstractEventLoop) -> _Named:
    """Describe the tasks that did not end when cancelled, including those made without the runtime."""
    known = {**life.ledger.running, **life.ledger.daemons, **life.ledger.keepers}
    helpers = life.ledger.leftovers.helpers
    left: list[asyncio.Future[Any]] = []
    # A blocked loop may come back now and change the set while it is copied.
    with suppress(RuntimeError):
        left = list(asyncio.all_tasks(loop))
    for runner in left:
        # asyncio would report the same, with less detail.
        _cpython.destroy_quietly(runner)
        if runner in helpers and isinstance(runner, asyncio.Task):
            # The request of another thread that closes at the same time: the loop may have been stopped before its first step.
            close_unstarted(runner.get_coro())
    return _Named(
        lambda runner: describe(known[runner]) if runner in known else _describe_bare(runner),
        (runner for runner in left if runner not in helpers),
    )


# --- naming -----------------------------------------------------------------------------------------------------------


class _Named:
    """Counts things, and keeps a line for each of the first; each further thing is only counted."""

    def __init__(self, name: Callable[[Any], str | None] = str, things: Iterable[Any] = ()) -> None:
        self.count = 0
        self._lines: list[str] = []
        self.add(name, things)

    def add(self, name: Callable[[Any], str | None], things: Iterable[Any]) -> None:
        """Count *things*, and have *name* make a line for each that will be shown."""
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
    """One line about an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    kind = " (daemon)" if task._kind is Kind.DAEMON else ""
    return f"  {shown(task.get_name())}{kind}{since}, submitted at {task._site().short()}, {task._place()}"


def _threads(threads: Iterable[Any]) -> _Named:
    """Describe threads that run the calls of daemons."""
    return _Named(
        lambda thread: f"  {shown(thread.name)}, runs at {thread_place(thread.ident) or 'its end'}", list(threads)
    )


def _waits_for_more(runner: asyncio.Future[Any]) -> bool:
    """Tell whether a task waits at an empty queue, such as a library's worker that has done everything it was given."""
    coro = runner.get_coro() if isinstance(runner, asyncio.Task) else None
    return any(frame.f_code is asyncio.Queue.get.__code__ for frame in frames_of(coro))


def _describe_bare(runner: asyncio.Future[Any]) -> str:
    """One line about a task that was made without the runtime."""
    assert isinstance(runner, asyncio.Task)
    return f"  {title_of(runner)}, waits at {innermost(runner.get_coro())}"
