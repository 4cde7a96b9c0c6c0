"""
Waits, on the loop, until no work is left: for `flush`, and as the first part of every end.

What is guaranteed. All work that was submitted before a wait begins is started before the loop looks at what is left. A drain also waits for
what work submits meanwhile. Both end at their deadline, and leave the work alone.

What a drain waits for, in the order of the code (`_Drain._wait`). Each kind is looked at again and again, because work may submit work:

1. Work whose context does not mark it as submitted for a daemon, a resource or another owner (`rank_of`).
2. The closing of async generators. It is clean-up, and has `cancel_timeout`.
3. Young tasks that work has left on the loop by asyncio's own means: as long as one of them is known to end within their time, or any of
   them has moved in the last half second.
4. What daemons have submitted so far. This is waited for once in the whole end, because a daemon may submit without end.

How a waiting thread and the loop talk. The thread puts a request on the loop (`Asked`) and waits at its gate until the deadline. The gate is
opened when the request is done, or by the end of the life (`Life.fail_all`). So the tables belong to the loop: it looks and counts in one
step, and nothing can be submitted or end in between. A callback that blocks the loop may return only after the thread has given up. The
loop must not begin the request then: whoever answers it or gives it up takes it out of `Life.asked`, and the loop begins only what is there.

What was tried and does not work.
- A callback for each piece of work that is waited for: it costs as much as the end of the work.
- A count of unfinished work, decreased where work settles: it adds a step to every task and every thread.
- Waiting for the oldest task first: it is mostly the first to end, so that each task is waited for in turn.
- Waiting for leftovers by their age alone: each client that was left open cost five seconds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any, Final

from .. import _cpython, _hooks
from .._errors import CannotStartError
from .._process import exit
from .._threads import acquire, time
from .._work.leftovers import OF_OTHERS, OF_WHAT_ENDED, UNMARKED, comes
from .life import Life
from .workers import ThreadWork, resolve

# How soon to look again whether another thread has started the loop's thread.
_STARTING: Final = 0.0005

# A shorter wait logs nothing. Half a second is where people begin to wonder (a guess).
_QUIET: Final = 0.5

# Leftovers that wait for something unknown are given up when none of them has moved for `_STILL` seconds. `LOOK` is the pause between two
# looks.
_STILL: Final = 0.5
LOOK: Final = 0.05


class LeftoverTime:
    """Leftovers made after *since* are young, and are waited for until *until*; both by `time.monotonic`."""

    __slots__ = ("since", "until")

    def __init__(self, since: float, until: float) -> None:
        self.since = since
        self.until = until


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


# --- from a thread to the loop ----------------------------------------------------------------------------------------


class Asked:
    """A request of a thread to the loop: the coroutine to run there, and its result, which the thread waits for."""

    def __init__(self, life: Life, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.gate = Lock()
        self.gate.acquire()
        self.value: Any = None
        self._life = life
        self._begin = begin
        self._runner: asyncio.Task[Any] | None = None
        life.asked[self] = True

    def __call__(self) -> None:
        """Begin the request, on the loop's thread. Elsewhere do nothing: the loop is gone, and the end of the life answers."""
        life = self._life
        if life.thread.is_current() and self in life.asked:
            self._runner = life.ledger.leftovers.help(self._begin())
            self._runner.add_done_callback(self._done, context=life.thread.context)

    def _done(self, runner: asyncio.Task[Any]) -> None:
        value = None
        try:
            # An error here is a bug of this package: the loop's exception handler reports it.
            value = None if runner.cancelled() else runner.result()
        finally:
            self.answer(value)

    def answer(self, value: Any) -> None:
        """Answer, unless it is answered already or given up. From any thread."""
        if self._life.asked.pop(self, False):
            self.value = value
            self.gate.release()

    def give_up(self) -> None:
        """Stop waiting, unless it is answered. For the thread that asked."""
        if self._life.asked.pop(self, False) and self._life.loop is not None:
            with suppress(RuntimeError):
                # The loop is closed.
                self._life.thread.post(lambda: self._runner and self._runner.cancel())


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
    if not life.serving and not life.ledger.remaining():
        # Never used, or parked before a fork because there was nothing to do.
        return True
    since, until = time.monotonic(), math.inf if deadline is None else deadline
    asked = Asked(life, begin)
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
        if not acquire(asked.gate, min(_QUIET, until - time.monotonic())) and time.monotonic() < until:
            try:
                progress = _hooks.on_use("_seen.progress").Progress(
                    life, shown=shown, told=told, since=since, leftovers_until=leftovers and leftovers.until
                )
            except (ImportError, OSError):
                # The core is installed alone, or the process is short of descriptors: wait without logging progress.
                acquire(asked.gate, until - time.monotonic())
            else:
                progress.acquire(asked.gate, deadline)
        return bool(asked.value)
    finally:
        life.inbox.take_back(asked)
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
        self._still = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def flush(self, left: list[Any]) -> bool:
        life = self._life
        await ended(life, left)
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
        leftovers, left = self._life.ledger.leftovers, self._time.until - time.monotonic()
        work = self._life.ledger.left(self._rank)
        leftovers.give_up(leftovers.old(self._time.since), but=work)
        if left <= 0:
            leftovers.time_over = True
            leftovers.give_up(leftovers.young(self._time.since), in_vain=True, but=work)
        # Repeated, because work may leave further tasks.
        self._timer = self._life.ledger.loop.call_later(left if left > 0 else _STILL, self._give_up_late_ones)

    async def _wait(self) -> bool:
        """Wait for the first kind of thing that is left; False if nothing is."""
        life, ledger = self._life, self._life.ledger
        if not ledger.is_done(self._rank):
            if left := ledger.left(self._rank):
                await ended(life, left)
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
            await ended(life, ledger.left(OF_WHAT_ENDED))
            if life.waited_for_daemons:
                return True
        return not ledger.is_done(self._rank)

    async def _clean_ups(self) -> bool:
        """Wait for the clean-ups under way, up to `cancel_timeout`; False if there are none."""
        found = [task for task in await clean_ups(self._life) if task not in self._slow]
        if found and not await ended(self._life, found, time.monotonic() + self._cancel_timeout):
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
        known = next((task for task in young if comes(task, until, ledger.running, ledger.timers)), None)
        if known is not None:
            self._still, pause = 0.0, min(left, _STILL)
        else:
            waiters: dict[asyncio.Future[Any], object] = {task: _cpython.waiter_of(task) for task in young}
            if waiters != self._waiters:
                self._waiters, self._still = waiters, 0.0
            if self._still >= _STILL:
                return False
            # A look at many leftovers takes time as well, so the pause grows with it.
            pause = min(left, max(LOOK, 5 * (time.monotonic() - now)))
            # Not by the clock: while the loop itself stands still, on a busy machine, nothing can move.
            self._still += pause
        await asyncio.wait([known or young[0]], timeout=pause)
        return True


async def clean_ups(life: Life) -> list[asyncio.Future[Any]]:
    """Return the tasks that are closing async generators now."""
    # asyncio makes such a task one turn of the loop after it notices that one is needed.
    await asyncio.sleep(0)
    leftovers = life.ledger.leftovers
    leftovers.look()
    return list(leftovers.clean_ups)


async def ended(life: Life, runners: Iterable[Any], until: float = math.inf) -> bool:
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
