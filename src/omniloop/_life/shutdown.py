"""
How a life ends: work is waited for, daemons are cancelled, resources closed, the youngest first, losses logged, the threads stopped.

What is guaranteed. Accepted work is done, or its handle says why not; there is no third outcome. The end takes no longer than its two
deadlines: one for the work, and one for the clean-up of cancelled tasks. Both hold for any number of tasks. Each task is cancelled once and
then has one turn of the loop, even when the deadline has passed: without that turn its clean-up would not even begin, and Python would
complain of an ignored GeneratorExit. A task costs nothing more than that: only the twenty that the log shows are described.

The end in the order of the code below:

1. `close` waits until no work is left (`drain.drain`). Then `_End.finish` ends everything else. Its outcome is one word: if it is WORK_LEFT,
   because new work has appeared, both are repeated; ENDED and STUCK end the waiting.
2. `_End._end_groups` cancels and waits for what `_End._groups` yields, stage by stage. What takes longer than its part of the time goes on
   beside the later stages, and is waited for last.
   - Work. Only step 4 ends it.
   - Daemons. No turn of `every` begins any more; a turn that is under way counts as work from now on.
   - Resources, the youngest first. After each follow the tasks that were made in its opening: its client's own reader and heartbeat, which
     the client's `close()` needs. Before them, what daemons have submitted is waited for: it may need the resources.
   - The rest: all other tasks on the loop, and what they submitted after their time was over.
3. If nothing is left, `_End._refuse` closes the inbox in the same step in which it sees this.
4. If the deadline or a Ctrl-C has ended the waiting, or the end is STUCK, `_End.cut` goes through the stages from the first one.
5. `_stop_all` runs in the thread that closes, one thread at a time (`Life.closing`). It ends the threads, logs what was cut off, and fails
   every handle that is left, so that nobody waits any more.

The steps on the loop are requests of the closing thread, as a drain is. From outside, a loop that is busy with 100,000 clean-ups looks the
same as a blocked one. So the loop counts beats while it makes progress (`_End._beat`), and as long as it does the thread waits on, past the
deadline too.

What was tried and does not work.
- Cancelling bare tasks together with the daemons: a client whose reader was gone could not close.
- Cancelling in any other order than that of the start: a queue in which many wait, such as that of an `asyncio.Event`, is searched from its
  head for each waiter that leaves it, and 100,000 took ten times as long.
- Waiting without limit for work that is submitted while resources are closed: a bare task that reconnects by itself opened one 364 times.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal

from .. import _cpython
from .._arguments import close_unstarted
from .._errors import CannotStartError, ClosedError
from .._process import exit
from .._report import frames_of, hurried, innermost, say, shown, thread_place, thread_stack
from .._threads import acquire, holding, time
from .._work.ledger import is_asked, task_in
from .._work.leftovers import OF_OTHERS, OF_WHAT_ENDED, UNMARKED, rank_of, title_of
from .._work.task import DAEMON, Task
from .drain import LOOK, Asked, LeftoverTime, clean_ups, drain, ended
from .life import Life, Stage

# Added to the deadlines: how long to wait for a thread that was told to end.
_JOIN_TIMEOUT: Final = 0.5

# A loop that counts no beat for so long is blocked; this is added to the deadlines too. (A guess; well above what a busy machine adds.)
_PATIENCE: Final = 1.5

# How many tasks the log describes. The rest are only counted.
_NAMED: Final = 20

# How many tasks are cancelled, and have their turn, between two beats. Each may take some milliseconds.
_BATCH: Final = 16

# How many turns of the loop a task has to come out of a time limit of its own that is just over, before it is looked at now and then.
_TURNS: Final = 10

# How often the stages are repeated although there is no work to wait for: who begins a daemon for each that ends is not followed.
_MOST_ROUNDS: Final = 10


# What has come of an attempt to end everything but work.
Outcome = Literal["ended", "work left", "stuck"]

# Nothing is left, and whatever is submitted from now on is refused.
ENDED: Final = "ended"
# Something has begun meanwhile: wait for it, and try again.
WORK_LEFT: Final = "work left"
# Something did not end by the deadline, or the loop is blocked.
STUCK: Final = "stuck"


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
    outcome: Outcome = WORK_LEFT
    last = time.monotonic()
    # How much clean-up time is left: all rounds together take no longer than one may.
    left = cancel_timeout
    try:
        try:
            while outcome is WORK_LEFT and not interruptions:
                if not drain(life, deadline, cancel_timeout, leftovers, end.rank):
                    break
                # Only now daemons and resources: the work may have needed them.
                last = time.monotonic() + left
                outcome = end.finish(last)
                left = max(0.0, last - time.monotonic())
        except KeyboardInterrupt:
            interruptions += 1
        if outcome is not ENDED:
            # What is cut off has all of it anew.
            left = left if outcome is STUCK else cancel_timeout
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
                    _stop_all(life, last, end, why)
                except KeyboardInterrupt:
                    # In its wait for the threads, for example. Whoever waits for a handle is to be told nevertheless.
                    interruptions += 1
                    _stop_all(life, time.monotonic(), end, why)
            else:
                life.fail_all(end.undelivered, _closed_error, told=True)
    return interruptions


# --- on the loop ------------------------------------------------------------------------------------------------------


class _End:
    """Ends what is left on the loop. The public methods are for the thread that closes, the others for the loop's."""

    def __init__(self, life: Life) -> None:
        self._life = life
        # The rank of the work that is waited for. Once daemons have ended, it includes what they submitted.
        self.rank = UNMARKED
        # What is cut off, for the log, each with its line.
        self.cut_off: dict[Task[Any], str | None] = {}
        # The lines of leftovers that did not end while they were waited for.
        self.in_vain: list[str | None] = []
        self.undelivered: list[Any] = []
        # Whether the loop answered when it was last asked.
        self.answered = True
        # Increases while the loop makes progress.
        self._beats = 0
        # How often the stages were gone through and left no work.
        self._rounds = 0
        # What was cancelled: only once, because a second time would interrupt its clean-up. Includes the handles of work that was cut off.
        self._asked: set[Any] = set()
        # What did not end in its stage. It is waited for only after all other stages.
        self._slow: set[Any] = set()

    def finish(self, deadline: float) -> Outcome:
        """End daemons, resources and all other tasks, and refuse work from then on. Work itself is not cancelled."""
        life = self._life
        if life.serving:
            return self._ask_loop(lambda: self._finish(deadline), deadline)
        undelivered = life.inbox.close()
        # Until then another thread may have started the loop, which has begun what was submitted. Any later start is refused.
        life.wait_for_start()
        if (undelivered or life.serving) and life.stage is not Stage.DEAD:
            with suppress(CannotStartError):
                life.inbox.reopen(undelivered)
            return WORK_LEFT
        return ENDED

    def cut(self, deadline: float, leftovers: LeftoverTime) -> None:
        """Cancel everything that is left, including work, and refuse whatever is submitted from then on."""
        life = self._life
        if life.stage is not Stage.NEW:
            for task in life.waited_for():
                self._drop(task)
            if life.serving:
                self._ask_loop(lambda: self._cut(deadline, leftovers), deadline)

    def lines(self) -> list[str | None]:
        """Return the lines of what was cut off. A task that ended by itself before it was cancelled does not count."""
        return [
            line for task, line in self.cut_off.items() if task in self._asked or not task.done() or not self.answered
        ]

    def _ask_loop(self, begin: Callable[[], Coroutine[Any, Any, Outcome]], deadline: float) -> Outcome:
        """Have the loop run a coroutine and wait for its outcome; STUCK if the loop is blocked, but not before the *deadline*."""
        asked = Asked(self._life, begin)
        try:
            self._life.thread.post(asked)
            self.answered = False
            while not self.answered:
                beats = self._beats
                until = max(deadline, time.monotonic()) + _PATIENCE
                self.answered = acquire(asked.gate, until - time.monotonic())
                if beats == self._beats and time.monotonic() >= until:
                    break
        except RuntimeError:
            # The loop was closed by somebody else.
            return ENDED
        finally:
            asked.give_up()
        return asked.value if asked.value in (ENDED, WORK_LEFT) else STUCK

    # --- on the loop's thread -----------------------------------------------------------------------------------------

    async def _finish(self, deadline: float) -> Outcome:
        ledger = self._life.ledger
        for runner in list(ledger.leftovers.in_vain):
            if hasattr(_cpython.waiter_of(runner), "comes_from"):
                # It waits for an item. The source of that is a daemon, and so ends first, and this task with it.
                _add(self.in_vain, _describe_bare, runner)
                ledger.leftovers.in_vain.discard(runner)
        ledger.end_turns()
        try:
            outcome = await self._end_groups(False, deadline)
        finally:
            self._hush(False)
        if outcome is not ENDED or (await self._close_generators(deadline) and self._refuse()):
            return outcome
        if not ledger.is_done(self.rank):
            return WORK_LEFT
        # Each daemon that is cancelled may begin the next: then there is no work to wait for, and no round would be the last.
        self._rounds += 1
        over = self._rounds >= _MOST_ROUNDS or time.monotonic() >= deadline
        return STUCK if over else WORK_LEFT

    async def _cut(self, deadline: float, leftovers: LeftoverTime) -> Outcome:
        ledger = self._life.ledger
        ledger.leftovers.in_vain.update(ledger.leftovers.young(leftovers.since))
        # Those under way are work, and named, though the loop learns only now of the end.
        ledger.end_turns()
        self._end_untaken()
        await self._end_groups(True, deadline)
        await self._close_generators(deadline)
        if not self._refuse():
            # New work appears again and again. Refuse it from here on, and cancel what was started meanwhile.
            self.undelivered = self._life.inbox.close()
            await self._end_groups(True, 0.0)
        return ENDED

    async def _end_groups(self, cut: bool, deadline: float) -> Outcome:
        """Cancel what is left, group by group, and wait for it. Unless work itself is *cut* off, stop at the first sign of new work."""
        ledger, groups = self._life.ledger, self._groups(cut)
        while cut or ledger.is_done(self.rank):
            ledger.cancel_timers()
            found, count = next(groups, (None, 0))
            if found is None:
                break
            left = deadline - time.monotonic()
            if found:
                await self._end_group(found, left, left / (count + 1), not cut)
        else:
            # Work that was accepted after the drain must be done and not cancelled. The remaining tasks may belong to it.
            return WORK_LEFT
        if time.monotonic() >= deadline:
            self._ask(list(ledger.leftovers.clean_ups), not cut)
            # One turn in which each task that was just cancelled runs, and one in which it is settled.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        in_time = await ended(self._life, [*self._slow, *await clean_ups(self._life)], deadline)
        return ENDED if in_time else STUCK

    async def _end_group(self, runners: list[Any], left: float, part: float, patient: bool) -> None:
        """Cancel *runners* and wait for them, for a *part* of the time that is *left*; without waiting if none is."""
        life, until = self._life, time.monotonic() + part
        busy = self._ask(runners, patient)
        for _ in range(_TURNS):
            # By turns: on a busy machine there may be time for a single look, in the middle of a time limit that is just over.
            if busy:
                await asyncio.sleep(0)
                busy = self._ask(busy, patient)
        while busy and not await ended(life, busy, min(until, time.monotonic() + LOOK)):
            busy = self._ask(busy, patient) if time.monotonic() < until else []
        if left <= 0 or not await ended(life, runners, until):
            self._slow.update(runners)
        if left > 0:
            await ended(life, await clean_ups(life), until)

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
                        _add(self.in_vain, describe, task)
                elif task is not None:
                    self._drop(task)
                    asked.add(task)
                elif runner in ledger.leftovers.in_vain and not _waits_for_more(runner):
                    _add(self.in_vain, _describe_bare, runner)
                runner.cancel()
            if not number % _BATCH:
                self._beat()
                # Runs between the turns of those tasks, and so shows that they had them.
                ledger.loop.call_soon(self._beat_twice)
        return busy

    def _drop(self, task: Task[Any]) -> None:
        if task not in self.cut_off:
            self.cut_off[task] = describe(task) if len(self.cut_off) < _NAMED else None

    def _beat(self) -> None:
        self._beats += 1
        self._life.goes_on()

    def _beat_twice(self) -> None:
        # What was cancelled in this turn is settled in the next.
        self._beat()
        self._life.ledger.loop.call_soon(self._beat)

    async def _close_generators(self, deadline: float) -> bool:
        ledger = self._life.ledger
        if (generators := _cpython.open_generators(ledger.loop)) is not None:
            # Work is still accepted, and asyncio's own hook would complain of generators that are opened from now on.
            sys.set_asyncgen_hooks(firstiter=generators.add)
        closing = ledger.leftovers.help(ledger.loop.shutdown_asyncgens())
        if not await ended(self._life, [closing], max(deadline, time.monotonic() + 0.01)):
            closing.cancel()
            return False
        return True

    def _refuse(self) -> bool:
        """Close the inbox if nothing is left; return False if something is."""
        life = self._life
        # First with the inbox open: what other threads submit is not refused as long as the end goes on.
        if not life.ledger.nothing_left():
            return False
        undelivered = life.inbox.close()
        # A second look, because other threads may have submitted until then.
        if undelivered or not life.ledger.nothing_left():
            life.inbox.reopen(undelivered)
            return False
        return True

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
                task._end_unstarted(*ledger.cancelled_early.pop(task, ()))
            else:
                item()
            if not number % _BATCH:
                self._beat()

    # --- the stages ---------------------------------------------------------------------------------------------------

    def _groups(self, cut: bool) -> Iterator[tuple[list[Any], int]]:
        """
        Yield what is to end next, and how many such groups share the time. To be asked again when that has ended, or is too slow.

        The end of one resource looks at no other.
        """
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers

        def fresh(runners: Iterable[Any]) -> list[Any]:
            return [runner for runner in runners if runner not in self._slow]

        if cut:
            yield fresh(ledger.running), 1
        # Once, because each that ends may begin another.
        yield fresh(ledger.daemons), 1
        if self.rank == UNMARKED:
            # From now on what daemons have submitted is waited for; not what their tasks may yet submit, without end.
            self.rank = OF_WHAT_ENDED
            leftovers.orphan_others()
        self._hush(True)
        yield [], 1
        closed = [it for keeper, it in leftovers.belongings.items() if keeper.done() or keeper in self._asked]
        while True:
            while closed:
                if left := fresh(closed[-1].tasks):
                    closed[-1].over = True
                    yield left, max(1, len(ledger.keepers))
                else:
                    closed.pop()
            if (youngest := next((it for it in reversed(ledger.keepers) if it not in self._slow), None)) is None:
                break
            yield [youngest], len(ledger.keepers)
            if (owner := leftovers.belongings.get(youngest)) is not None:
                closed.append(owner)
        while rest := fresh(self._rest()):
            leftovers.late.over = leftovers.orphans.over = True
            yield rest, 1

    def _rest(self) -> list[Any]:
        """Return all other tasks, and the work submitted by tasks whose time is over."""
        ledger, leftovers = self._life.ledger, self._life.ledger.leftovers
        theirs = [runner for runner, task in ledger.running.items() if rank_of(task) == OF_OTHERS]
        bare = asyncio.all_tasks(ledger.loop) - leftovers.helpers - leftovers.clean_ups.keys()
        # In the order in which they were made, where that is known: see the module's docstring.
        known = dict.fromkeys(task for task in leftovers.all() if task in bare)
        return theirs + [task for task in [*known, *(bare - known.keys())] if ledger.is_bare(task)]

    def _hush(self, on: bool) -> None:
        """While *on*, tasks made without the runtime may open no resource, and their errors are not reported."""
        leftovers = self._life.ledger.leftovers
        leftovers.look()
        leftovers.hushed = on


