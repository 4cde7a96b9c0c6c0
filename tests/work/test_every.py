"""`every` calls a function at a fixed rate, whatever happens in a turn, until its handle is cancelled or the program ends."""

import asyncio
import concurrent.futures
import contextvars
import functools
import threading
import time

import pytest

from omniloop import Runtime

who = contextvars.ContextVar("who")


class Turns:
    """Counts its calls, and tells when there were enough."""

    def __init__(self, enough):
        self.times = []
        self.enough = threading.Event()
        self._wanted = enough

    def __call__(self):
        self.times.append(time.monotonic())
        if len(self.times) >= self._wanted:
            self.enough.set()

    async def turn(self):
        await asyncio.sleep(0)
        self()


def test_a_plain_function_is_called_again_and_again_until_it_is_cancelled(runtime):
    turns = Turns(5)
    task = runtime.every(0.002, turns)
    assert turns.enough.wait(timeout=5)

    assert task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)
    count = len(turns.times)
    runtime.call_later(0.02, int).result(timeout=5)
    assert len(turns.times) == count


@pytest.mark.parametrize("interval", [5e-324, 1e-300])
def test_an_interval_of_almost_nothing_is_no_overflow(runtime, interval):
    """The number of turns was infinite, and the call ended with an OverflowError."""
    turns = Turns(5)
    task = runtime.every(interval, turns)

    assert turns.enough.wait(timeout=5)
    assert not task.done()


class Async:
    """Its call is async, and `inspect.iscoroutinefunction` does not say so."""

    def __init__(self, turns):
        self._turns = turns

    async def __call__(self):
        await self._turns.turn()


@pytest.mark.promise("`every` awaits what a turn returns, whatever kind of callable takes it")
@pytest.mark.parametrize(
    "callable_of",
    [
        lambda turns: turns.turn,
        lambda turns: lambda: turns.turn(),  # noqa: PLW0108
        lambda turns: functools.partial(turns.turn),
        lambda turns: functools.partial(lambda each: each.turn(), turns),
        Async,
    ],
    ids=["function", "lambda", "partial", "partial of a lambda", "object"],
)
def test_what_a_turn_returns_is_awaited_whatever_takes_it(runtime, failures, callable_of):
    turns = Turns(5)
    task = runtime.every(0.002, callable_of(turns))

    assert turns.enough.wait(timeout=5)
    assert not task.done()
    assert failures == []


@pytest.mark.promise("`every(context=…)` takes its turns in a copy of that context")
def test_every_takes_its_turns_in_a_copy_of_the_context_that_it_is_given(runtime):
    given = contextvars.Context()
    given.run(who.set, "given")
    who.set("the caller's")
    seen, enough = [], threading.Event()

    async def turn():
        seen.append(who.get())
        # Kept from turn to turn, and none of the context's own.
        who.set(f"turn {len(seen)}")
        if len(seen) == 3:
            enough.set()

    runtime.every(0.001, turn, context=given)
    assert enough.wait(timeout=5)

    assert seen[:3] == ["given", "turn 1", "turn 2"]
    assert given.run(who.get) == "given"
    with pytest.raises(TypeError, match="context=5"):
        runtime.every(1, turn, context=5)


@pytest.mark.parametrize("immediately", [True, False])
def test_the_first_turn_comes_after_one_interval_or_at_once(runtime, immediately):
    turns = Turns(1)
    interval = 60 if immediately else 0.2
    start = time.monotonic()
    runtime.every(interval, turns, immediately=immediately)
    assert turns.enough.wait(timeout=5)

    assert immediately or turns.times[0] - start >= 0.19


@pytest.mark.promise("Periodic turns do not drift, do not overlap, and do not pile up")
def test_turns_do_not_drift_and_missed_ones_are_left_out(runtime):
    """Counted from the start: the length of a turn, and the lateness of a timer, do not add up."""
    turns = Turns(6)

    def slow():
        turns()
        if len(turns.times) == 2:
            # Misses two turns.
            until = time.monotonic() + 0.11
            while time.monotonic() < until:
                pass

    start = time.monotonic()
    runtime.every(0.05, slow)
    assert turns.enough.wait(timeout=5)

    # It goes on.
    numbers = [(moment - start) / 0.05 for moment in turns.times[:6]]
    assert all(number >= due - 0.05 for number, due in zip(numbers, (1, 2, 4.1, 5, 6, 7), strict=True))
    assert numbers == sorted(numbers)


def test_turns_do_not_overlap(runtime):
    inside, most, over = 0, 0, threading.Event()

    async def turn():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.005)
        inside -= 1
        if count() >= 5:
            over.set()

    calls = []

    def count():
        calls.append(1)
        return len(calls)

    runtime.every(0.001, turn)
    assert over.wait(timeout=5)
    assert most == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
