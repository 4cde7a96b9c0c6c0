"""
Starts the work that the inbox delivers, in order, and keeps a strong reference to it until it is done.

What is guaranteed. From before its first step until it is settled, each piece of work is in one of the tables here, so that every look, every
count and the drain find it:

    beginning                    the work that takes its first step
    running, daemons, keepers    work that goes on after its first step, by its `Kind`
    timers                       calls that are not due
    in_threads                   calls in worker threads

asyncio refers to its tasks only weakly; these references keep them alive. Work that one thread submits begins in the order of submission.

Who may touch what. Only the loop's thread changes the tables, except `in_threads` and `cancelled_early`: there any thread may add and
remove an entry. Other threads look at copies, which may be out of date by then.

How work begins. From 3.12 on the constructor of the asyncio task runs the coroutine up to its first suspension: a coroutine that never
suspends costs no turn of the loop. Up to 3.11, and with a task factory of the user's, first steps come in the next turn of the loop
(`BatchSize`). A batch ends after 2 ms, so that the loop's timers and sockets do not wait longer; the rest follows in the next turn.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from types import CoroutineType
from typing import Any, Final
from weakref import WeakKeyDictionary

from .. import _cpython, _hooks
from .._arguments import as_coroutine, close_unstarted, not_plain
from .._report import shown
from .._threads import COARSEST, coarse_resolution, time
from .failures import LATE_FINALISERS, Failures
from .inbox import Inbox
from .leftovers import Leftovers, rank_of
from .tally import Tally
from .task import HANDOVER, KEEPER, SUCCEEDED, WORK, Task, traceback_without

# How long a batch may keep the loop from its timers and sockets, in seconds. A time and not a number of items, because
# an eager start runs each coroutine up to its first suspension. A turn of the loop costs 10 to 20 µs, 1 % of it.
_BATCH: Final = 0.002

# The size of the first batch, and the largest size: a turn of the loop costs as much as four first steps.
_FIRST: Final = 16
_MOST: Final = 64

# Looked up once: 60 ns of the 1,100 that starting and settling a no-op takes on 3.13.
_AsyncTask: Final = asyncio.Task
_EAGER: Final = sys.version_info >= (3, 12)


# The `Turns` of each call of `every`, by the asyncio task that takes them.
turns_of: Final[WeakKeyDictionary[asyncio.Future[None], Any]] = WeakKeyDictionary()


class Later:
    """An item of the inbox: a task whose function is to be called at a given time."""

    __slots__ = ("task", "when")

    def __init__(self, task: Task[Any], when: float) -> None:
        self.task: Any = task
        self.when = when

    def __call__(self) -> None:
        task = self.task
        if LATE_FINALISERS:
            # On a free-threaded build this item may outlive its use (see `failures`), and must not keep the handle alive. A look at the
            # item finds no task from now on.
            self.task = None
        task._owner.ledger.schedule(task, self.when)


def task_in(item: object) -> Task[Any] | None:
    """Return the task that an item of the inbox carries, or None."""
    if type(item) is Later:
        item = item.task
    return item if type(item) is Task else None


def waiting_in(inbox: Inbox) -> list[Task[Any]]:
    """Return the tasks that are delivered and not taken, those for later included. A snapshot, from any thread."""
    return [task for task in map(task_in, inbox.waiting()) if task is not None]


class BatchSize:
    """
    How many coroutines are started in a batch, where first steps come in the loop's next turn. For the loop's thread.

    Counts those that wait for their first step, and sets the next batch's size by the time that these steps took. Elsewhere starting *is*
    the first step, and a look at the time is enough to end a batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self._context = context
        self._size = _FIRST
        # How many wait for their first step, and how many of them are of this batch.
        self.waiting = 0
        self._count = 0
        # The CPU time of the loop's thread when the second step of the batch began.
        self._since: float | None = None

    def add(self) -> bool:
        """Count one more coroutine that waits. True if the batch is to end with it."""
        self.waiting += 1
        self._count += 1
        if self._count == 2:
            # Not for the first: a single step needs no measuring.
            self._loop.call_soon(self._note_start, context=self._context)
        return self._count >= self._size

    def end(self) -> None:
        """End the batch."""
        count, self._count = self._count, 0
        if count:
            self._loop.call_soon(self._taken, count, context=self._context)

    def _note_start(self) -> None:
        # The CPU time of this thread alone: the steps are not to blame for other threads or a busy machine.
        self._since = time.thread_time()

    def _taken(self, count: int) -> None:
        """Note that all coroutines of a batch have taken their first step."""
        self.waiting -= count
        since, self._since = self._since, None
        if since is not None:
            took = max(time.thread_time() - since, 1e-9)
            if took > _BATCH or count >= self._size:
                self._size = max(2, min(2 * count, int(count * _BATCH / took), _MOST))