# --- in the thread that closes ----------------------------------------------------------------------------------------


def _closed_error() -> ClosedError:
    return ClosedError("The runtime was shut down before this was done.")


def _stop_all(life: Life, deadline: float, end: _End, why: str) -> None:
    """
    Stop the threads, log what was cut off, and fail what is left, so that nobody waits for it. For the thread that closes.

    May be called again if it was interrupted.
    """
    # Kept in `end`, because a second call finds the inbox empty.
    end.undelivered += life.inbox.close()
    # A start that is under way may not have seen that the inbox is closed. Any later one does.
    life.wait_for_start()
    thread = life.thread
    life.stop_watching(_JOIN_TIMEOUT)
    # If the loop answered, its thread is only late because the machine is busy: wait longer than for one that gave no answer.
    patience = _JOIN_TIMEOUT + (_PATIENCE if end.answered else 0.0)
    joined = thread.stop(max(0.0, deadline - time.monotonic()) + patience)
    blocked = None if joined else thread_stack(thread.ident)
    cut_off = end.lines()
    busy = life.workers.stop(_JOIN_TIMEOUT)
    if blocked is not None:
        exit.leave_behind(thread.ident)
        say("%s: the loop's thread did not end, because a callback blocks it here:\n%s", life.name, blocked)
    for worker in busy:
        if stack := thread_stack(worker.ident):
            exit.leave_behind(worker.ident)
            say("%s: worker thread %r did not end; it runs here:\n%s", life.name, worker.name, stack)
    _tell(life, _lines(_describe_thread, life.daemon_threads), "left running in daemon threads, which nobody waits for")
    _tell(life, cut_off, f"unfinished when {why}, and cancelled")
    _tell(life, end.in_vain, "left on the loop when their time was over, and cancelled")
    if life.loop is not None and life.stage is not Stage.DEAD:
        deaf = _deaf(life, life.loop)
        if blocked is None:
            _tell(life, deaf, "did not end when cancelled, and will not be done")
    late = _lines(describe, (item for item in end.undelivered if type(item) is Task))
    _tell(life, late, "came while it was being shut down, and were not started")
    life.shut()
    life.fail_all(end.undelivered, _closed_error, told=True)
    life.failures.tell_all()
    if life.loop is not None:
        thread.close()


