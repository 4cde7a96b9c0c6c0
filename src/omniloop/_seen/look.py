"""
Describes the unfinished work of a life: tasks in groups, where they wait, and the tasks that they have started. For people and programs.

From any thread, even while the loop is blocked: it reads the current state and asks nothing of the loop. Tasks are compared by code and
offset alone; lines and names are looked up only for the groups that are shown, so that 100,000 tasks take 0.3 s.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

from .. import _cpython
from .._life.workers import ThreadWork
from .._report import CAN_LOOK_AT_WHAT_RUNS, Site, frames_of_threads, innermost, shown
from .._threads import time
from .._work.leftovers import awaited, title_of
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

# A place where tasks wait: code and offset, in turn, of each frame, the outermost first.
_Place = tuple[Any, ...]

# A task with the key of its group, its place, its name, and its age in seconds if that is known.
_Keyed = tuple[tuple[Any, ...], _Place, Task[Any] | asyncio.Task[Any], str, float | None]

# Tasks of the same kind that were submitted at the same place and wait at the same place, whatever their names.
_Group = list[_Keyed]

# The owners, as far as they are known, of tasks that were started with asyncio's own means.
_Whose = Mapping[Any, str]
_NOBODY: Final[_Whose] = {}


def look(name: str, life: Life, most: int = MOST_GROUPS) -> dict[str, Any]:
    """
    Return the unfinished work, in a form that `json` can write.

    Args:
        name: The name of the runtime.
        life: The life to look at.
        most: How many groups to describe; the rest is counted.
    """
    tasks = life.unfinished()
    children, whose = _by_parent(life), _whose(life)
    groups = _grouped(_keyed(tasks))
    stray_groups = _grouped(_keyed_asyncio(children.pop(None), whose))
    return {
        "name": shown(name),
        "unfinished": len(tasks),
        "groups": [_described(group, children) for group in groups[:most]],
        "more_groups": len(groups[most:]),
        "more_tasks": sum(map(len, groups[most:])),
        "asyncio_tasks": [_described(group, children, whose=whose) for group in stray_groups[:most]],
        "more_asyncio_tasks": sum(map(len, stray_groups[most:])),
    }


def _grouped(keyed: Iterable[_Keyed]) -> list[_Group]:
    """Group tasks of equal keys. The largest group comes first; of equally large ones, that with the oldest task."""
    found: dict[tuple[Any, ...], _Group] = {}
    for one in keyed:
        found.setdefault(one[0], []).append(one)
    return sorted(found.values(), key=lambda group: (-len(group), -(_oldest(group) or 0)))


def _oldest(group: _Group) -> float | None:
    return max((age for *_, age in group if age is not None), default=None)


def _keyed(tasks: Iterable[Task[Any]]) -> Iterator[_Keyed]:
    now = time.monotonic()
    threads = frames_of_threads() if CAN_LOOK_AT_WHAT_RUNS else {}
    for task in tasks:
        work = task._work
        if isinstance(work, asyncio.Task):
            place, state = _place(work.get_coro()), None
        else:
            # A call in a worker thread, a call that is not due, or a coroutine that is not started or takes its first step.
            place = _stack(threads.get(getattr(work, "ident", None) or 0))
            state = type(work), task._is_started(), getattr(work, "__qualname__", None)
        since: float | None = getattr(task, "_since", None)
        key = task._kind, task._code, task._lasti, state, place
        yield key, place, task, task._name or task.get_name(), None if since is None else now - since


def _keyed_asyncio(tasks: Iterable[asyncio.Task[Any]], whose: _Whose = _NOBODY) -> Iterator[_Keyed]:
    for task in tasks:
        title, place = title_of(task), _place(task.get_coro())
        yield (place or title, whose.get(task)), place, task, title, None


# --- who waits for whom -----------------------------------------------------------------------------------------------


def _place(coro: Any) -> _Place:
    """Return where a suspended coroutine waits."""
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


def _stack(frame: FrameType | None) -> _Place:
    """Return the place of a call in a worker thread, given the innermost frame of the thread; empty if it has just returned."""
    found: list[Any] = []
    # The frames outside the call are omniloop's, and the same for all.
    while frame is not None and frame.f_code is not ThreadWork.make.__code__:
        found = [frame.f_code, frame.f_lasti, *found]
        frame = frame.f_back
    return tuple(found) if frame is not None else ()


def _awaited(thing: Any) -> Iterator[Any]:
    """Yield the tasks, asyncio's or omniloop's, that a task waits for at the moment, through futures of any kind."""
    # Most wait for a plain future, of a socket or a timer.
    for part in () if type(_cpython.waiter_of(thing)) is asyncio.Future else awaited(thing):
        if isinstance(part, (asyncio.Task, Task)):
            yield part
        else:
            yield from _awaited(part)


def _whose(life: Life) -> dict[asyncio.Future[Any], str]:
    """Return the owners of the tasks that were started with asyncio's own means."""
    leftovers = life.ledger.leftovers
    found = dict.fromkeys([*leftovers.new(), *list(leftovers.left), *list(leftovers.late.tasks)], "left by work")
    found |= dict.fromkeys(list(leftovers.others), "a daemon's")
    found |= dict.fromkeys(
        [task for it in list(leftovers.belongings.values()) for task in list(it.tasks)], "a resource's"
    )
    return found | dict.fromkeys(list(leftovers.clean_ups), "the closing of an async generator")


