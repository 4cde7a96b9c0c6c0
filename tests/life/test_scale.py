"""
The cost of a task does not grow with the number of tasks.

The garbage collector is off: its full collections look at every object there is, so that what they cost is the number's square
over some constant, with or without this package. docs/explanation/speed.md shows what it adds, and what helps.

Seconds are those that this process computes: a busy machine makes it wait, and not compute.
"""

import asyncio
import gc
import time

import pytest

from omniloop import Runtime

pytestmark = pytest.mark.alone

# A quadratic structure is slower a hundred times from a thousand tasks to a hundred thousand; caches and a busy machine are not.
FLAT = 4


@pytest.fixture(autouse=True)
def _no_collections():
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


async def noop():
    pass


def cost_of_noops(runtime, count):
    """Seconds a task, until all are done; the best of three, because the machine is shared."""
    costs = []
    for _ in range(3):
        gc.collect()
        start = time.process_time()
        for _ in range(count):
            runtime.go(noop())
        runtime.flush()
        costs.append((time.process_time() - start) / count)
    return min(costs)


def live_through(runtime, count):
    """Start *count* sleepers, cancel each, wait for all: seconds a task for each of the three."""
    gc.collect()
    marks = [time.process_time()]
    tasks = [runtime.go(asyncio.sleep(3600)) for _ in range(count)]
    runtime.run(noop())
    assert len(runtime.tasks()) == count
    marks.append(time.process_time())
    for task in tasks:
        assert task.cancel()
    marks.append(time.process_time())
    runtime.flush()
    marks.append(time.process_time())
    assert all(task.cancelled() for task in tasks)
    assert runtime.tasks() == []
    return [(end - begin) / count for begin, end in zip(marks, marks[1:])]


@pytest.mark.promise("A task costs the same among a thousand and a hundred thousand")
def test_a_task_costs_the_same_among_a_thousand_and_a_hundred_thousand(runtime):
    assert cost_of_noops(runtime, 100_000) < FLAT * cost_of_noops(runtime, 1_000)


@pytest.mark.promise("So do the start, the cancelling and the drain of tasks that sleep")
def test_starting_cancelling_and_draining_a_sleeper_costs_the_same_among_many(runtime):
    few = [min(costs) for costs in zip(*(live_through(runtime, 5_000) for _ in range(3)))]

    many = live_through(runtime, 100_000)

    # Cancelling and draining overlap: from which of them the loop takes its time is chance.
    assert many[0] < FLAT * few[0]
    assert many[1] + many[2] < FLAT * (few[1] + few[2])


@pytest.mark.promise("`shutdown()` cancels a hundred thousand of them in time")
def test_shutdown_cancels_a_hundred_thousand_sleepers():
    with Runtime(name="many") as runtime:
        tasks = [runtime.go(asyncio.sleep(3600), daemon=True) for _ in range(100_000)]
        runtime.run(noop())

    assert all(task.cancelled() for task in tasks)


@pytest.mark.promise("Also where all of them wait for one `asyncio.Event`")
def test_shutdown_cancels_a_hundred_thousand_that_wait_for_one_event():
    """In the order they came: in any other, asyncio's own queue of those who wait took 10 s, and most were given up."""
    with Runtime(name="many") as runtime:
        event = asyncio.Event()
        tasks = [runtime.go(event.wait(), daemon=True) for _ in range(100_000)]
        runtime.run(noop())

    assert all(task.cancelled() for task in tasks)


@pytest.mark.promise("A million tasks that sleep start, are cancelled and drain")
@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_million_sleepers_start_are_cancelled_and_drain(runtime):
    few = live_through(runtime, 10_000)

    many = live_through(runtime, 1_000_000)

    assert sum(many) < FLAT * sum(few)
