"""The meeting of a task with those who wait for it: each of them learns the outcome, whichever comes first, and once."""

from __future__ import annotations

import concurrent.futures
import inspect
import types
from collections.abc import Callable
from typing import Any

from explorer import Copy, Edit, Loop, in_every_order, spawn

from omniloop._work.task import Kind

TASK = "_work.task"

A_CALLBACK_ADDED_WITHOUT_A_LOOK_UNDER_THE_LOCK = Edit(
    TASK,
    "                if meeting.outcome is None:\n                    meeting.callbacks",
    "                if True:\n                    meeting.callbacks",
)


A_MEETING_THAT_DIFFERS_FROM_LOOK_TO_LOOK = (
    Edit(
        TASK,
        "        if not any(type(item) is _Meeting and item.outcome is not None for item in meeting):",
        "        if True:",
    ),
    Edit(
        TASK,
        "return next(item for item in meeting if type(item) is _Meeting and item.outcome is not None)",
        "return late",
    ),
)
TOLD_UNDER_THE_LOCK = (
    "        with meeting.lock:\n            if meeting.outcome is not None:\n                return False\n"
)


class Owner:
    """What a task is told to ask; it allows everything."""

    foreign = False
    tally = types.SimpleNamespace(count=lambda *entries: None)

    def wait(self, task: Any, wait_here: Callable[[float], bool], timeout: float | None) -> bool:
        return wait_here(-1 if timeout is None else timeout)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def make_task(copy: Copy) -> Any:
    """A task that nothing runs: a thread of the model settles it."""
    Task = copy.parts[TASK].Task
    given = {"owner": Owner(), "work": print, "args": (), "name": "explored", "kind": Kind.WORK, "lasti": 0}
    return Task(*(given.get(name) for name in inspect.signature(Task).parameters))


def settle(copy: Copy, task: Any, value: str) -> bool:
    return bool(task._settle(copy.parts[TASK].SUCCEEDED, value))


@in_every_order(
    TASK,
    a_settling_that_looks_who_was_first_before_it_appends=(
        Edit(
            TASK,
            "        self._meeting.append(outcome)\n",
            "        seen = self._meeting[:1]\n        self._meeting.append(outcome)\n",
        ),
        Edit(
            TASK,
            "        first = self._meeting[0]\n        if first is not outcome:",
            "        first = seen[0] if seen else outcome\n        if first is not outcome:",
        ),
    ),
    a_waiter_that_looks_before_it_is_seen=Edit(
        TASK,
        "        meeting.gates.append(gate)\n        if meeting.outcome is None and gate",
        "        pending = meeting.outcome is None\n        meeting.gates.append(gate)\n        if pending and gate",
    ),
    gates_looked_at_before_the_outcome_is_set=(
        Edit(
            TASK,
            "            meeting.outcome = outcome\n            # In one",
            "            gates = meeting.gates.copy()\n            meeting.outcome = outcome\n            # In one",
        ),
        Edit(
            TASK,
            "            gates = meeting.gates.copy()\n            meeting.gates.clear",
            "            meeting.gates.clear",
        ),
    ),
)
def test_who_waits_gets_the_outcome(copy: Copy) -> None:
    task = make_task(copy)
    got: list[str] = []

    threads = [spawn(lambda: got.append(task.result())), spawn(settle, copy, task, "value")]
    for thread in threads:
        thread.join()

    assert got == ["value"]


@in_every_order(
    TASK,
    heavy=True,
    a_waiter_that_takes_its_own_meeting_for_the_first=Edit(
        TASK,
        "            meeting.append(_Meeting())\n        first = meeting[0]",
        "            meeting.append(_Meeting())\n        first = meeting[-1]",
    ),
)
def test_all_who_wait_get_the_outcome(copy: Copy) -> None:
    task = make_task(copy)
    got: list[str] = []

    threads = [spawn(lambda: got.append(task.result())) for _ in range(2)]
    threads.append(spawn(settle, copy, task, "value"))
    for thread in threads:
        thread.join()

    assert got == ["value", "value"]


