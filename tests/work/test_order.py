"""What one thread submits starts in that order, whatever way it is submitted and whatever is in between."""

import asyncio
import random
import threading

import pytest

from omniloop import Runtime


@pytest.mark.promise("What one thread submits, by `go` and `call_soon` mixed, starts in that order")
def test_what_one_thread_submits_by_go_and_call_soon_starts_in_that_order(runtime):
    async def work(number):
        started.append(number)
        await asyncio.sleep(0)

    started = []
    for number in range(2000):
        if random.random() < 0.5:
            runtime.go(work(number))
        else:
            runtime.call_soon(started.append, number)
    runtime.flush(timeout=5)

    assert started == list(range(2000))


def test_each_threads_own_order_is_kept_when_many_submit_at_once(runtime):
    async def work(item):
        started.append(item)

    def submit(thread):
        barrier.wait(timeout=5)
        for number in range(500):
            if number % 3:
                runtime.go(work((thread, number)))
            else:
                runtime.call_soon(started.append, (thread, number))

    started, barrier = [], threading.Barrier(6)
    threads = [threading.Thread(target=submit, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    runtime.flush(timeout=5)

    for thread in range(6):
        assert [number for owner, number in started if owner == thread] == list(range(500))


def test_order_is_kept_on_the_loops_own_thread(runtime):
    async def work(number):
        started.append(number)

    async def submit():
        for number in range(100):
            runtime.go(work(number)) if number % 2 else runtime.call_soon(started.append, number)

    started = []
    runtime.go(submit()).result(timeout=5)
    runtime.flush(timeout=5)

    assert started == list(range(100))


def test_order_is_kept_from_the_very_first_submission_on():
    async def work(number):
        started.append(number)

    for _ in range(20):
        started = []
        with Runtime(name="first") as runtime:
            for number in range(20):
                runtime.go(work(number)) if number % 2 else runtime.call_soon(started.append, number)
        assert started == list(range(20))


@pytest.mark.parametrize("busy", [False, True])
def test_a_cancellation_comes_in_order_with_what_was_submitted(runtime, busy):
    gate = threading.Event()
    if busy:
        runtime.call_soon(gate.wait, 5)
    order = []
    runtime.call_soon(order.append, "before")
    task = runtime.call_soon(order.append, "cancelled")
    cancelled = task.cancel()
    runtime.call_soon(order.append, "after")
    gate.set()
    runtime.flush(timeout=5)

    assert order == (["before", "after"] if cancelled and task.cancelled() else ["before", "cancelled", "after"])
    if busy:
        assert task.cancelled()


def test_order_is_kept_through_a_drain_that_finds_more_to_do(runtime):
    """What came in during the last emptying was put back behind what had come after it."""

    async def work(number):
        await asyncio.sleep(0)
        started.append(number)
        if number < 200:
            runtime.go(work(number + 2))
            runtime.call_soon(started.append, number + 1)

    started = []
    runtime.go(work(0))
    runtime.shutdown(timeout=50)

    assert sorted(started) == list(range(202 if 201 in started else 201))
