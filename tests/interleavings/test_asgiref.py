"""A thread that waits with `run()` where asgiref is loaded: each call that comes for it is made, there or elsewhere, and the outcome is known."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest
from explorer import Copy, Edit, in_every_order, spawn
from test_meeting import make_task, settle

pytest.importorskip("asgiref.sync")

ASGIREF = "_guests.asgiref"


def make_waiting(copy: Copy) -> tuple[Any, Any]:
    """What a thread waits by, and the task that it waits for."""
    waiting = copy.parts[ASGIREF].Waiting()
    waiting.task = make_task(copy)
    return waiting, waiting.task


@in_every_order(
    ASGIREF,
    a_wait_that_looks_for_calls_again_without_the_lock=Edit(
        ASGIREF, "if waits_for_gate and not gate.acquire(", "if not self.calls and not gate.acquire("
    ),
)
def test_who_waits_makes_the_calls_that_come_and_gets_the_outcome(copy: Copy) -> None:
    waiting, task = make_waiting(copy)
    made: list[str] = []
    waited: list[bool] = []

    def wait() -> None:
        waited.append(waiting.wait_here(1000))
        waiting.end()

    def work() -> None:
        call = waiting.take(lambda: made.append("call"))
        concurrent.futures.wait([call])
        settle(copy, task, "value")

    threads = [spawn(wait), spawn(work)]
    for thread in threads:
        thread.join()

    assert (made, waited, task.result(0)) == (["call"], [True], "value")


@in_every_order(
    ASGIREF,
    a_call_that_does_not_look_whether_the_wait_is_over=Edit(
        ASGIREF, "            if self.over:\n                return None\n", ""
    ),
    an_end_that_makes_no_calls=Edit(
        ASGIREF,
        "                self.over = True\n            self._make_calls()\n",
        "                self.over = True\n",
    ),
)
def test_a_call_that_comes_while_the_wait_is_given_up_is_made_or_goes_elsewhere(copy: Copy) -> None:
    waiting, _ = make_waiting(copy)
    made: list[str] = []
    taken: list[bool] = []

    def wait() -> None:
        assert waiting.wait_here(0) is False
        waiting.end()

    def work() -> None:
        taken.append(waiting.take(lambda: made.append("call")) is not None)

    threads = [spawn(work), spawn(wait)]
    for thread in threads:
        thread.join()

    assert made == ["call"] * taken.count(True)
