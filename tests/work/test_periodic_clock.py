"""Delayed and periodic calls by a clock of the test's own: a day passes in a moment, and no test sleeps."""

import asyncio
import concurrent.futures
import math
import selectors
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import NotAsyncError, Runtime

DAY = 86_400.0


class Skipping(selectors.DefaultSelector):
    """Where a loop would wait, its clock goes forward instead."""

    now = 1_000.0

    def select(self, timeout=None):
        if timeout is None:
            # Nothing is due: whoever wakes the loop is another thread.
            return super().select(None)
        events = super().select(0)
        if not events:
            self.now += timeout
        return events


class ClockLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.clock = Skipping()
        super().__init__(self.clock)
        # A real clock goes on while the loop looks at it; this one stands still, and a year is coarse in a float.
        self._clock_resolution = 1e-6

    def time(self):
        return self.clock.now


@pytest.fixture
def failures():
    return []


@pytest.fixture
def runtime(failures):
    with Runtime(loop_factory=ClockLoop, on_error=failures.append, slow_callback=None) as made:
        yield made


class Turns:
    """Notes when it is called; after so many turns it ends them."""

    def __init__(self, count, then=None):
        self.times = []
        self.count = count
        self.then = then
        self.over = threading.Event()
        self.handle = None

    def __call__(self):
        loop = asyncio.get_running_loop()
        self.times.append(loop.time())
        if len(self.times) >= self.count:
            self.over.set()
            self.handle.cancel()
            return None
        return self.then(loop, len(self.times)) if self.then is not None else None


def run_turns(runtime, turns, interval, **options):
    """When the turns were, in intervals from the start."""

    async def begin():
        # On the loop, so that its clock stands still until the handle is there.
        turns.handle = runtime.every(interval, turns, **options)
        return asyncio.get_running_loop().time()

    start = runtime.run(begin())
    assert turns.over.wait(timeout=5)
    with pytest.raises(concurrent.futures.CancelledError):
        turns.handle.result(timeout=5)
    return [round((now - start) / interval, 6) for now in turns.times]


@pytest.mark.promise("`every` takes its turns at their times")
def test_the_turns_come_at_their_times(runtime):
    assert run_turns(runtime, Turns(5), 7.0) == [1, 2, 3, 4, 5]


def test_the_first_turn_may_come_at_once(runtime):
    assert run_turns(runtime, Turns(4), 7.0, immediately=True) == [0, 1, 2, 3]


@pytest.mark.promise("A year of turns does not drift")
def test_a_year_of_turns_does_not_drift(runtime):
    def late(loop, _):
        # As a busy loop is.
        loop.clock.now += 0.37

    assert run_turns(runtime, Turns(365, late), DAY) == list(range(1, 366))


@pytest.mark.promise("Turns do not overlap, and those that are missed are left out")
def test_turns_do_not_overlap_and_those_that_are_missed_are_left_out(runtime):
    at_once, most = 0, 0

    async def long(_loop, turn):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        # The first takes two and a half intervals.
        await asyncio.sleep(25 if turn == 1 else 1)
        at_once -= 1

    assert run_turns(runtime, Turns(4, long), 10.0) == [1, 4, 5, 6]
    assert most == 1


@pytest.mark.promise("Jitter makes each turn late by no more than that, and does not add up")
def test_jitter_makes_each_turn_late_by_no_more_than_that_and_does_not_add_up(runtime):
    times = run_turns(runtime, Turns(200), 10.0, jitter=4)

    late = [now - turn for turn, now in enumerate(times, start=1)]
    assert min(late) >= 0
    assert max(late) <= 0.4
    assert len(set(late)) > 100


@pytest.mark.promise("An error in a turn is reported, and the next turn comes")
@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, BaseException])
def test_an_error_is_reported_and_the_next_turn_comes(runtime, failures, error):
    def fail(_loop, turn):
        if turn == 1:
            raise error("the first turn")

    assert run_turns(runtime, Turns(3, fail), 1.0, name="the calls") == [1, 2, 3]
    runtime.flush(timeout=5)
    assert [type(failure.exception) for failure in failures] == [error]
    assert "'the calls'" in failures[0].message


@pytest.mark.promise("A turn that waits for work which another cancels fails alone")
def test_a_turn_that_waits_for_what_another_cancels_fails_alone(runtime, failures):
    async def wait(_loop, _turn):
        task = runtime.go(asyncio.sleep(math.inf))
        task.cancel()
        await task

    assert run_turns(runtime, Turns(3, wait), 1.0) == [1, 2, 3]
    runtime.flush(timeout=5)
    assert [type(failure.exception) for failure in failures] == [asyncio.CancelledError] * 2


@pytest.mark.promise("What the function returns is awaited, if it can be: a coroutine, a handle, a future")
def test_a_function_that_returns_something_awaitable_is_awaited(runtime):
    waited = []

    async def work():
        await asyncio.sleep(3)
        waited.append(asyncio.get_running_loop().time())

    # A coroutine, a handle, an asyncio task.
    ways = [work, lambda: runtime.go(work()), lambda: asyncio.ensure_future(work())]

    times = run_turns(runtime, Turns(4, lambda _loop, turn: ways[turn - 1]()), 2.0)

    # Each takes one and a half intervals, so every other turn is missed.
    assert times == [1, 3, 5, 7]
    assert len(waited) == 3


