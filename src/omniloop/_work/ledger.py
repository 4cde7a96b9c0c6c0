"""
Starts what the inbox brings, in order, and holds it until it is done.

What is guaranteed. Whatever is begun is in one of the tables here from before its first step until it is settled, so that every
look, every count and every end sees it: `beginning` for what is in its first step, then `running`, `daemons` or `keepers` by its
`Kind`, `timers` for calls that are not due, `in_threads` for those that workers make. asyncio refers to its tasks only weakly: these
are the references that keep them. What one thread has submitted begins in that order.

Who may touch what. The tables are changed by the loop's thread alone, except `in_threads` and `cancelled_early`, where each entry is made
and removed by whoever has it in hand. Other threads look at copies, and what they see may be over by then.

How it begins. From 3.12 on a coroutine is run up to its first suspension inside the constructor of its asyncio task: one that never
suspends costs no turn of the loop. Up to 3.11, and with a task factory of the user's, first steps come in the next turn of the loop
(`first_steps`). The loop is left after 2 ms, however much has come, so that its timers and sockets are not kept waiting, and goes on in its
next turn.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from types import CoroutineType
from typing import Any, Final

from .. import _cpython, _hooks
from .._arguments import as_coroutine, close_unstarted, not_plain
from .._clock import time
from .._report import shown
from .failures import LATE_FINALISERS, Failures
from .first_steps import FirstSteps
from .inbox import Inbox
from .leftovers import Leftovers, rank_of
from .periodic import COARSEST, coarse_resolution, turns_of
from .tally import Tally
from .task import HANDOVER, KEEPER, SUCCEEDED, WORK, Task, traceback_without

# How long the emptying may keep the loop from its timers and sockets, in seconds: measured in time and not in items,
# because an eager start runs the coroutine up to its first suspension. A turn of the loop costs 10 to 20 µs, 1 % of it.
_BATCH: Final = 0.002

# Looked up once: 60 ns of the 1,100 that starting and settling a no-op takes on 3.13.
_AsyncTask: Final = asyncio.Task
_EAGER: Final = sys.version_info >= (3, 12)


class Later:
    """In the inbox: a task whose function is to be called at a given time."""

    __slots__ = ("task", "when")

    def __init__(self, task: Task[Any], when: float) -> None:
        self.task: Any = task
        self.when = when

    def __call__(self) -> None:
        task = self.task
        if LATE_FINALISERS:
            # This item may outlast its use, as said in `failures`, and is not to keep the handle. Who looks at it now finds no task.
            self.task = None
        task._owner.ledger.schedule(task, self.when)


def task_in(item: object) -> Task[Any] | None:
    """The task that an item of the inbox brings, if it brings one."""
    if type(item) is Later:
        item = item.task
    return item if type(item) is Task else None


class Ledger:
    """
    The work of one loop. All methods are for the loop's thread, except where they say otherwise.

    The strong references are here: asyncio itself refers to its tasks only weakly.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        inbox: Inbox,
        failures: Failures,
        tally: Tally,
        clock: Callable[[], float],
        owns_loop: bool,
    ) -> None:
        self.loop = loop
        self.inbox = inbox
        # What the drain waits for, and what it cancels: two tables, so that "is there anything left" is one look.
        self.running: dict[asyncio.Future[Any], Task[Any]] = {}
        self.daemons: dict[asyncio.Future[Any], Task[Any]] = {}
        # What the others may need to the last: ended after all of them, the youngest first.
        self.keepers: dict[asyncio.Future[Any], Task[Any]] = {}
        # In its first step, or called, on the loop's thread: inside the constructor of its asyncio task nobody else refers to it. One
        # slot, because first steps do not nest; set before anything begins. What ends by a value or an error leaves the tables just
        # before that is known, so that whoever waits for it finds it nowhere; what is cancelled or dropped leaves just after, because
        # until it is counted as such a look would take it for finished.
        self.beginning: Task[Any] | None = None
        self.timers: dict[Task[Any], asyncio.TimerHandle] = {}
        # Work in worker threads, by its call; these add and remove themselves, from any thread.
        self.in_threads: dict[Any, Task[Any]] = {}
        # What is made on the loop without the runtime.
        self.leftovers = Leftovers(loop, context, owns_loop)
        # Whether it is counted who has submitted what begins: from the first drain on.
        self.heeds_marks = False
        # Asked to end before they were started, from any thread; and the arguments of the cancellation.
        self.cancelled_early: dict[Task[Any], tuple[object, ...]] = {}
        self.failures = failures
        self._tally = tally
        # What the `when` of scheduled calls is told by.
        self._clock = clock
        self._context = context
        # What is added where a timer has come early: see there.
        self._again = coarse_resolution(loop)
        self._now = 0.0
        # When the batch is to end, and whether the next one is due in the loop's next turn.
        self._until = 0.0
        self._next_is_due = False
        self._first_steps = FirstSteps(loop, context, _BATCH)
        # Whether coroutines start eagerly; looked at wherever something begins.
        self._eager = False
        # One bound method for all: of each its own would be one more thing for the garbage collector to go through.
        self._on_done: Final = self._done
        self._says_asyncio = False
        if owns_loop:
            self._honour_factories()

    # --- what is there ------------------------------------------------------------------------------------------------

    def waited_for(self) -> list[Task[Any]]:
        """The started, unfinished work that `flush` and the drain wait for. From any thread, for a look."""
        first = self.begun()
        begun = [first] if first is not None and first._kind is WORK and first not in self.timers else []
        # No task twice: one that was in its first step may be held by now.
        return list(dict.fromkeys([*begun, *list(self.running.values()), *list(self.in_threads.values())]))

    def left(self, rank: int) -> list[Any]:
        """What runs the work up to *rank* that is begun and not done: asyncio's tasks, and calls in worker threads."""
        held = [*self.running.items(), *list(self.in_threads.items())]
        return [key for key, task in held if rank_of(task) <= rank]

    def is_done(self, rank: int) -> bool:
        """Tell whether there is no work up to *rank*, started or not."""
        waiting = map(task_in, self.inbox.waiting())
        return not self.left(rank) and not any(task is not None and rank_of(task) <= rank for task in waiting)

    def begun(self) -> Task[Any] | None:
        """What is in its first step, if anything. From any thread, for a look."""
        task = self.beginning
        if task is not None and task._age() is None:
            # Noted only where somebody looks.
            task._since = self._now
        return task

    def is_quiet(self) -> bool:
        """Tell whether there is nothing that the drain waits for, started or not."""
        return not self.running and not self.in_threads and not self.inbox

    def is_idle(self) -> bool:
        """Tell whether there is nothing at all, tasks that were made without the runtime included."""
        return (
            self.is_quiet()
            and not self.daemons
            and not self.timers
            and not self.has_open_generators()
            and asyncio.all_tasks(self.loop) <= self.leftovers.helpers
        )

    def has_open_generators(self) -> bool:
        """Tell whether an async generator waits to be closed, as far as the loop lets that be seen: uvloop does not."""
        return bool(_cpython.open_generators(self.loop))

    def unfinished(self) -> list[Task[Any]]:
        """All started work that is not done. From any thread, for a look."""
        first = self.begun()
        held = [*list(self.running.values()), *list(self.daemons.values()), *list(self.timers)]
        held += list(self.in_threads.values())
        return held if first is None or first._kind is KEEPER else list(dict.fromkeys([first, *held]))

    def ending(self) -> list[Task[Any]]:
        """What the drain does not wait for, and was asked to end. From any thread, for a look."""
        held = [*list(self.daemons.items()), *list(self.keepers.items())]
        return [task for runner, task in held if is_asked(runner)]

    def opened(self, runner: asyncio.Future[Any]) -> None:
        """Note that a keeper has opened what it keeps: it is ended before all that were opened earlier."""
        task = self.keepers.pop(runner, None)
        if task is not None:
            self.keepers[runner] = task

    def is_bare(self, runner: asyncio.Future[Any]) -> bool:
        """Tell whether *runner* was made without the runtime."""
        return runner not in self.running and runner not in self.daemons and runner not in self.keepers

    def is_bereft(self) -> bool:
        """Tell whether the current task is one that may not open what the end closes."""
        runner = asyncio.current_task(self.loop)
        return self.leftovers.hushed and runner is not None and self.beginning is None and self.is_bare(runner)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _honour_factories(self) -> None:
        """Have a batch end where a task factory is set: what starts after that is for it to make."""
        set_factory = self.loop.set_task_factory

        def set_task_factory(factory: Any) -> None:
            set_factory(factory)
            self._until = 0.0

        with suppress(AttributeError):
            # On the instance (`method-assign`), but for a loop with slots: there from the next batch on. To ask the loop before each
            # coroutine would cost 50 ns.
            self.loop.set_task_factory = set_task_factory  # type: ignore[method-assign]

    def empty(self) -> None:
        """Start all that was delivered, or as much as fits into a batch; then the loop goes round before the rest."""
        if self._next_is_due:
            # A spare wake-up: with this there would be two batches a turn.
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
            self._first_steps.begin()
        ticks = time.perf_counter
        self._until = ticks() + _BATCH
        heeds_marks = self.heeds_marks
        try:
            while True:
                try:
                    item = take()
                except IndexError:
                    if inbox.rest():
                        self._first_steps.end()
                        break
                    continue
                if type(item) is not Task:
                    # A control item: reports first, so that a flush that is done has nothing left to say.
                    if self.failures:
                        self.failures.tell_unheld()
                    item()
                else:
                    # In this order: to `stats()`, what was taken and is in none of the tables is finished.
                    self.beginning = item
                    tally.taken += 1
                    if heeds_marks and rank_of(item):
                        tally.count("marked")
                    begin(False)
                if ticks() > self._until:
                    # The token stays held: this is the look that is due.
                    self._next_batch_soon()
                    break
        except BaseException:
            # Of a control item: the rest must still be started.
            self._next_batch_soon()
            raise
        finally:
            # As in `_begin`.
            item = None
        if self.failures:
            self.failures.tell_unheld()

    def _next_batch_soon(self) -> None:
        self._first_steps.end()
        self._next_is_due = True
        self.loop.call_soon(self._next_batch, context=self._context)

    def _next_batch(self) -> None:
        self._next_is_due = False
        self.empty()

    def _look_around(self) -> None:
        """Note what holds for all that begins in this call of the loop's."""
        self._now = time.monotonic()
        self._eager = _EAGER and self.loop.get_task_factory() is None

    def _begin(self, or_async: bool) -> None:
        """
        Take the first step of `beginning`: what ends with it is settled, what goes on is held. *or_async*: a call may return what is awaited.

        A failure's traceback refers to the frames below it: this one, and those that have called it. One that still referred to the task
        would keep the handle alive, and its failure would be told not at once, but when the garbage collector comes by. So the task is
        handed over in `beginning`, and let go here, once for all ends.
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
                # The function has run in the context, so what it has returned goes on in it.
                task._work, task._args = as_coroutine(value, self.loop), None
            coro, name = task._work, task._name
            if name is None:
                name = task._name = coro.__qualname__
            if self._eager:
                # Runs the coroutine up to its first suspension, here and now: what never suspends costs no turn of the loop. (The
                # argument is new in 3.12: `call-arg`.)
                runner = _AsyncTask(coro, loop=self.loop, name=name, context=task._context, eager_start=True)  # type: ignore[call-arg]
            else:
                runner = self.leftovers.make_task(coro, name=name, context=task._context)
                if not asyncio.isfuture(runner):
                    raise TypeError(f"The task factory of the loop returned {runner!r}, which is not a task.")
            if runner.done():
                self.beginning = None
                task._settle_from(runner)
                return
            # First, because a task of the user's factory may refuse.
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
            # An eager start lets SystemExit and KeyboardInterrupt out of the constructor: there is no asyncio task to settle from.
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
                # Settled, and so counted, before it leaves: see `beginning`.
                held[runner]._settle_from(runner)
                held.pop(runner, None)

    # --- where nothing starts eagerly: up to 3.11, and with a task factory of the user's -------------------------------

    def _begin_in_turn(self, or_async: bool) -> None:
        """Begin a coroutine, whose first step comes in the loop's next turn; and a function too, if one waits for that: in order."""
        task: Any = self.beginning
        if task._args is not None and self._first_steps.waiting and task not in self.cancelled_early:
            turn: asyncio.Future[Any] = self.loop.create_future()
            self.running[turn] = task
            self.beginning = None
            self.loop.call_soon(self._begin_now, turn, context=self._context)
        else:
            steps = task._args is None
            # As in `_begin`.
            del task
            self._begin(or_async)
            if not steps:
                return
        if self._first_steps.add():
            self._until = 0.0

    def _begin_now(self, turn: asyncio.Future[Any]) -> None:
        self.beginning = self.running[turn]
        del self.running[turn]
        if not turn.done():
            # After this callback, whoever waits for it goes on.
            turn.set_result(None)
        self._look_around()
        self._begin(False)
        if self.failures:
            self.failures.tell_unheld()

    # --- later --------------------------------------------------------------------------------------------------------

    def schedule(self, task: Task[Any], when: float) -> None:
        """Call a task's function at *when*, by the runtime's clock."""
        self._wait_until(when, task)
        # After that, as in `empty`.
        self._tally.taken += 1

    def _wait_until(self, when: float, task: Task[Any], more: float = 0.0) -> None:
        # Relative, because uvloop's clock is not the runtime's.
        delay = max(0.0, when - self._clock()) + more
        self.timers[task] = self.loop.call_later(delay, self._due, when, task, context=self._context)

    def _due(self, when: float, task: Task[Any]) -> None:
        # uvloop counts in whole milliseconds, from the one that has begun.
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
            # In hand all the while.
            self.beginning = task
            self.timers.pop(task).cancel()
            self.cancelled_early[task] = args
            self.end_unstarted(task)

    def end_unstarted(self, task: Task[Any]) -> None:
        """End, as cancelled, what was taken from the inbox and will not be started."""
        task._end_cancelled(self.cancelled_early.pop(task, ()))
        # After that: see there.
        self.beginning = None

    def end_untaken(self, task: Task[Any]) -> None:
        """End, as cancelled, what the end of the life has taken from the inbox instead of this."""
        task._end_unstarted(*self.cancelled_early.pop(task, ()))

    def end_turns(self) -> bool:
        """Have no turn of `every` begin any more; True if any is under way, which from now on is work to be waited for."""
        under_way = False
        for runner, task in list(self.daemons.items()):
            turns = turns_of(runner)
            if turns is not None and not turns.daemon and turns.begin_no_more():
                self.running[runner] = self.daemons.pop(runner)
                task._kind = WORK
                under_way = True
        return under_way

    def cancel_timers(self) -> None:
        """Cancel what is not due yet, without a word."""
        for task in list(self.timers):
            self.cancel(task, None)

    def is_known(self, error: BaseException) -> bool:
        """Tell whether *error*, which left through the loop, is the failure of a task that is about to be settled."""
        return any(
            runner.done() and not runner.cancelled() and runner.exception() is error
            for runner in [*self.running, *self.daemons, *self.keepers]
        )


def is_asked(runner: asyncio.Future[Any]) -> bool:
    """Tell whether *runner* was asked to end: a second time would interrupt its clean-up."""
    return isinstance(runner, asyncio.Task) and runner.cancelling() > 0
