"""A `Task` waits, tells and cancels as `concurrent.futures.Future` and `asyncio.Task` do, with one contract for both."""

import asyncio
import concurrent.futures
import math
import signal
import threading
import time

import pytest

from omniloop import ForkedError, OmniloopError, Runtime, Task, WaitTimeoutError, WouldDeadlockError


async def value():
    return "value"


class Held:
    """A coroutine that waits on the loop until it is let go."""

    def __init__(self, runtime):
        self.started = threading.Event()
        self.ended = threading.Event()
        self._runtime = runtime
        self._gate = None
        self.task = runtime.go(self._work())

    async def _work(self):
        self._gate = asyncio.Event()
        # When this step is over, which on 3.12 and later is taken while the task is being started.
        asyncio.get_running_loop().call_soon(self.started.set)
        try:
            await self._gate.wait()
        finally:
            self.ended.set()
        return "let go"

    def let_go(self):
        assert self.started.wait(timeout=5)
        self._runtime.call_soon(self._gate.set)


@pytest.fixture
def no_second_look(monkeypatch):
    """A long wait wakes the loop once more after a second: here that would hide what is looked for."""
    monkeypatch.setattr("omniloop._life.waits.LOOK_UP", 60)


@pytest.fixture
def held(runtime):
    held = Held(runtime)
    yield held
    held.let_go()


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_result_waits_and_returns_the_value(runtime, held):
    assert held.started.wait(timeout=5)
    assert not held.task.done()
    assert held.task.running()

    held.let_go()

    assert held.task.result(timeout=5) == "let go"
    assert held.task.done()
    assert not held.task.running()
    assert not held.task.cancelled()
    assert held.task.exception() is None


@pytest.mark.promise("A wait that times out is told from a timeout of the work, and cancels nothing")
def test_a_wait_that_times_out_is_told_from_a_timeout_of_the_work_and_cancels_nothing(runtime, held):
    async def times_out():
        raise TimeoutError("of the work")

    with pytest.raises(
        WaitTimeoutError, match=r"_work was not done after 0.01 s. It goes on: ask again, or cancel\(\) it"
    ):
        held.task.result(timeout=0.01)
    with pytest.raises(WaitTimeoutError):
        held.task.exception(timeout=0.01)
    with pytest.raises(TimeoutError, match="of the work") as caught:
        runtime.go(times_out()).result(timeout=5)

    assert not isinstance(caught.value, OmniloopError)
    held.let_go()
    assert held.task.result(timeout=5) == "let go"


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.001, -math.inf])
def test_a_timeout_of_nothing_asks_without_waiting(runtime, held, timeout):
    with pytest.raises(WaitTimeoutError):
        held.task.result(timeout=timeout)
    with pytest.raises(WaitTimeoutError):
        held.task.exception(timeout=timeout)


@pytest.mark.parametrize("timeout", [1e9, 1e300, math.inf, 10**30])
def test_a_timeout_longer_than_threads_can_wait_is_as_good_as_none(runtime, timeout):
    held = Held(runtime)
    threading.Timer(0.05, held.let_go).start()

    assert held.task.result(timeout=timeout) == "let go"
    runtime.flush(timeout=timeout)


@pytest.mark.parametrize("timeout", ["5", math.nan, [], object])
def test_a_timeout_that_is_no_number_is_refused_by_name(runtime, held, timeout):
    for call in (held.task.result, held.task.exception, runtime.flush, runtime.shutdown):
        with pytest.raises(
            ValueError, match="^timeout=.*: give seconds as a number, or None to wait without end"
        ) as caught:
            call(timeout)
        assert repr(timeout) in str(caught.value)
    coro = value()
    with pytest.raises(ValueError, match="^timeout="):
        runtime.run(coro, timeout=timeout)
    assert coro.cr_frame is None


def test_many_threads_may_wait_for_one_task(runtime, held):
    results = []
    threads = [threading.Thread(target=lambda: results.append(held.task.result(timeout=5))) for _ in range(8)]
    for thread in threads:
        thread.start()

    held.let_go()
    for thread in threads:
        thread.join(timeout=5)

    assert results == ["let go"] * 8


