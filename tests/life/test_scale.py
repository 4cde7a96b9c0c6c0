"""
The cost of a task does not grow with the number of tasks.

The garbage collector is off: its full collections look at every object there is, so that what they cost is the number's square
over some constant, with or without this package. docs/explanation/speed.md shows what it adds, and what helps.

Seconds are those that this process computes: a busy machine makes it wait, and not compute.
"""

import asyncio
import contextlib
import gc
import threading
import time

import pytest

from omniloop import ClosedError, Runtime, resource
from omniloop._life import shutdown

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


def wait_for_one(runtime, count):
    """Let *count* tasks wait for one handle: seconds a task, until all are done."""
    gc.collect()
    start = time.process_time()
    gate = asyncio.Event()
    shared = runtime.go(gate.wait())

    async def wait():
        return await shared

    waiters = [runtime.go(wait()) for _ in range(count)]
    runtime.call_soon(gate.set)
    assert all(waiter.result() for waiter in waiters)
    return (time.process_time() - start) / count


@pytest.mark.promise("So does a task that waits for a handle, however many wait for the same")
def test_a_waiter_costs_the_same_among_many(runtime):
    """Each that went on was searched for, and taken out of a list."""
    few = min(wait_for_one(runtime, 1_000) for _ in range(3))

    assert wait_for_one(runtime, 50_000) < FLAT * few


def live_with_resources(count):
    """Open *count* resources, each with a task of its own, and end them: seconds a resource for both."""

    @contextlib.asynccontextmanager
    async def client():
        reader = asyncio.create_task(asyncio.sleep(3600))
        yield reader

    async def use(reader):
        pass

    gc.collect()
    runtime = Runtime(name="many")
    marks = [time.process_time()]
    clients = [resource(client, runtime=runtime) for _ in range(count)]
    for opened in [one.go(use) for one in clients]:
        opened.result()
    marks.append(time.process_time())
    runtime.shutdown(60)
    marks.append(time.process_time())
    return [(end - begin) / count for begin, end in zip(marks, marks[1:])]


@pytest.mark.promise("So do the opening and the end of a resource")
def test_a_resource_costs_the_same_among_many():
    """The end of each looked at all others: 2,000 connections took 6.5 s to close, and ten thousand more than the exit has."""
    few = [min(costs) for costs in zip(*(live_with_resources(200) for _ in range(3)), strict=True)]

    many = live_with_resources(2_000)

    assert many[0] < FLAT * few[0]
    assert many[1] < FLAT * few[1]


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


@pytest.mark.promise(
    "A deadline holds for any number: each of 100,000 is asked to cancel once, and has one turn of the loop"
)
@pytest.mark.parametrize("kind", ["sleepers", "daemons", "unstarted"])
def test_a_deadline_that_is_past_holds_for_any_number(kind, caplog, monkeypatch):
    """Each is asked once, and has one turn of the loop; sentences are made for twenty. All were described, which took 23 s."""
    described, turns = [], 0

    def describe(task):
        described.append(task)
        # By now they are counted, none of them started.
        gate.set()
        return "  one"

    monkeypatch.setattr(shutdown, "describe", describe)

    async def sleeper():
        nonlocal turns
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            turns += 1
            raise

    # Without the watchdog, which tells of what a busy machine does to the loop.
    runtime = Runtime(name="many", cancel_timeout=0.01, slow_callback=None)
    gate = threading.Event()
    if kind == "unstarted":
        runtime.call_soon(gate.wait)
    tasks = [runtime.go(sleeper(), daemon=kind == "daemons") for _ in range(100_000)]
    if kind != "unstarted":
        runtime.run(noop())
    with caplog.at_level("WARNING"):
        runtime.shutdown(timeout=0)

    assert all(task.cancelled() for task in tasks)
    # So many are told of while they are pending, too.
    said = [message for message in caplog.messages if "nothing bounds them" not in message]
    # What was not started needs none; some are, until the loop comes to the end of them all.
    assert kind == "unstarted" or turns == 100_000
    if kind == "daemons":
        assert (described, said) == ([], [])
    else:
        (message,) = said
        # Without what the loop was in, and has ended.
        shown = 19 if kind == "unstarted" else 20
        assert message.split()[1] == "100000"
        assert message.splitlines()[1:] == ["  one"] * shown + [f"  … and {100_000 - shown} more"]


@pytest.mark.promise("What a drain drops is named twenty times at most, and counted")
def test_what_does_not_end_in_time_is_named_twenty_times_and_counted(caplog, failures):
    """Each of 100,000 daemons whose clean-up outlasts the deadline made a record of its own."""

    async def slow_to_end():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(3600)

    runtime = Runtime(name="many", cancel_timeout=0.05, on_error=failures.append)
    tasks = [runtime.go(slow_to_end(), daemon=True) for _ in range(5_000)]
    tasks += [runtime.go(slow_to_end()) for _ in range(5_000)]
    runtime.run(noop())
    with caplog.at_level("WARNING"):
        runtime.shutdown(timeout=0)

    assert [line for line in caplog.text.splitlines() if "10000 did not end when cancelled" in line]
    assert caplog.text.count("submitted at") == 40
    assert len(caplog.records) == 2
    assert failures == []
    assert all(isinstance(task.exception(), ClosedError) for task in tasks)


@pytest.mark.promise("A million tasks that sleep start, are cancelled and drain")
@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_million_sleepers_start_are_cancelled_and_drain(runtime):
    few = live_through(runtime, 10_000)

    many = live_through(runtime, 1_000_000)

    assert sum(many) < FLAT * sum(few)
