"""The meeting of a task with those who wait for it: each of them learns the outcome, whichever comes first, and once."""

from __future__ import annotations

import concurrent.futures
import sys
import types
from collections.abc import Callable
from typing import Any

from explorer import Copy, Edit, Loop, in_every_order, spawn

TASK = "_work.task"

A_CALLBACK_ADDED_WITHOUT_A_LOOK_UNDER_THE_LOCK = Edit(
    TASK,
    "                if meeting.outcome is None:\n                    meeting.callbacks",
    "                if True:\n                    meeting.callbacks",
)


A_MEETING_THAT_DOES_NOT_LOOK_FOR_THE_OUTCOME = Edit(
    TASK,
    "        if type(outcome) is tuple and meeting.outcome is None:\n",
    "        if False:\n",
)
TOLD_UNDER_THE_LOCK = (
    "            if meeting.outcome is not None and meeting.outcome is not outcome:\n                return False\n"
)


class Owner:
    """What a task is told to ask; it allows everything."""

    foreign = noted = False
    tally = types.SimpleNamespace(count=lambda *entries: None)

    def wait(self, task: Any, wait_here: Callable[[float], bool], timeout: float | None) -> bool:
        return wait_here(-1 if timeout is None else timeout)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def make_task(copy: Copy) -> Any:
    """A task that nothing runs: a thread of the model settles it."""
    runtime = types.SimpleNamespace(_life=Owner())
    return copy.parts[TASK].Task(runtime, print, (), None, sys._getframe(), "explored")


def settle(copy: Copy, task: Any, value: str) -> bool:
    return bool(task._settle(copy.parts[TASK].SUCCEEDED, value))


@in_every_order(
    TASK,
    a_settling_that_looks_for_no_meeting_afterwards=Edit(
        TASK,
        "            # Again, after the outcome is there to be found.\n            meeting = self._meeting\n",
        "",
    ),
    a_meeting_that_does_not_look_for_the_outcome=A_MEETING_THAT_DOES_NOT_LOOK_FOR_THE_OUTCOME,
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
        "                meeting = _new_meetings.setdefault(self, _Meeting())\n",
        "                meeting = _Meeting()\n",
    ),
    a_waiter_that_does_not_look_again_for_a_meeting=Edit(
        TASK,
        "                if self._meeting is None:\n                    self._meeting = meeting\n",
        "                self._meeting = meeting\n",
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
    an_outcome_that_a_later_one_replaces=Edit(TASK, TOLD_UNDER_THE_LOCK, ""),
    an_outcome_that_is_settled_without_the_lock=Edit(
        TASK,
        "        with meeting.lock:\n            # A waiter that came",
        "        if True:\n            # A waiter that came",
    ),
)
def test_of_two_outcomes_one_is_the_tasks(copy: Copy) -> None:
    task = make_task(copy)
    first: dict[str, bool] = {}
    called: list[str] = []

    def end(value: str) -> None:
        if value == "given up":
            # As the end of the life does.
            task._meet()
        first[value] = settle(copy, task, value)

    threads = [
        spawn(end, "done"),
        spawn(end, "given up"),
        spawn(task.add_done_callback, lambda task: called.append(task.result(0))),
    ]
    for thread in threads:
        thread.join()

    winner = [value for value, was_first in first.items() if was_first]
    assert winner == called == [task.result(0)]


@in_every_order(
    TASK,
    a_look_that_takes_a_new_meetings_word_for_it=Edit(
        TASK,
        "return meeting.outcome if type(work) is not tuple else self._meet().outcome",
        "return meeting.outcome",
    ),
)
def test_work_that_was_seen_done_stays_done(copy: Copy) -> None:
    task = make_task(copy)
    settle(copy, task, "value")

    waiter = spawn(task._meet)
    assert task.done()
    waiter.join()
    assert task.done()


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
    a_meeting_that_does_not_look_for_the_outcome=A_MEETING_THAT_DOES_NOT_LOOK_FOR_THE_OUTCOME,
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
    a_meeting_that_does_not_look_for_the_outcome=A_MEETING_THAT_DOES_NOT_LOOK_FOR_THE_OUTCOME,
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