def name_left_behind(life: Life) -> None:
    """In the parent after a fork: log, each once, the daemons' threads that the child does not have."""
    unnamed = {daemon: said for daemon, said in list(life.daemon_threads.items()) if not said}
    for said in unnamed.values():
        said.append("named")
    _tell(
        life,
        _lines(_describe_thread, unnamed),
        "left running in daemon threads, which the forked child is without; a lock that one of them held is held there for ever. "
        "Start them after the fork, or the child by spawn",
    )


# --- naming -----------------------------------------------------------------------------------------------------------

# What is counted in the log, and its first few named: a line for each of these, made before it was cancelled, and None for each of the others.
Lines = list[str | None]


def _add(lines: Lines, describe: Callable[[Any], str], thing: Any) -> None:
    lines.append(describe(thing) if len(lines) < _NAMED else None)


def _lines(describe: Callable[[Any], str], things: Iterable[Any]) -> Lines:
    lines: Lines = []
    for thing in list(things):
        _add(lines, describe, thing)
    return lines


def _tell(life: Life, lines: Lines, what: str) -> None:
    if lines:
        named = [line for line in lines if line is not None]
        more = [f"  … and {len(lines) - len(named)} more"] if len(lines) > len(named) else []
        say("%s: %d %s:%s", life.name, len(lines), what, "".join(f"\n{line}" for line in named + more))