def _by_parent(life: Life) -> dict[Any, list[asyncio.Task[Any]]]:
    """
    Return the tasks that were started with asyncio's own means, by parent: the task that waits for them, or whose `asyncio.TaskGroup` they
    are in; under None those without a known one.
    """
    children: dict[Any, list[asyncio.Task[Any]]] = {None: []}
    ledger, loop = life.ledger, life.loop
    if loop is None or loop.is_closed():
        return children
    ours = [*list(ledger.running), *list(ledger.daemons), *list(ledger.keepers)]
    others = asyncio.all_tasks(loop).difference(ours, ledger.leftovers.helpers)
    parents: dict[Any, Any] = {}
    for runner in [*ours, *others] if others else []:
        for task in _awaited(runner):
            # A task that several others wait for is shown under the first of them.
            parents.setdefault(task, runner)
    for task in others:
        parent = parents.get(task) or _group_parent(task)
        children.setdefault(None if parent is None or parent.done() else parent, []).append(task)
    return children


def _group_parent(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    for callback in _cpython.callbacks_of(task):
        group = getattr(callback, "__self__", None)
        if isinstance(group, asyncio.TaskGroup):
            parent: asyncio.Task[Any] | None = _cpython.parent_of(group)
            return parent
    return None


# --- for programs -----------------------------------------------------------------------------------------------------


def _described(
    group: _Group, children: dict[Any, list[asyncio.Task[Any]]], depth: int = 0, whose: _Whose = _NOBODY
) -> dict[str, Any]:
    _, at, task, _, _ = group[0]
    runner = _runner_of(task)
    if isinstance(task, Task):
        told: dict[str, Any] = {"kind": task._kind, "oldest": _oldest(group), "submitted": _site(task._site())}
        place = task._place()
    else:
        told = {"whose": whose.get(task)}
        place = f"waits at {innermost(task.get_coro())}"
    # Only a few are shown: of a hundred thousand names that would take a second.
    names = [shown(name) for name in islice(dict.fromkeys(name for *_, name, _ in group), _MOST_NAMES + 1)]
    started = _grouped(_keyed_asyncio(children.get(runner, ()))) if depth <= _DEEPEST else []
    return {
        "name": ", ".join([*names[:_MOST_NAMES], "…"] if len(names) > _MOST_NAMES else names),
        **told,
        "count": len(group),
        "place": place,
        "chain": [_site(Site(code, lasti)) for code, lasti in zip(at[::2], at[1::2], strict=True)],
        "awaits": _waited_for(runner),
        "started": [_described(one, children, depth + 1) for one in started[:MOST_GROUPS]],
        "tasks": [{"name": shown(name), "age": age} for *_, name, age in group[:_MOST_TASKS]],
    }


def _runner_of(task: Task[Any] | asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """Return the asyncio task that runs *task*, or is it."""
    work = task._work if isinstance(task, Task) else task
    return work if isinstance(work, asyncio.Task) else None


def _waited_for(runner: asyncio.Task[Any] | None) -> list[str]:
    """Return the names of what the task waits for, what that waits for in turn, and so on."""
    found: list[str] = []
    seen = {id(runner)}
    while runner is not None and len(found) < _DEEPEST:
        first, *others = [*_awaited(runner)] or [runner]
        if id(first) in seen:
            break
        seen.add(id(first))
        more = f" and {len(others)} more" if others else ""
        found.append((shown(first.get_name()) if isinstance(first, Task) else title_of(first)) + more)
        runner = _runner_of(first)
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
