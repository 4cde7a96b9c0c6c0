"""
Holds the tasks that work makes with asyncio's own means (`create_task`, a `TaskGroup`), for which the end waits a bounded time.

What is guaranteed. Each task is referred to from its creation until it is done; asyncio alone refers to its tasks weakly. It is in one of
these tables, in the order of creation:

    left        tasks that work has left: the drain waits for the young ones
    clean_ups   the closing of async generators, which asyncio starts when one is dropped before its end
    late.tasks  tasks that the drain does not wait for, or no longer
    others      tasks that a daemon has made
    and in the `Belongings` of a resource: tasks made while it opened, such as its client's reader and heartbeat

The owner of a task is in its context (`belongs_to`), and so it is also the owner of all that is submitted or made in that context. `go` pays
nothing for that: it copies its caller's context anyway, and the drain reads the owner from the copy.

How it works. `create_task` is replaced on the loop's instance. (A task factory was tried: a user who starts tasks eagerly needs one, users see
it, and theirs replaces it.) A callback for each task would cost 1.2 µs, and most tasks are done in a moment. So new tasks go to a list, and
only those that are left some 20 ms later get a callback. Tasks made by calling `asyncio.Task` directly are not seen here.

All of it is for the loop's thread. Other threads look at copies.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final

from .._cpython import callbacks_of, ended_by, gathered, members_of, transport_of, waiter_of
from .._report import frames_of, shown
from .._threads import is_running_thread, time
from .task import HANDOVER, WORK, Task, belongs_to

# How long new tasks are left alone, in seconds.
_NEW: Final = 0.02

# How many resources there may be at least before closed ones are looked for.
_FEW: Final = 16


class Belongings:
    """The owner of tasks: a daemon, a resource, or what the end no longer waits for."""

    __slots__ = ("over", "tasks")

    def __init__(self, over: bool = False) -> None:
        self.tasks: dict[asyncio.Future[Any], float] = {}
        # Whether the owner was asked to end; the end then waits for its submissions as for those of daemons.
        self.over = over


# The owner of what daemons and the turns of `every` submit.
OF_DAEMONS: Final = Belongings(over=True)

# The owner of what an iteration submits: an iteration that goes on in a daemon thread holds up the end no more than a daemon does. But
# tasks that its source leaves are leftovers, because the caller has asked for the iteration.
OF_CALLERS: Final = Belongings(over=True)

# The order in which the end waits: for work, then for what daemons have submitted. It does not wait for the rest.
UNMARKED: Final = 0
OF_WHAT_ENDED: Final = 1
OF_OTHERS: Final = 2


def rank_of(task: Task[Any]) -> int:
    """Return when the end waits for a piece of work, by who submitted it. From any thread."""
    context = task._context
    owner = None if context is None else context.get(belongs_to)
    return UNMARKED if owner is None else OF_WHAT_ENDED if owner.over else OF_OTHERS


def is_clean_up(runner: asyncio.Future[Any]) -> bool:
    """Tell whether a task closes an async generator."""
    # The type of what `aclose()` returns has no public name.
    return isinstance(runner, asyncio.Task) and type(runner.get_coro()).__name__ == "async_generator_athrow"


def title_of(task: asyncio.Task[Any]) -> str:
    """Return the name that was given to a task; else that of its coroutine, because asyncio numbers unnamed tasks. For a person to read."""
    name = task.get_name()
    return shown(name if not name.startswith("Task-") else getattr(task.get_coro(), "__qualname__", name))


class Leftovers:
    """The tasks on a loop besides the work of its life. For the loop's thread."""

    # The loop's own function, from `begin` on.
    make_task: Callable[..., Any]

    def __init__(self) -> None:
        self.left: dict[asyncio.Future[Any], float] = {}
        self.clean_ups: dict[asyncio.Future[Any], float] = {}
        self.others: dict[asyncio.Future[Any], float] = {}
        self.late = Belongings()
        # The owner of tasks whose daemons have ended; it has no table of its own.
        self.orphans = Belongings()
        # The late tasks that were waited for in vain; and whether the time for leftovers is over.
        self.in_vain: set[asyncio.Future[Any]] = set()
        self.time_over = False
        # The belongings of resources, by the task that keeps the resource open.
        self.belongings: dict[asyncio.Future[Any], Belongings] = {}
        # How many there may be before those of closed resources are removed.
        self._full = _FEW
        # The runtime's own tasks, which wait for the others.
        self.helpers: set[asyncio.Future[Any]] = set()
        # True while resources are closed: errors of the tasks here are not reported then.
        self.hushed = False
        self._new: list[Any] = []
        self._new_of_others: list[tuple[Any, Belongings]] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, context: Context, owns_loop: bool) -> None:
        """See the tasks that are made on *loop* from now on."""
        self._loop, self._context = loop, context
        self.make_task = loop.create_task
        if owns_loop:
            with suppress(AttributeError):
                # A loop with slots refuses: its leftovers are not seen here.
                loop.create_task = self._hooked()  # type: ignore[method-assign]

    def help(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run *coro* in a task of the runtime's own: a plain asyncio task, whatever task factory the user has set."""
        helper = asyncio.Task(coro, loop=self._loop, context=Context())
        self.helpers.add(helper)
        helper.add_done_callback(self.helpers.discard, context=self._context)
        return helper

    def _hooked(self) -> Any:
        make, new, append, owner_of = self.make_task, self._new, self._new.append, belongs_to.get

        def create_task(coro: Any, **options: Any) -> Any:
            task = make(coro, **options) if options else make(coro)
            if (owner := owner_of(None)) is not None:
                self._new_of_others.append((task, owner))
                self._look_soon()
                return task
            if not new:
                self._look_soon()
            append(task)
            return task

        return create_task

    def _look_soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_NEW, self.look, context=self._context)

    def look(self) -> None:
        """Hold the tasks that were made since the last look and are not done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        made = time.monotonic() - _NEW
        new = self._new[:]
        self._new.clear()
        for task in new:
            self._hold(task, self.left, made)
        others, self._new_of_others = self._new_of_others, []
        for task, owner in others:
            self._hold(task, self._table_of(owner), made)

    def _table_of(self, owner: Belongings | None) -> dict[asyncio.Future[Any], float]:
        if owner is None or owner is OF_CALLERS:
            return self.left
        return self.others if owner is OF_DAEMONS or owner is self.orphans else owner.tasks

    def _hold(self, task: asyncio.Future[Any], table: dict[asyncio.Future[Any], float], made: float) -> None:
        if not asyncio.isfuture(task):
            # The user's task factory returned something else.
            return
        if not task.done():
            if is_clean_up(task):
                table = self.clean_ups
            table[task] = made
            if self.time_over and table is self.late.tasks:
                # A late task that goes on in another one is waited for in vain as well.
                self.in_vain.add(task)
            task.add_done_callback(partial(self._gone, table), context=self._context)
        else:
            self._hush(task)

    def _gone(self, table: dict[asyncio.Future[Any], float], task: asyncio.Future[Any]) -> None:
        # The task may have become late meanwhile.
        if table.pop(task, None) is None:
            self.late.tasks.pop(task, None)
            self.in_vain.discard(task)
        self._hush(task)

    def _hush(self, task: asyncio.Future[Any]) -> None:
        if self.hushed and not task.cancelled():
            # Retrieving it keeps asyncio from reporting it.
            task.exception()

    def keep(self, keeper: asyncio.Future[Any]) -> None:
        """Make *keeper*, which keeps a resource open, the owner of all that is made in the current context from now on."""
        if len(self.belongings) >= self._full:
            # Not each time: to open many would take quadratic time.
            self.belongings = {it: owner for it, owner in self.belongings.items() if owner.tasks or not it.done()}
            self._full = max(_FEW, 2 * len(self.belongings))
        owner = self.belongings[keeper] = Belongings()
        belongs_to.set(owner)

    def new(self) -> list[asyncio.Future[Any]]:
        """Return the tasks that work has made since the last look. A snapshot, from any thread."""
        return [task for task in list(self._new) if asyncio.isfuture(task) and not task.done()]

    def unfinished(self) -> list[Any]:
        """Return the tasks that the drain waits for once the work is done. A snapshot, from any thread."""
        return [*self.left, *self.clean_ups]

    def all(self) -> list[asyncio.Future[Any]]:
        """Return all tasks held here. A snapshot, from any thread."""
        belongings = [owner.tasks for owner in list(self.belongings.values())]
        tables = [self.left, self.others, self.late.tasks, self.clean_ups, *belongings]
        return [task for table in tables for task in list(table)]

    def count(self, since: float) -> int:
        """Count the tasks that the end would have to wait for now, with *since* as the limit of youth. A snapshot, from any thread."""
        young = sum(made >= since for made in list(self.left.values()))
        return young + len(self.new()) + len(self.clean_ups)

    # --- at the end ---------------------------------------------------------------------------------------------------

    def young(self, since: float) -> list[asyncio.Future[Any]]:
        """Return the tasks that were left after *since*, by `time.monotonic`, and are not late."""
        self.look()
        return [task for task, made in self.left.items() if made >= since]

    def old(self, since: float) -> list[asyncio.Future[Any]]:
        """Return the tasks that were left before *since*."""
        self.look()
        return [task for task, made in self.left.items() if made < since]

    def give_up(self, tasks: Sequence[asyncio.Future[Any]], in_vain: bool = False, but: Iterable[Any] = ()) -> None:
        """Stop waiting for *tasks*, but for those that the work *but* waits for, and for what they submit from now on."""
        awaited_by_work = {id(each) for each, _ in chain_of(but if tasks else ())}
        for task in tasks:
            if id(task) not in awaited_by_work:
                self.late.tasks[task] = self.left.pop(task, 0.0)
                if in_vain:
                    self.in_vain.add(task)
                _give(task, self.late)

    def orphan_others(self) -> None:
        """Wait no longer for what the tasks of daemons submit from now on, because the daemons have ended."""
        self.look()
        for task in self.others:
            _give(task, self.orphans)

    def is_late(self, task: Task[Any]) -> bool:
        """Tell whether a piece of work that is not done was submitted by a task that is late."""
        return task._context is not None and task._context.get(belongs_to) is self.late


# --- who waits for what -----------------------------------------------------------------------------------------------

_OF_CHILD_PROCESSES: Final = {"SubprocessStreamProtocol", "ReadSubprocessPipeProto", "WriteSubprocessPipeProto"}


def awaited(thing: Any) -> list[Any]:
    """
    Return what a handle, a task or a future waits for: handles, tasks and futures; timers; and what brings an outcome from outside the loop,
    such as a thread, a call in a worker thread, or the stream of a child process.

    Empty if nothing of that is to be seen, and for a task that runs or is about to. From any thread.
    """
    if isinstance(thing, Task):
        return [thing._work]
    if isinstance(thing, asyncio.Task):
        waiter = waiter_of(thing)
        if waiter is None:
            return []
        return [waiter] if isinstance(waiter, asyncio.Task) else _seen_in(thing) or [waiter]
    if not asyncio.isfuture(thing):
        # A thread, a frame, a timer.
        return []
    handle, source = getattr(thing, "_task", None), getattr(thing, "comes_from", None)
    if isinstance(handle, Task):
        # The bridge to a task of a runtime.
        return [handle]
    if asyncio.isfuture(source) or is_running_thread(source):
        # The next item of an iteration.
        return [source]
    parts = gathered(thing) or map(ended_by, callbacks_of(thing))
    return [part for part in parts if part is not None and not part.done()]


def _seen_in(task: asyncio.Task[Any]) -> list[Any]:
    """Return what a task's frames say that it waits for."""
    frame: Any = None
    for frame in frames_of(task.get_coro()):
        if _is_of_child_process(frame):
            return [frame, waiter_of(task)]
    found = {} if frame is None else frame.f_locals
    if threads := [each for each in found.values() if is_running_thread(each)]:
        # A library's own, to which the task has handed work.
        return [*threads, waiter_of(task)]
    if frame is None or not str(frame.f_globals.get("__name__")).startswith("asyncio."):
        # Names of a user's own, which say nothing.
        return []
    # The timers of `asyncio.sleep` and `asyncio.wait`; the futures of `wait`, or the members of a task group.
    parts = [found[name] for name in ("h", "timeout_handle") if hasattr(found.get(name), "when")]
    for others in (found.get("fs"), members_of(found.get("self"))):
        # A copy, because this may be another thread.
        futures = list(others) if isinstance(others, (set, list)) else []
        if all(map(asyncio.isfuture, futures)):
            parts += [future for future in futures if not future.done()]
    return parts


