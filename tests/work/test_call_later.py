"""`call_later` and `call_at` call a function, plain or async, when it is due; the handle cancels it and has the result."""

import asyncio
import concurrent.futures
import threading
import time

import pytest

from omniloop import Runtime


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


def test_a_plain_and_an_async_function_are_called_on_the_loops_thread(runtime):
    assert runtime.call_later(0.001, double, 21).result(timeout=5) == 42
    assert runtime.call_later(0.001, divmod, 7, 2).result(timeout=5) == (3, 1)
    loop_thread = runtime.call_soon(threading.get_ident).result(timeout=5)
    assert runtime.call_later(0, threading.get_ident).result(timeout=5) == loop_thread


def test_it_is_not_called_before_it_is_due(runtime):
    start = time.monotonic()
    # On a clock of whole milliseconds (uvloop's) some of these were early.
    times = [start + 0.05 + number * 0.00037 for number in range(50)]

    called = runtime.call_later(0.05, time.monotonic).result(timeout=5)
    called_at = [task.result(timeout=5) for task in [runtime.call_at(when, time.monotonic) for when in times]]

    assert called - start >= 0.05
    assert [moment >= when for moment, when in zip(called_at, times)] == [True] * 50


class CoarseLoop(asyncio.SelectorEventLoop):
    """As on Windows with Python 3.11 and 3.12: what is due within 15.6 ms is called when the loop is awake."""

    def __init__(self):
        super().__init__()
        self._clock_resolution = 1 / 64


@pytest.fixture
def coarse():
    """A runtime whose loop is always awake."""
    with Runtime(name="coarse", loop_factory=CoarseLoop) as runtime:

        async def be_awake():
            while True:
                await asyncio.sleep(0)

        awake = runtime.go(be_awake(), daemon=True)
        yield runtime
        awake.cancel()


@pytest.mark.promise("Where the system's clock is a coarse one, no call is early all the same")
def test_on_a_coarse_clock_nothing_is_called_before_it_is_due(coarse):
    early = []
    for _ in range(5):
        when = time.monotonic() + 0.03
        early.append(coarse.call_at(when, time.monotonic).result(timeout=5) < when)

    assert early == [False] * 5


def test_on_a_coarse_clock_no_turn_is_early(coarse):
    turns, enough = [], threading.Event()

    def turn():
        turns.append(time.monotonic())
        if len(turns) == 5:
            enough.set()

    start = time.monotonic()
    beat = coarse.every(0.03, turn)
    assert enough.wait(10)
    beat.cancel()

    assert [number for number, moment in enumerate(turns, 1) if moment < start + 0.03 * number] == []


def test_what_is_due_first_is_called_first(runtime):
    async def submit():
        # Before the loop looks for what is due, though the machine is busy.
        now = time.monotonic()
        return [runtime.call_at(now + delay, order.append, delay) for delay in (0.2, 0.05, 0.1)]

    order = []
    concurrent.futures.wait(runtime.run(submit()), timeout=5)

    assert order == [0.05, 0.1, 0.2]


def test_the_past_is_due_at_once(runtime):
    """A delay that was worked out, `deadline - now`, is below zero by a hair now and then."""
    assert runtime.call_at(0, int, "7").result(timeout=5) == 7
    assert runtime.call_at(-1, int, "7").result(timeout=5) == 7
    assert runtime.call_later(-0.001, int, "7").result(timeout=5) == 7
    assert runtime.call_later(-(10**9), int, "7").result(timeout=5) == 7


@pytest.mark.parametrize("fn", [double, divmod])
def test_cancelled_before_it_is_due_it_is_never_called(runtime, fn):
    task = runtime.call_later(60, fn, 1)
    runtime.flush(timeout=5)
    assert not task.running()

    assert task.cancel("not needed") is True

    with pytest.raises(concurrent.futures.CancelledError, match="not needed"):
        task.result(timeout=5)


@pytest.mark.promise("A delayed call that was cancelled is never made, also if it is due already")
def test_cancelled_on_the_loops_thread_when_it_is_due_already_it_is_not_called(runtime):
    """The timer had fired into the loop's queue: it was called though cancel() had returned True."""

    def cancel():
        if time.monotonic() < due:
            # It becomes due here, and not before.
            time.sleep(max(0, due - time.monotonic()) + 0.01)
            cancelled.append(task.cancel())

    def submit():
        return runtime.call_at(due, called.append, 1)

    cancelled, delay = [], 0.1
    while not cancelled:
        # Where a busy machine is late for one, the next one has more time.
        called, delay = [], delay * 2
        due = time.monotonic() + delay
        task = runtime.call_soon(submit).result(timeout=30)
        runtime.call_soon(cancel).result(timeout=30)
    runtime.flush(timeout=30)

    assert cancelled == [True]
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)
    assert called == []


def test_an_async_function_that_runs_is_cancelled_as_any_work(runtime):
    async def work():
        started.set()
        await asyncio.sleep(60)

    started = threading.Event()
    task = runtime.call_later(0, work)
    assert started.wait(timeout=5)
    task.cancel()

    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)


def test_its_error_comes_out_of_the_handle(runtime):
    with pytest.raises(ZeroDivisionError):
        runtime.call_later(0, divmod, 1, 0).result(timeout=5)


@pytest.mark.parametrize("delay", [1e6, 1e12, 1e300])
def test_a_delay_of_ages_is_held_and_can_be_cancelled(runtime, delay):
    task = runtime.call_later(delay, int)
    runtime.flush(timeout=5)

    assert task in runtime.tasks()
    assert not task.done()
    assert task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)


def test_flush_and_shutdown_do_not_wait_for_what_is_not_due(caplog):
    called = []
    with Runtime(name="later") as runtime:
        task = runtime.call_later(60, called.append, 1)
        runtime.flush(timeout=5)
    assert task.cancelled()
    assert called == []
    assert caplog.records == []
