"""
Describes the unfinished work of a life: tasks in groups, where they wait, and the tasks that they have started. For people and programs.

From any thread, even while the loop is blocked: it reads the current state and asks nothing of the loop. Tasks are compared by code and
offset alone; lines and names are looked up only for the groups that are shown, so that 100,000 tasks take 0.3 s.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

from .. import _cpython
from .._life.workers import ThreadWork
from .._report import CAN_LOOK_AT_WHAT_RUNS, Site, frames_of_threads, innermost, shown
from .._threads import time
from .._work.leftovers import awaited
from .._work.task import Task

if TYPE_CHECKING:
    from .._life.life import Life

# Nobody reads more; the rest is counted.
MOST_GROUPS: Final = 40
# Tasks of a group that are listed one by one.
_MOST_TASKS: Final = 10
# Different names in a group's title.
_MOST_NAMES: Final = 3
# How far chains of waiting tasks are followed: a circle has no end.
_DEEPEST: Final = 8

# A task with the key of its group, its name, and its age in seconds if that is known.
_Keyed = tuple[tuple[Any, ...], Task[Any] | asyncio.Task[Any], str, float | None]

# The owners, as far as they are known, of tasks that were started with asyncio's own means.
_Whose = Mapping[Any, str]
_NOBODY: Final[_Whose] = {}


class Group:
    """Tasks of the same kind that were submitted at the same place and wait at the same place, whatever their names."""

    __slots__ = ("_names", "count", "example", "oldest", "tasks")

    def __init__(self, example: Task[Any] | asyncio.Task[Any]) -> None:
        self.example = example
        self.count = 0
        self.oldest: float | None = None
        self.tasks: list[dict[str, Any]] = []
        self._names: list[str] = []

    @property
    def name(self) -> str:
        """The name, or the first few if the names differ."""
        names = [shown(name) for name in self._names[:_MOST_NAMES]]
        return ", ".join([*names, "…"] if len(self._names) > _MOST_NAMES else names)

    def add(self, name: str, age: float | None) -> None:
        self.count += 1
        if len(self._names) <= _MOST_NAMES and name not in self._names:
            self._names.append(name)
        if age is not None and (self.oldest is None or age > self.oldest):
            self.oldest = age
        if len(self.tasks) < _MOST_TASKS:
            self.tasks.append({"name": shown(name), "age": age})


def look(name: str, life: Life, most: int = MOST_GROUPS) -> dict[str, Any]:
    """
    Return the unfinished work, in a form that `json` can write.

    Args:
        name: The name of the runtime.
        life: The life to look at.
        most: How many groups to describe; the rest is counted.
    """
    tasks = life.unfinished()
    ours, others = _asyncio_tasks(life)
    children, strays = _by_parent(ours, others)
    groups = _grouped(_keyed(tasks))
    whose = _whose(life)
    stray_groups = _grouped(_keyed_asyncio(strays, whose))
    return {
        "name": shown(name),
        "unfinished": len(tasks),
        "groups": [_described(group, children) for group in groups[:most]],
        "more_groups": len(groups[most:]),
        "more_tasks": sum(group.count for group in groups[most:]),
        "asyncio_tasks": [_described(group, children, whose=whose) for group in stray_groups[:most]],
        "more_asyncio_tasks": sum(group.count for group in stray_groups[most:]),
    }


def _grouped(keyed: Iterable[_Keyed]) -> list[Group]:
    """Group tasks of equal keys. The largest group comes first; of equally large ones, that with the oldest task."""
    found: dict[tuple[Any, ...], Group] = {}
    for key, task, name, age in keyed:
        group = found.get(key)
        if group is None:
            group = found[key] = Group(task)
        group.add(name, age)
    return sorted(found.values(), key=lambda group: (-group.count, -(group.oldest or 0)))


def _keyed(tasks: Iterable[Task[Any]]) -> Iterator[_Keyed]:
    now = time.monotonic()
    threads = frames_of_threads() if CAN_LOOK_AT_WHAT_RUNS else {}
    for task in tasks:
        work = task._work
        if isinstance(work, asyncio.Task):
            place = _place(work.get_coro())
        else:
            # A call in a worker thread, a call that is not due, or a coroutine that is not started or takes its first step.
            name = getattr(work, "__qualname__", None)
            place = (type(work), task._is_started(), name, *_stack_of(work, threads))
        since: float | None = getattr(task, "_since", None)
        key = task._kind, task._code, task._lasti, place
        yield key, task, task._name or task.get_name(), None if since is None else now - since


def _keyed_asyncio(tasks: Iterable[asyncio.Task[Any]], whose: _Whose = _NOBODY) -> Iterator[_Keyed]:
    for task in tasks:
        title = _title(task)
        yield (_place(task.get_coro()) or (title,), whose.get(task)), task, title, None


def _title(task: asyncio.Task[Any]) -> str:
    """Return the name that was given to a task; else that of its coroutine, because asyncio numbers unnamed tasks."""
    name = task.get_name()
    return name if not name.startswith("Task-") else getattr(task.get_coro(), "__qualname__", name)


# --- who waits for whom -----------------------------------------------------------------------------------------------


def _place(coro: Any) -> tuple[Any, ...]:
    """Return code and offset, in turn, of each frame of a suspended coroutine, the outermost first."""
    found: list[Any] = []
    while coro is not None:
        kind = type(coro)
        if kind is CoroutineType:
            frame, coro = coro.cr_frame, coro.cr_await
        elif kind is GeneratorType:
            frame, coro = coro.gi_frame, coro.gi_yieldfrom
        else:
            # An async generator or a Cython coroutine; or a future, which has no frame.
            frame = getattr(coro, "ag_frame", None) or getattr(coro, "cr_frame", None)
            coro = getattr(coro, "ag_await", None) or getattr(coro, "cr_await", None)
        if frame is not None and frame.f_code is not _cpython.AWAITS_FUTURE:
            found += frame.f_code, frame.f_lasti
    return tuple(found)


def _stack_of(work: Any, threads: Mapping[int, FrameType] | None = None) -> tuple[Any, ...]:
    """Return code and offset of each frame of a call in a worker thread, the outermost first; empty for all other work."""
    ident = getattr(work, "ident", None)
    if ident is None or not CAN_LOOK_AT_WHAT_RUNS:
        return ()
    frame = (frames_of_threads() if threads is None else threads).get(ident)
    found: list[Any] = []
    while frame is not None:
        # The frames outside the call are omniloop's, and the same for all.
        if frame.f_code is ThreadWork.make.__code__:
            return tuple(found)
        found = [frame.f_code, frame.f_lasti, *found]
        frame = frame.f_back
    # The thread has just returned from the call.
    return ()


def _awaited(thing: Any) -> Iterator[Any]:
    """Yield the tasks, asyncio's or omniloop's, that a task waits for at the moment, through futures of any kind."""
    # Most wait for a plain future, of a socket or a timer.
    for part in () if type(_cpython.waiter_of(thing)) is asyncio.Future else awaited(thing):
        if isinstance(part, (asyncio.Task, Task)):
            yield part
        else:
            yield from _awaited(part)


def _asyncio_tasks(life: Life) -> tuple[list[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    """Return the asyncio tasks that run submitted work, and the others on the same loop."""
    ledger = life._ledger
    if ledger is None or ledger.loop.is_closed():
        return [], set()
    held = [*list(ledger.running), *list(ledger.daemons), *list(ledger.keepers)]
    ours = [runner for runner in held if isinstance(runner, asyncio.Task)]
    return ours, asyncio.all_tasks(ledger.loop).difference(ours, ledger.leftovers.helpers)


def _whose(life: Life) -> dict[asyncio.Future[Any], str]:
    """Return the owners of the tasks that were started with asyncio's own means."""
    if life._ledger is None:
        return {}
    leftovers = life._ledger.leftovers
    found = dict.fromkeys([*leftovers.new(), *list(leftovers.left), *list(leftovers.late.tasks)], "left by work")
    found |= dict.fromkeys(list(leftovers.others), "a daemon's")
    found |= dict.fromkeys(
        [task for it in list(leftovers.belongings.values()) for task in list(it.tasks)], "a resource's"
    )
    return found | dict.fromkeys(list(leftovers.clean_ups), "the closing of an async generator")