def chain_of(things: Iterable[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield *things* and all that they wait for, directly or not, each once, and with what that waits for itself."""
    # With the things, so that no other gets the same id meanwhile.
    seen: dict[int, Any] = {}
    left = list(things)
    while left:
        thing = left.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            parts = awaited(thing)
            yield thing, parts
            left += parts


def comes(
    thing: Any,
    until: float,
    work: Container[Any],
    timers: Mapping[Task[Any], asyncio.TimerHandle],
    seen: set[int] | None = None,
) -> bool:
    """
    Tell whether *thing* is known to be done by *until*, by the loop's clock.

    *work* is waited for in any case; *timers* are the calls that are not due.
    """
    if isinstance(thing, Task):
        due = timers.get(thing)
        return thing.done() or (thing._kind in (WORK, HANDOVER) if due is None else due.when() <= until)
    if thing.done() or thing in work:
        return True
    seen = set() if seen is None else seen
    if id(thing) in seen:
        # A circle of tasks that wait for each other.
        return False
    seen.add(id(thing))
    if not (parts := awaited(thing)):
        # A task that is about to run; or a future that nobody is known to resolve.
        return isinstance(thing, asyncio.Task)
    inside: list[Any] = []
    outside: list[Any] = []
    for part in parts:
        (inside if asyncio.isfuture(part) or isinstance(part, Task) else outside).append(part)
    if any(part.when() <= until if hasattr(part, "when") else True for part in outside):
        return True
    return bool(inside) and all(comes(part, until, work, timers, seen) for part in inside)


def _is_of_child_process(frame: Any) -> bool:
    """Tell whether a frame waits for a child process, or for data of its pipes."""
    module = frame.f_globals.get("__name__")
    if module != "asyncio.streams":
        return bool(module == "asyncio.subprocess")
    stream: Any = frame.f_locals.get("self")
    transport: Any = transport_of(stream)
    # uvloop has its own classes of the same names.
    protocol = transport.get_protocol() if hasattr(transport, "get_protocol") else stream
    return type(protocol).__name__ in _OF_CHILD_PROCESSES


def _give(task: asyncio.Future[Any], owner: Belongings) -> None:
    """Make *owner* the owner of what *task* makes and submits from now on."""
    context = context_of(task)
    if context is not None:
        with suppress(RuntimeError):
            # Another task that shares the context is running in it.
            context.run(belongs_to.set, owner)


def context_of(runner: asyncio.Future[Any]) -> Context | None:
    """Return the context that a task runs in."""
    if sys.version_info >= (3, 12):
        return runner.get_context() if isinstance(runner, asyncio.Task) else None
    # 3.11 does not show it. The task's own context comes before those of its callbacks.
    return next((thing for thing in gc.get_referents(runner) if type(thing) is Context), None)