def test_the_outcome_and_a_waiter_may_come_at_the_same_moment(runtime, no_second_look):
    """A waiter that came between two looks opened a meeting after the outcome was there, and was never told."""

    async def work():
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in (0, 1, 2):
        for _ in range(300):
            called = threading.Event()
            task = runtime.go(work())
            task.add_done_callback(lambda _, called=called: called.set())
            assert task.result(timeout=5) is None
            assert called.wait(timeout=5)


@pytest.mark.promise("Waiters and outcomes may come at the same moment: none is lost")
def test_waiters_and_outcomes_of_many_tasks_race_and_none_is_lost(runtime, no_second_look):
    async def work(number):
        if number % 2:
            await asyncio.sleep(0)
        return number

    def wait(kind, tasks):
        for number, task in tasks:
            if kind == "result":
                seen.append(task.result(timeout=5) == number)
            elif kind == "callback":
                task.add_done_callback(lambda task, number=number: seen.append(task.result(0) == number))
            elif kind == "wait":
                seen.append(len(concurrent.futures.wait([task], timeout=5).done) == 1)
            else:
                seen.append(asyncio.run(asyncio.wait_for(task, 5)) == number)

    seen = []
    for _ in range(30):
        tasks = [(number, runtime.go(work(number))) for number in range(20)]
        threads = [threading.Thread(target=wait, args=(kind, tasks)) for kind in ("result", "callback", "wait", "wait")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=5)
    runtime.flush(timeout=5)

    assert len(seen) == 30 * 20 * 4
    assert all(seen)


class SlowToMake(dict):
    """In the place of the meetings that are being made: lets the outcome in between a waiter's two looks for it."""

    def __init__(self, between):
        super().__init__()
        self._between = between

    def setdefault(self, *args):
        self._between()
        return super().setdefault(*args)


def test_a_waiter_that_comes_a_moment_after_the_outcome_is_told(runtime, monkeypatch):
    """As above, in the one order that shows it every time."""
    gate = threading.Event()
    task = runtime.to_thread(gate.wait, 5)

    def settle():
        gate.set()
        runtime.flush(timeout=5)

    assert not task.done()
    monkeypatch.setattr("omniloop._work.task._new_meetings", SlowToMake(settle))
    called = threading.Event()
    meeting = task._meet()
    monkeypatch.undo()

    assert meeting.outcome is not None
    task.add_done_callback(lambda _: called.set())
    assert called.is_set()
    assert len(concurrent.futures.wait([task], timeout=5).done) == 1


# --- done callbacks ---------------------------------------------------------------------------------------------------


def test_done_callbacks_are_called_with_the_task_in_order_and_at_once_if_it_is_done(runtime, held):
    calls = []
    for number in range(3):
        held.task.add_done_callback(lambda task, number=number: calls.append((number, task)))

    held.let_go()
    runtime.flush(timeout=5)
    assert calls == [(0, held.task), (1, held.task), (2, held.task)]

    held.task.add_done_callback(calls.append)
    assert calls[3] is held.task


@pytest.mark.promise("Ctrl-C in a done callback that is called at once reaches the program")
def test_ctrl_c_in_a_done_callback_that_is_called_at_once_reaches_the_program(runtime):
    """It was reported as the callback's own error, and the program went on."""
    task = runtime.go(asyncio.sleep(0))
    task.result(timeout=5)

    with pytest.raises(KeyboardInterrupt):
        task.add_done_callback(lambda _: signal.raise_signal(signal.SIGINT))