class Ledger:
    """
    The work of one loop. Unless a method says otherwise, it is for the loop's thread.

    Holds the strong references: asyncio itself refers to its tasks only weakly.
    """

    # The loop that does the work, from `begin` on.
    loop: asyncio.AbstractEventLoop
    _context: Context
    _batch_size: BatchSize

    def __init__(self, inbox: Inbox, failures: Failures, tally: Tally, clock: Callable[[], float]) -> None:
        self.inbox = inbox
        # The drain waits for `running` and cancels `daemons`: two tables, so that "is anything left?" is one look.
        self.running: dict[asyncio.Future[Any], Task[Any]] = {}
        self.daemons: dict[asyncio.Future[Any], Task[Any]] = {}
        # Ended after all other work, the youngest first, because the others may need what a keeper keeps open.
        self.keepers: dict[asyncio.Future[Any], Task[Any]] = {}
        # The work that takes its first step, or the function that is being called, on the loop's thread: inside the constructor of its
        # asyncio task nothing else refers to it. One slot is enough, because first steps do not nest; it is set before anything begins.
        # Work that ends by a value or an error leaves the tables just before its outcome is known, so that a waiter finds it in none of
        # them. Work that is cancelled or dropped leaves just after, because a look would take it for finished until it is counted.
        self.beginning: Task[Any] | None = None
        self.timers: dict[Task[Any], asyncio.TimerHandle] = {}
        # Work in worker threads, by its call. The calls add and remove themselves, from any thread.
        self.in_threads: dict[Any, Task[Any]] = {}
        # Asyncio tasks that were made on the loop without the runtime.
        self.leftovers = Leftovers()
        # Whether marked work (see `Tally`) is counted when it begins: from the first drain on.
        self.heeds_marks = False
        # Work that was cancelled before it started, from any thread, with the arguments of the cancellation.
        self.cancelled_early: dict[Task[Any], tuple[object, ...]] = {}
        self.failures = failures
        self._tally = tally
        # The clock that the `when` of scheduled calls refers to.
        self._clock = clock
        # Added to the wait where a timer fires early: see `coarse_resolution`.
        self._again = 0.0
        self._now = 0.0
        # When the current batch ends, and whether the next batch is scheduled for the loop's next turn.
        self._until = 0.0
        self._next_is_due = False
        # Whether coroutines start eagerly; read wherever work begins.
        self._eager = False
        # One bound method for all tasks: one for each would be one more object for the garbage collector to visit.
        self._on_done: Final = self._done
        self._says_asyncio = False

    def begin(self, loop: asyncio.AbstractEventLoop, context: Context, owns_loop: bool) -> None:
        """Do the work on *loop*, with all callbacks in *context*. Called again if it was interrupted."""
        self.loop, self._context = loop, context
        self._again = coarse_resolution(loop)
        self._batch_size = BatchSize(loop, context)
        self.leftovers.begin(loop, context, owns_loop)
        if owns_loop:
            self._honour_factories()

    # --- looks at the tables ------------------------------------------------------------------------------------------

    def waited_for(self) -> list[Task[Any]]:
        """Return the started, unfinished work that `flush` and the drain wait for. A snapshot, from any thread."""
        return [task for task in self.unfinished() if task._kind in (WORK, HANDOVER) and task not in self.timers]

    def left(self, rank: int) -> list[Any]:
        """Return the asyncio tasks and worker-thread calls that run the started, unfinished work up to *rank*."""
        held = [*self.running.items(), *list(self.in_threads.items())]
        return [key for key, task in held if rank_of(task) <= rank]

    def is_done(self, rank: int) -> bool:
        """Tell whether there is no unfinished work up to *rank*, started or not."""
        return not self.left(rank) and not any(rank_of(task) <= rank for task in waiting_in(self.inbox))

    def remaining(self) -> int:
        """Count the work that the drain has to wait for, started or not. A snapshot, from any thread."""
        return len(self.inbox) + (self.beginning is not None) + len(self.running) + len(self.in_threads)

    def nothing_left(self) -> bool:
        """Tell whether the loop has nothing to do any more: no work of any kind, no call that is not due, no task, no open generator."""
        held = (self.inbox, self.running, self.in_threads, self.daemons, self.keepers, self.timers)
        # A generator that is not closed yet is seen as far as the loop shows it: uvloop does not.
        return not (any(held) or _cpython.open_generators(self.loop)) and (
            asyncio.all_tasks(self.loop) <= self.leftovers.helpers
        )

    def runners(self) -> Iterator[tuple[asyncio.Future[Any], Task[Any]]]:
        """Yield the work that goes on after its first step on the loop, with the asyncio tasks that run it. From any thread."""
        for held in (self.running, self.daemons, self.keepers):
            yield from list(held.items())

    def batch_began(self) -> float:
        """When the loop began its current or latest batch of work, by `time.monotonic()`; 0 before the first."""
        return self._now

    def unfinished(self) -> list[Task[Any]]:
        """Return all started work that is not done. A snapshot, from any thread."""
        first = self.beginning
        if first is not None and first._age() is None:
            # The start time is set only when somebody looks.
            first._since = self._now
        held = [
            *list(self.running.values()),
            *list(self.daemons.values()),
            *list(self.timers),
            *list(self.in_threads.values()),
        ]
        # No duplicates: work that was in its first step may be in a table by now.
        return held if first is None or first._kind is KEEPER else list(dict.fromkeys([first, *held]))

    def opened(self, runner: asyncio.Future[Any]) -> None:
        """Note that a keeper has opened its resource: it is ended before all keepers that opened theirs earlier."""
        task = self.keepers.pop(runner, None)
        if task is not None:
            self.keepers[runner] = task

    def is_bare(self, runner: asyncio.Future[Any]) -> bool:
        """Tell whether *runner* was made without the runtime."""
        return runner not in self.running and runner not in self.daemons and runner not in self.keepers

    def is_bereft(self) -> bool:
        """Tell whether resources are being closed and the current task, made without the runtime, may open none."""
        runner = asyncio.current_task(self.loop)
        return self.leftovers.hushed and runner is not None and self.beginning is None and self.is_bare(runner)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _honour_factories(self) -> None:
        """End the batch when a task factory is set: the factory makes the tasks of all work that starts later."""
        set_factory = self.loop.set_task_factory

        def set_task_factory(factory: Any) -> None:
            set_factory(factory)
            self._until = 0.0

        with suppress(AttributeError):
            # Replaced on the instance (`method-assign`). A loop with slots refuses that: there a factory counts from the next batch on.
            # Asking the loop before each coroutine would cost 50 ns.
            self.loop.set_task_factory = set_task_factory  # type: ignore[method-assign]

    def empty(self) -> None:
        """Start what was delivered, or as much as fits into a batch; the rest follows in the loop's next turn."""
        if self._next_is_due:
            # A spare wake-up: going on would make two batches in one turn.
            return
        inbox = self.inbox
        take = inbox.take
        tally = self._tally
        if not self._says_asyncio:
            other = _hooks.elsewhere()
            self._says_asyncio = other is not None and other.say_asyncio()
        self._look_around()
        begin = self._begin
        if not self._eager:
            begin = self._begin_in_turn
        ticks = time.perf_counter
        self._until = ticks() + _BATCH
        heeds_marks = self.heeds_marks
        try:
            while True:
                try:
                    item = take()
                except IndexError:
                    if inbox.rest():
                        if self._batch_size.waiting:
                            self._batch_size.end()
                        break
                    continue
                if type(item) is not Task:
                    # A control item. Failures are reported first, so that none is unreported when a flush is done.
                    if self.failures:
                        self.failures.tell_unheld()
                    item()
                else:
                    # In this order, because `stats()` takes work that was taken and is in no table for finished.
                    self.beginning = item
                    tally.taken += 1
                    if heeds_marks and rank_of(item):
                        tally.count("marked")
                    begin(False)
                if ticks() > self._until:
                    # The token stays held: the next batch is the look that the reader is due to take.
                    self._next_batch_soon()
                    break
        except BaseException:
            # The control item raised: the rest must still be started.
            self._next_batch_soon()
            raise
        finally:
            # Let go of the handle, as in `_begin`.
            item = None
        if self.failures:
            self.failures.tell_unheld()

    def _next_batch_soon(self) -> None:
        self._batch_size.end()
        self._next_is_due = True
        self.loop.call_soon(self._next_batch, context=self._context)

    def _next_batch(self) -> None:
        self._next_is_due = False
        self.empty()

    def _look_around(self) -> None:
        """Note what holds for all work that begins in this callback: the time, and whether coroutines start eagerly."""
        self._now = time.monotonic()
        self._eager = _EAGER and self.loop.get_task_factory() is None

    def _begin(self, or_async: bool) -> None:
        """
        Take the first step of `beginning`: settle work that ends in it, hold work that goes on. With *or_async* a function may return an awaitable.

        No frame may refer to the task when the work fails: the error's traceback refers to this frame and to those that called it, and they would
        keep the handle alive. Its failure would be reported not at once, but only when the garbage collector runs. So the task is passed in
        `beginning`, and the `finally` clause lets go of it, however the work ends.
        """
        task: Any = self.beginning
        coro = runner = None
        try:
            if self.cancelled_early and task in self.cancelled_early:
                self.end_unstarted(task)
                return
            args = task._args
            if args is not None:
                task._since = self._now
                value = task._context.run(task._work, *args)
                if not or_async or not inspect.isawaitable(value):
                    if type(value) is CoroutineType:
                        value.close()
                        raise not_plain("call_soon", shown(task.get_name()))
                    self.beginning = None
                    task._settle(SUCCEEDED, value)
                    return
                task._name = task.get_name()
                # The function ran in the context, so the awaitable that it returned goes on in it.
                task._work, task._args = as_coroutine(value, self.loop), None
            coro, name = task._work, task._name
            if name is None:
                name = task._name = coro.__qualname__
            if self._eager:
                # Runs the coroutine up to its first suspension: one that never suspends costs no turn of the loop. (The argument is new
                # in 3.12: `call-arg`.)
                runner = _AsyncTask(coro, loop=self.loop, name=name, context=task._context, eager_start=True)  # type: ignore[call-arg]
            else:
                runner = self.leftovers.make_task(coro, name=name, context=task._context)
                if not asyncio.isfuture(runner):
                    raise TypeError(f"The task factory of the loop returned {runner!r}, which is not a task.")
            if runner.done():
                self.beginning = None
                task._settle_from(runner)
                return
            # Before the work is held, because a task of the user's factory may refuse.
            runner.add_done_callback(self._on_done, context=self._context)
            task._work = runner
            task._since = self._now
            kind = task._kind
            if kind is WORK or kind is HANDOVER:
                self.running[runner] = task
            elif kind is KEEPER:
                self._tally.keeping += 1
                self.keepers[runner] = task
            else:
                self.daemons[runner] = task
            self.beginning = None
        except BaseException as error:
            # An eager start lets SystemExit and KeyboardInterrupt out of the constructor, so there is no asyncio task to settle from.
            error.__traceback__ = traceback_without(error, 1)
            if runner is None:
                close_unstarted(task._work)
            self.beginning = None
            task._fail(error)
        finally:
            del task, coro, runner

    def _done(self, runner: asyncio.Future[Any]) -> None:
        if not runner.cancelled():
            task = self.running.pop(runner, None) or self.daemons.pop(runner, None) or self.keepers.pop(runner, None)
            if task is not None:
                task._settle_from(runner)
            return
        for held in self.running, self.daemons, self.keepers:
            if runner in held:
                # Settled, and so counted, before it leaves the table: see `beginning`.
                held[runner]._settle_from(runner)
                held.pop(runner, None)

    # --- where nothing starts eagerly: up to 3.11, and with a task factory of the user's -------------------------------

    def _begin_in_turn(self, or_async: bool) -> None:
        """Begin a coroutine, whose first step comes in the loop's next turn. A function waits for first steps submitted before it."""
        task: Any = self.beginning
        if task._args is not None and self._batch_size.waiting and task not in self.cancelled_early:
            turn: asyncio.Future[Any] = self.loop.create_future()
            self.running[turn] = task
            self.beginning = None
            self.loop.call_soon(self._begin_now, turn, context=self._context)
        else:
            steps = task._args is None
            # No frame may refer to the task: see `_begin`.
            del task
            self._begin(or_async)
            if not steps:
                return
        if self._batch_size.add():
            self._until = 0.0

    def _begin_now(self, turn: asyncio.Future[Any]) -> None:
        self.beginning = self.running[turn]
        del self.running[turn]
        if not turn.done():
            # Whoever waits for `turn` goes on after this callback.
            turn.set_result(None)
        self._look_around()
        self._begin(False)
        if self.failures:
            self.failures.tell_unheld()

    # --- later --------------------------------------------------------------------------------------------------------

    def schedule(self, task: Task[Any], when: float) -> None:
        """Call a task's function at *when*, by the runtime's clock."""
        self._wait_until(when, task)
        # Counted after that, as in `empty`.
        self._tally.taken += 1

    def _wait_until(self, when: float, task: Task[Any], more: float = 0.0) -> None:
        # A delay and not a time, because uvloop's clock is not the runtime's.
        delay = max(0.0, when - self._clock()) + more
        self.timers[task] = self.loop.call_later(delay, self._due, when, task, context=self._context)

    def _due(self, when: float, task: Task[Any]) -> None:
        # uvloop counts whole milliseconds from the start of the current one, so a timer may fire early.
        if 0 < when - self._clock() < COARSEST:
            self._wait_until(when, task, self._again)
            return
        self.beginning = task
        del self.timers[task], task
        self._look_around()
        self._begin(True)

    # --- cancelling ---------------------------------------------------------------------------------------------------

    def cancel(self, task: Task[Any], msg: object) -> None:
        """Cancel *task* now, wherever it is."""
        args = self.cancelled_early.pop(task, ())
        if task._outcome() is not None:
            return
        work = task._work
        if isinstance(work, asyncio.Future):
            work.cancel(msg)
        elif task in self.timers:
            # Set before the timer is removed, so that the task can be found all the while.
            self.beginning = task
            self.timers.pop(task).cancel()
            self.cancelled_early[task] = args
            self.end_unstarted(task)

    def end_unstarted(self, task: Task[Any]) -> None:
        """End, as cancelled, work that was taken from the inbox and will not be started."""
        task._end_cancelled(self.cancelled_early.pop(task, ()))
        # After that: see `beginning`.
        self.beginning = None

    def end_turns(self) -> bool:
        """Let no turn of `every` begin any more. True if one is under way: it is now work to be waited for."""
        under_way = False
        for runner, task in list(self.daemons.items()):
            turns = turns_of.get(runner)
            if turns is not None and not turns.daemon and turns.begin_no_more():
                self.running[runner] = self.daemons.pop(runner)
                task._kind = WORK
                under_way = True
        return under_way

    def cancel_timers(self) -> None:
        """Cancel the calls that are not due yet, without a report."""
        for task in list(self.timers):
            self.cancel(task, None)

    def is_known(self, error: BaseException) -> bool:
        """Tell whether *error*, which came out of the loop, is the failure of a task that is about to be settled."""
        return any(
            runner.done() and not runner.cancelled() and runner.exception() is error for runner, _ in self.runners()
        )


def is_asked(runner: asyncio.Future[Any]) -> bool:
    """Tell whether *runner* was asked to end already: asking again would interrupt its clean-up."""
    return isinstance(runner, asyncio.Task) and runner.cancelling() > 0