def describe(task: Task[Any]) -> str:
    """One line about an unfinished task, for a person to read."""
    age = task._age()
    since = "" if age is None else f", for {age:.1f} s"
    kind = " (daemon)" if task._kind is DAEMON else ""
    return f"  {shown(task.get_name())}{kind}{since}, submitted at {task._site().short()}, {task._place()}"


def _describe_thread(thread: Any) -> str:
    return f"  {shown(thread.name)}, runs at {thread_place(thread.ident) or 'its end'}"


def _describe_bare(runner: asyncio.Future[Any]) -> str:
    """One line about a task that was made without the runtime."""
    assert isinstance(runner, asyncio.Task)
    return f"  {title_of(runner)}, waits at {innermost(runner.get_coro())}"


def _deaf(life: Life, loop: asyncio.AbstractEventLoop) -> Lines:
    """Describe the tasks that did not end when cancelled, including those made without the runtime."""
    known = dict(life.ledger.runners())
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
    return _lines(
        lambda runner: describe(known[runner]) if runner in known else _describe_bare(runner),
        (runner for runner in left if runner not in helpers),
    )


def _waits_for_more(runner: asyncio.Future[Any]) -> bool:
    """Tell whether a task waits at an empty queue, such as a library's worker that has done everything it was given."""
    coro = runner.get_coro() if isinstance(runner, asyncio.Task) else None
    return any(frame.f_code is asyncio.Queue.get.__code__ for frame in frames_of(coro))