def test_a_done_callback_that_fails_is_reported_and_the_others_are_called(runtime, failures):
    held, calls = Held(runtime), []
    held.task.add_done_callback(lambda task: 1 / 0)
    held.task.add_done_callback(lambda task: (_ for _ in ()).throw(SystemExit))
    held.task.add_done_callback(calls.append)

    held.let_go()
    assert held.task.result(timeout=5) == "let go"
    runtime.flush(timeout=5)

    assert calls == [held.task]
    assert [type(failure.exception) for failure in failures] == [ZeroDivisionError, SystemExit]
    assert "A done callback of task" in failures[0].message


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("`cancel()` asks; the task is done when its clean-up is")
def test_cancel_asks_and_the_task_is_done_when_its_clean_up_is(runtime):
    async def work():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.to_thread(may_end.wait, 5)
            cleaned_up.set()

    started, may_end, cleaned_up = threading.Event(), threading.Event(), threading.Event()
    task = runtime.go(work())
    assert started.wait(timeout=5)

    assert task.cancel("enough") is True
    with pytest.raises(WaitTimeoutError):
        task.result(timeout=0.05)
    assert not task.cancelled()
    may_end.set()

    with pytest.raises(concurrent.futures.CancelledError, match="enough"):
        task.result(timeout=5)
    assert cleaned_up.is_set()
    assert task.cancelled()
    assert task.done()
    assert task.cancel() is False
    with pytest.raises(concurrent.futures.CancelledError):
        task.exception()


def test_work_that_swallows_the_cancellation_has_a_result(runtime):
    async def work():
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "survived"

    started = threading.Event()
    task = runtime.go(work())
    assert started.wait(timeout=5)
    assert task.cancel()

    assert task.result(timeout=5) == "survived"
    assert not task.cancelled()


def test_an_error_in_the_clean_up_is_the_outcome(runtime):
    async def work():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise KeyError("in the clean-up")

    started = threading.Event()
    task = runtime.go(work())
    assert started.wait(timeout=5)
    task.cancel()

    with pytest.raises(KeyError, match="in the clean-up"):
        task.result(timeout=5)


@pytest.mark.promise("What is cancelled before it starts never starts")
def test_what_is_cancelled_before_it_starts_never_starts(runtime):
    async def work():
        ran.append(1)

    ran, gate, blocked = [], threading.Event(), threading.Event()

    def block():
        blocked.set()
        gate.wait(timeout=5)

    runtime.call_soon(block)
    assert blocked.wait(timeout=5)
    tasks = [runtime.go(work()), runtime.call_soon(ran.append, 2), runtime.call_later(0, ran.append, 3)]
    assert all(task.cancel("too early") for task in tasks)
    assert [task.cancel() for task in tasks] == [True, True, True]
    gate.set()

    for task in tasks:
        with pytest.raises(concurrent.futures.CancelledError):
            task.result(timeout=5)
        assert task.cancelled()
    assert ran == []


def test_the_message_of_an_early_cancellation_arrives(runtime):
    gate = threading.Event()
    runtime.call_soon(gate.wait, 5)
    task = runtime.go(value())
    task.cancel("too early")
    gate.set()

    with pytest.raises(concurrent.futures.CancelledError, match="too early"):
        task.result(timeout=5)


def test_what_is_cancelled_in_its_first_step_is_cancelled_when_it_waits(runtime):
    async def work():
        in_first_step.set()
        assert go_on.wait(timeout=5)
        await asyncio.sleep(60)

    in_first_step, go_on = threading.Event(), threading.Event()
    task = runtime.go(work())
    assert in_first_step.wait(timeout=5)

    assert task.cancel()
    go_on.set()

    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)


def test_a_task_may_cancel_itself(runtime):
    async def work():
        handles[0].cancel()
        await asyncio.sleep(60)

    handles = []
    runtime.call_soon(lambda: handles.append(runtime.go(work()))).result(timeout=5)

    with pytest.raises(concurrent.futures.CancelledError):
        handles[0].result(timeout=5)


def test_cancelling_in_the_middle_of_another_threads_first_start_works():
    """The ledger was not made yet: the handle was there, and cancel() failed with an AssertionError."""

    def slow_factory():
        making.set()
        assert go_on.wait(timeout=5)
        return asyncio.new_event_loop()

    making, go_on, ran = threading.Event(), threading.Event(), []
    with Runtime(name="slow", loop_factory=slow_factory) as runtime:
        starter = threading.Thread(target=lambda: runtime.call_soon(ran.append, "first"))
        starter.start()
        assert making.wait(timeout=5)
        tasks = [runtime.go(value()), runtime.call_soon(ran.append, 1), runtime.call_later(0, ran.append, 2)]

        assert all(task.cancel() for task in tasks)
        go_on.set()
        starter.join(timeout=5)

        for task in tasks:
            with pytest.raises(concurrent.futures.CancelledError):
                task.result(timeout=5)
        runtime.flush(timeout=5)
    assert ran == ["first"]