@in_every_order(
    TASK,
    a_gate_taken_away_that_may_be_gone=Edit(TASK, "        with suppress(ValueError):", "        if True:"),
)
def test_a_wait_that_times_out_meanwhile_harms_nobody(copy: Copy) -> None:
    task = make_task(copy)
    waited: list[bool] = []

    threads = [spawn(lambda: waited.append(task._wait_here(0))), spawn(settle, copy, task, "value")]
    for thread in threads:
        thread.join()

    assert waited in ([False], [True])
    assert task.result(0) == "value"


@in_every_order(
    TASK,
    a_callback_added_without_a_look_under_the_lock=A_CALLBACK_ADDED_WITHOUT_A_LOOK_UNDER_THE_LOCK,
)
def test_each_callback_is_called_once(copy: Copy) -> None:
    task = make_task(copy)
    called: list[str] = []

    def call_back(name: str) -> None:
        task.add_done_callback(lambda task: called.append(f"{name}: {task.result(0)}"))

    threads = [spawn(call_back, "callback"), spawn(settle, copy, task, "value")]
    for thread in threads:
        thread.join()

    assert called == ["callback: value"]


@in_every_order(
    TASK,
    heavy=True,
    an_outcome_that_a_later_one_replaces=Edit(
        TASK, TOLD_UNDER_THE_LOCK, TOLD_UNDER_THE_LOCK.replace("meeting.outcome is not None", "False")
    ),
    an_outcome_that_is_settled_without_the_lock=Edit(
        TASK, TOLD_UNDER_THE_LOCK, TOLD_UNDER_THE_LOCK.replace("with meeting.lock", "if True")
    ),
)
def test_of_two_outcomes_one_is_the_tasks(copy: Copy) -> None:
    task = make_task(copy)
    first: dict[str, bool] = {}
    called: list[str] = []

    def end(value: str) -> None:
        first[value] = settle(copy, task, value)

    threads = [
        spawn(end, "one"),
        spawn(end, "another"),
        spawn(task.add_done_callback, lambda task: called.append(task.result(0))),
    ]
    for thread in threads:
        thread.join()

    winner = [value for value, was_first in first.items() if was_first]
    assert winner == called == [task.result(0)]


@in_every_order(
    TASK,
    a_callback_added_without_a_look_under_the_lock=A_CALLBACK_ADDED_WITHOUT_A_LOOK_UNDER_THE_LOCK,
)
def test_who_awaits_it_on_another_loop_gets_the_outcome(copy: Copy) -> None:
    task = make_task(copy)
    got: list[str] = []

    async def wait() -> None:
        got.append(await task)

    def elsewhere() -> None:
        loop = Loop()
        try:
            loop.run_until_complete(wait())
        finally:
            loop.close()

    threads = [spawn(elsewhere), spawn(settle, copy, task, "value")]
    for thread in threads:
        thread.join()

    assert got == ["value"]


@in_every_order(
    TASK,
    a_meeting_that_differs_from_look_to_look=A_MEETING_THAT_DIFFERS_FROM_LOOK_TO_LOOK,
)
def test_concurrent_futures_wait_gets_the_outcome(copy: Copy) -> None:
    task = make_task(copy)
    got: list[Any] = []

    threads = [spawn(lambda: got.append(concurrent.futures.wait([task]).done)), spawn(settle, copy, task, "value")]
    for thread in threads:
        thread.join()

    assert got == [{task}]


@in_every_order(
    TASK,
    a_meeting_that_differs_from_look_to_look=A_MEETING_THAT_DIFFERS_FROM_LOOK_TO_LOOK,
)
def test_as_completed_gets_the_outcome(copy: Copy) -> None:
    task = make_task(copy)
    got: list[Any] = []

    threads = [
        spawn(lambda: got.extend(concurrent.futures.as_completed([task]))),
        spawn(settle, copy, task, "value"),
    ]
    for thread in threads:
        thread.join()

    assert got == [task]