def _by_parent(
    ours: list[asyncio.Task[Any]], others: set[asyncio.Task[Any]]
) -> tuple[dict[Any, list[asyncio.Task[Any]]], list[asyncio.Task[Any]]]:
    """
    Sort the tasks that were started with asyncio's own means by parent: the task that waits for them, or whose `asyncio.TaskGroup` they are
    in. Returns them by parent, and those without a known parent.
    """
    children: dict[Any, list[asyncio.Task[Any]]] = {}
    if not others:
        return children, []
    parents: dict[Any, Any] = {}
    for runner in [*ours, *others]:
        for task in _awaited(runner):
            parents.setdefault(task, runner)
    strays = []
    for task in others:
        # A task that several others wait for is shown under the first of them.
        parent = parents.get(task) or _group_parent(task)
        if parent is None or parent.done():
            strays.append(task)
        else:
            children.setdefault(parent, []).append(task)
    return children, strays


def _group_parent(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    for callback in _cpython.callbacks_of(task):
        group = getattr(callback, "__self__", None)
        if isinstance(group, asyncio.TaskGroup):
            parent: asyncio.Task[Any] | None = _cpython.parent_of(group)
            return parent
    return None


# --- for programs -----------------------------------------------------------------------------------------------------


def _described(
    group: Group, children: dict[Any, list[asyncio.Task[Any]]], depth: int = 0, whose: _Whose = _NOBODY
) -> dict[str, Any]:
    task = group.example
    runner: Any = task
    work: Any = None
    if isinstance(task, Task):
        work = task._work
        runner = work if isinstance(work, asyncio.Task) else None
        told: dict[str, Any] = {"kind": task._kind, "oldest": group.oldest, "submitted": _site(task._site())}
        place = task._place()
    else:
        told = {"whose": whose.get(task)}
        place = f"waits at {innermost(task.get_coro())}"
    started = _grouped(_keyed_asyncio(children.get(runner, ()))) if depth <= _DEEPEST else []
    return {
        "name": group.name,
        **told,
        "count": group.count,
        "place": place,
        "chain": _chain(_stack_of(work) if runner is None else _place(runner.get_coro())),
        "awaits": _waited_for(runner),
        "started": [_described(one, children, depth + 1) for one in started[:MOST_GROUPS]],
        "tasks": group.tasks,
    }


def _chain(place: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [_site(Site(code, lasti)) for code, lasti in zip(place[::2], place[1::2], strict=True)]


def _waited_for(runner: asyncio.Task[Any] | None) -> list[str]:
    """Return the names of what the task waits for, what that waits for in turn, and so on."""
    found: list[str] = []
    seen = {id(runner)}
    while runner is not None and len(found) < _DEEPEST:
        tasks = list(_awaited(runner))
        if not tasks or id(tasks[0]) in seen:
            break
        first = tasks[0]
        seen.add(id(first))
        more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
        found.append(shown(first.get_name() if isinstance(first, Task) else _title(first)) + more)
        runner = first if isinstance(first, asyncio.Task) else None
        if isinstance(first, Task) and isinstance(first._work, asyncio.Task):
            runner = first._work
    return found


def _site(site: Site) -> dict[str, Any]:
    return {"file": shown(site.filename, sys.maxsize), "line": site.lineno, "function": shown(site.function)}


# --- for a person -----------------------------------------------------------------------------------------------------


def as_lines(looked: dict[str, Any]) -> Iterator[str]:
    """Yield the result of `look` as lines of text."""
    yield f"{looked['name']}: {looked['unfinished']} unfinished"
    for group in looked["groups"]:
        yield from _lines(group, "  ")
    if looked["more_tasks"]:
        yield f"  and {looked['more_tasks']} more, in {looked['more_groups']} groups"
    if looked["asyncio_tasks"]:
        count = sum(group["count"] for group in looked["asyncio_tasks"]) + looked["more_asyncio_tasks"]
        yield f"  besides, started with asyncio's own means: {count}"
        for group in looked["asyncio_tasks"]:
            yield from _lines(group, "    ")


def _lines(group: dict[str, Any], indent: str) -> Iterator[str]:
    many = f"{group['count']}x " if group["count"] > 1 else ""
    if "kind" in group:
        kind = " (daemon)" if group["kind"] == "daemon" else ""
        age = group["oldest"]
        since = "" if age is None else f", {'the oldest ' if many else ''}for {age:.1f} s"
        rest = f"{kind}{since}, submitted at {line_of(group['submitted'])}, {group['place']}"
    else:
        rest = f", an asyncio task, {group['place']}" + (f" ({group['whose']})" if group["whose"] else "")
    yield f"{indent}{many}{group['name']}{rest}"
    yield from chain_lines(group, indent + "    ")


def chain_lines(group: dict[str, Any], indent: str) -> Iterator[str]:
    if len(group["chain"]) > 1 or not group["place"].startswith("waits at"):
        # The outermost comes first, as in a traceback.
        for site in group["chain"]:
            yield indent + line_of(site)
    for name in group["awaits"]:
        yield f"{indent}waits for {name}"
    for child in group["started"]:
        yield from _lines(child, indent)


def line_of(site: dict[str, Any]) -> str:
    return f'File "{site["file"]}", line {site["line"]}, in {site["function"]}'