def test_cancelling_races_with_the_work_and_either_wins(runtime, no_second_look):
    async def work():
        await asyncio.sleep(0)
        return "done"

    for _ in range(300):
        task = runtime.go(work())
        task.cancel()
        try:
            assert task.result(timeout=5) == "done"
        except concurrent.futures.CancelledError:
            assert task.cancelled()


# --- not for users ----------------------------------------------------------------------------------------------------


def test_only_the_runtime_settles_a_task(runtime, held):
    for setter in (
        lambda: held.task.set_result(1),
        lambda: held.task.set_exception(ValueError()),
        held.task.set_running_or_notify_cancel,
    ):
        with pytest.raises(RuntimeError, match=r"^set_\w+\(\) is not for users: a task is settled by the runtime"):
            setter()
    assert not held.task.done()


# --- outcomes that are odd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("submit", ["call_soon", "to_thread", "call_later", "go"])
def test_stop_iteration_becomes_a_runtime_error(runtime, submit):
    def stops():
        return next(iter(()))

    async def stops_too():
        raise StopIteration

    task = {
        "call_soon": lambda: runtime.call_soon(stops),
        "to_thread": lambda: runtime.to_thread(stops),
        "call_later": lambda: runtime.call_later(0, stops),
        "go": lambda: runtime.go(stops_too()),
    }[submit]()

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        task.result(timeout=5)
    assert isinstance(caught.value.__cause__, StopIteration)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(asyncio.wait_for(task, 5))


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, BaseException, ExceptionGroup]
)
@pytest.mark.parametrize("submit", ["call_soon", "to_thread", "call_later"])
def test_every_error_of_a_function_is_its_tasks_outcome(runtime, submit, error):
    def fails():
        raise error("of", [ValueError()]) if error is ExceptionGroup else error("of the function")

    task = runtime.call_later(0, fails) if submit == "call_later" else getattr(runtime, submit)(fails)

    assert type(task.exception(timeout=5)) is error
    with pytest.raises(error):
        task.result()


def test_a_function_that_raises_cancelled_error_has_failed(runtime):
    def fails():
        raise asyncio.CancelledError("raised by hand")

    task = runtime.call_soon(fails)

    assert isinstance(task.exception(timeout=5), asyncio.CancelledError)


# --- looks ------------------------------------------------------------------------------------------------------------


def test_the_repr_says_name_state_and_where_it_was_submitted(runtime, held):
    assert held.started.wait(timeout=5)
    assert "Held._work' running, submitted at File" in repr(held.task)
    assert "test_task.py" in repr(held.task)
    done = runtime.go(value(), name="mine")
    done.result(timeout=5)
    assert repr(done).startswith("<Task 'mine' succeeded, submitted at File")


def test_a_task_has_the_name_that_was_given_or_that_of_the_work(runtime):
    gate = threading.Event()
    runtime.call_soon(gate.wait, 5)
    tasks = [
        runtime.go(value()),
        runtime.go(value(), name="mine"),
        runtime.call_soon(time.monotonic),
        runtime.to_thread(len, ()),
    ]
    names = [task.get_name() for task in tasks]
    gate.set()
    runtime.flush(timeout=5)

    assert names == ["value", "mine", time.monotonic.__name__, "len"]
    assert [task.get_name() for task in tasks] == names


def test_the_asyncio_task_has_the_same_name(runtime):
    async def name():
        await asyncio.sleep(0)
        return asyncio.current_task().get_name()

    assert runtime.go(name(), name="mine").result(timeout=5) == "mine"


def test_a_task_is_a_future_and_can_be_a_generic_and_a_key(runtime):
    task = runtime.go(value())

    assert isinstance(task, concurrent.futures.Future)
    assert isinstance(task, Task)
    assert {task: 1}[task] == 1
    assert Task[int] is not Task
    assert issubclass(ForkedError, OmniloopError)
    assert issubclass(WouldDeadlockError, RuntimeError)
    task.result(timeout=5)