@pytest.mark.promise("Or in the function itself")
def test_an_async_function_that_cancels_its_own_handle_ends_there(runtime):
    after = []

    async def turn():
        handle.cancel()
        await asyncio.sleep(0)
        after.append("went on")

    async def begin():
        return runtime.every(1.0, turn)

    handle = runtime.run(begin())
    with pytest.raises(concurrent.futures.CancelledError):
        handle.result(timeout=5)

    assert after == []


@pytest.mark.promise("The handle can be cancelled from any thread")
def test_a_handle_can_be_cancelled_from_any_thread(runtime):
    called = threading.Event()
    handle = runtime.every(1e6, called.set, immediately=True)
    assert called.wait(timeout=5)

    thread = threading.Thread(target=handle.cancel)
    thread.start()
    thread.join()

    with pytest.raises(concurrent.futures.CancelledError):
        handle.result(timeout=5)


def test_a_call_comes_when_it_is_due(runtime):
    async def when():
        loop = asyncio.get_running_loop()
        start = loop.time()
        await runtime.call_later(3 * DAY, lambda: None)
        return loop.time() - start

    # The delay is told by a real clock, of which a little has passed.
    assert runtime.run(when()) == pytest.approx(3 * DAY, abs=1)


@pytest.mark.promise("So is what a delayed call's function returns")
def test_a_delayed_call_has_the_result_of_what_its_function_starts(runtime):
    async def work(number):
        await asyncio.sleep(5)
        return number

    assert runtime.call_later(1, work, 1).result(timeout=5) == 1
    assert runtime.call_later(1, lambda: runtime.go(work(2))).result(timeout=5) == 2
    assert runtime.call_later(1, lambda: asyncio.ensure_future(work(3))).result(timeout=5) == 3
    assert runtime.call_later(1, int, "4").result(timeout=5) == 4


def test_calls_come_in_the_order_of_their_times(runtime):
    order = []

    async def begin():
        return [runtime.call_later(delay, order.append, delay) for delay in (30, 10, 20, 0)]

    for task in runtime.run(begin()):
        task.result(timeout=5)

    assert order == [0, 10, 20, 30]


@pytest.mark.promise("A call in the far future can be made and cancelled, on asyncio and uvloop")
@pytest.mark.parametrize("factory", ["asyncio", "uvloop"])
def test_a_call_in_the_far_future_can_be_made_and_cancelled(factory):
    make = None if factory == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(loop_factory=make) as runtime:
        tasks = [runtime.call_later(delay, print) for delay in (1e6, 1e12, 1e300)]
        tasks += [runtime.call_at(1e300, print), runtime.every(1e300, print)]
        assert runtime.run(asyncio.sleep(0, "alive")) == "alive"

        assert all(task.cancel() for task in tasks)
        for task in tasks:
            with pytest.raises(concurrent.futures.CancelledError):
                task.result(timeout=5)


def test_a_time_in_the_past_is_now():
    with Runtime() as runtime:
        assert runtime.call_at(0, int, "7").result(timeout=5) == 7
        assert runtime.call_at(time.monotonic() - 1, int, "7").result(timeout=5) == 7
        assert runtime.call_later(-1, int, "7").result(timeout=5) == 7


@pytest.mark.promise("What is no number of seconds is refused by its name")
@pytest.mark.parametrize("seconds", [math.nan, math.inf, "1", None, True])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("delay", lambda runtime, seconds: runtime.call_later(seconds, print)),
        ("when", lambda runtime, seconds: runtime.call_at(seconds, print)),
        ("interval", lambda runtime, seconds: runtime.every(seconds, print)),
        ("jitter", lambda runtime, seconds: runtime.every(1, print, jitter=seconds)),
    ],
)
def test_what_is_no_number_of_seconds_is_refused(runtime, name, call, seconds):
    with pytest.raises(ValueError, match=f"{name}={seconds!r}: give seconds"):
        call(runtime, seconds)


def test_an_interval_of_nothing_is_refused(runtime):
    with pytest.raises(ValueError, match="interval=0: give seconds as a number above 0"):
        runtime.every(0, print)


@pytest.mark.parametrize("call", ["call_later", "call_at", "every"])
def test_what_cannot_be_called_is_refused_by_the_name_of_the_call(runtime, call):
    async def work():
        pass

    with pytest.raises(NotAsyncError, match=rf"{call}\(\) takes a function"):
        getattr(runtime, call)(1, 7)
    with pytest.raises(NotAsyncError, match=rf"{call}\(\) takes a function.*the coroutine"):
        getattr(runtime, call)(1, work())


@pytest.mark.promise("What is not due is cancelled at exit without a word, and a turn that goes on cleans up")
def test_what_is_not_due_is_cancelled_at_exit_without_a_word():
    def program():
        async def turn():
            try:
                print("turn")
                await asyncio.sleep(60)
            finally:
                print("turn cleaned up")

        omniloop.every(60, print, name="never")
        omniloop.every(60, turn, immediately=True, daemon=True)
        later = omniloop.call_later(60, print, "never")
        omniloop.run(asyncio.sleep(0.05))
        print("last line")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("turn\nlast line\nturn cleaned up\n", "", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15