def test_a_turn_that_fails_is_reported_and_the_next_one_comes(runtime, failures, error):
    turns = Turns(3)

    def fails():
        turns()
        raise error("of the turn")

    task = runtime.every(0.002, fails, name="mine")
    assert turns.enough.wait(timeout=5)
    task.cancel()
    concurrent.futures.wait([task], timeout=5)
    runtime.flush(timeout=5)

    assert len(failures) >= 2
    assert {type(failure.exception) for failure in failures} == {error}
    assert "A turn of 'mine' failed; the next one comes" in failures[0].message
    assert failures[0].site.filename == __file__
    assert failures[0].site.function == "test_a_turn_that_fails_is_reported_and_the_next_one_comes"


def test_jitter_makes_a_turn_later_never_earlier(runtime):
    turns = Turns(5)
    start = time.monotonic()
    runtime.every(0.01, turns, jitter=0.005)
    assert turns.enough.wait(timeout=5)

    assert all(moment - start >= 0.0099 * number for number, moment in enumerate(turns.times, 1))


def test_flush_and_shutdown_do_not_wait_for_it_and_say_nothing(caplog):
    with Runtime(name="periodic") as runtime:
        task = runtime.every(60, int)
        runtime.flush(timeout=5)
        assert task in runtime.tasks()

    assert task.cancelled()
    assert caplog.records == []


def test_it_is_named_after_the_interval_and_the_function(runtime):
    assert runtime.every(60, int).get_name() == "every 60 s: int"
    assert runtime.every(0.5, int, name="mine").get_name() == "mine"


class Slow:
    """A turn that does not end by itself."""

    def __init__(self):
        self.begun, self.said = threading.Event(), []

    async def turn(self):
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.said.append("cancelled")
            raise


@pytest.mark.promise("A turn of `every` that is under way at the end is waited for, once")
def test_a_turn_that_is_under_way_at_the_end_is_waited_for_once(caplog):
    """It was cancelled in the middle."""
    runtime = Runtime(name="periodic")

    async def turn(number):
        # They overlap: there is always one under way.
        begun.append(number)
        await asyncio.sleep(0.02)
        done.append(number)

    begun, done = [], []
    tasks = [runtime.every(0.005, lambda number=number: turn(number)) for number in range(3)]
    while len(set(begun)) < 3:
        runtime.run(asyncio.sleep(0.001))
    runtime.shutdown(timeout=5)

    assert sorted(done) == sorted(begun)
    assert all(task.cancelled() for task in tasks)
    assert caplog.records == []


def test_no_turn_begins_after_that_one_and_its_handle_is_cancelled(caplog):
    runtime = Runtime(name="periodic")

    async def turn():
        count.append(1)
        begun.set()
        # The shutdown asks the loop what is left; and others are due meanwhile.
        while not runtime._life.asked:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        done.append(1)

    count, done, begun = [], [], threading.Event()
    task = runtime.every(0.001, turn, immediately=True)
    assert begun.wait(timeout=5)
    runtime.shutdown(timeout=5)

    assert (count, done) == ([1], [1])
    assert task.cancelled()
    assert caplog.records == []


@pytest.mark.promise("`every(…, daemon=True)` is cancelled at the end, also in the middle of a turn")
def test_a_turn_of_a_daemon_is_cancelled(caplog):
    runtime = Runtime(name="periodic")
    slow = Slow()
    task = runtime.every(0.001, slow.turn, daemon=True)
    assert slow.begun.wait(timeout=5)
    runtime.shutdown(timeout=5)

    assert slow.said == ["cancelled"]
    assert task.cancelled()
    assert caplog.records == []


def test_a_turn_that_does_not_end_in_time_is_cancelled_and_named(caplog):
    runtime = Runtime(name="periodic")
    slow = Slow()
    task = runtime.every(0.001, slow.turn, name="endless")
    assert slow.begun.wait(timeout=5)
    runtime.shutdown(timeout=0.05)

    assert slow.said == ["cancelled"]
    assert task.cancelled()
    (message,) = caplog.messages
    assert "1 unfinished when the time for draining was over" in message and "endless" in message


@pytest.mark.promise("A turn that is cut off is named, however late the loop learns of the end")
def test_a_turn_that_is_cut_off_is_named_where_the_loop_answers_too_late(caplog):
    """It was cancelled without a word: only a loop that had answered in time knew that the turn was waited for."""
    runtime = Runtime(name="periodic", slow_callback=None)
    slow = Slow()
    runtime.every(0.001, slow.turn, name="endless")
    assert slow.begun.wait(timeout=5)
    runtime.call_soon(time.sleep, 0.5)
    runtime.shutdown(timeout=0.05)

    assert slow.said == ["cancelled"]
    assert "endless" in "".join(message for message in caplog.messages if "draining was over" in message)


def test_a_turn_that_fails_at_the_end_is_reported(runtime, failures):
    async def turn():
        begun.set()
        while not runtime._life.asked:
            await asyncio.sleep(0.001)
        raise LookupError("in the last turn")

    begun = threading.Event()
    runtime.every(0.001, turn)
    assert begun.wait(timeout=5)
    runtime.shutdown(timeout=5)

    # Another may begin before the shutdown's question comes to the loop.
    assert {str(failure.exception) for failure in failures} == {"in the last turn"}
