"""
A `Task` in the place of a `concurrent.futures.Future`, and `go` in the place of `asyncio.run_coroutine_threadsafe`.

The cases are those that the standard library tests for its own; setters and the immediate cancel apart, which a task has not.
"""

import asyncio
import concurrent.futures
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION

import pytest

from omniloop import NotAsyncError, Task

CASES = {"finished", "failed", "cancelled", "running", "pending"}


class Gate:
    """An event on the loop that is opened from other threads."""

    def __init__(self, runtime):
        self._runtime = runtime
        self._event = runtime.call_soon(asyncio.Event).result(timeout=5)

    def open(self):
        self._runtime.call_soon(self._event.set).result(timeout=5)

    async def wait(self):
        await self._event.wait()


@pytest.fixture
def gate(runtime):
    gate = Gate(runtime)
    yield gate
    gate.open()


async def value(result, gate=None):
    if gate is not None:
        await gate.wait()
    return result


async def failure(error, gate=None):
    if gate is not None:
        await gate.wait()
    raise error


@pytest.fixture
def case(runtime, gate):
    """One task in each state."""
    blocked, go_on = threading.Event(), threading.Event()
    tasks = {
        "finished": runtime.go(value(42)),
        "failed": runtime.go(failure(OSError("of the work"))),
        "cancelled": runtime.go(value(None, gate)),
        "running": runtime.go(value(None, gate)),
    }
    tasks["cancelled"].cancel()
    concurrent.futures.wait([tasks["finished"], tasks["failed"], tasks["cancelled"]], timeout=5)

    def block():
        blocked.set()
        go_on.wait(timeout=5)

    runtime.call_soon(block)
    assert blocked.wait(timeout=5)
    tasks["pending"] = runtime.go(value(None))
    yield tasks
    go_on.set()
    tasks["failed"].exception()


# --- the questions, in every state ------------------------------------------------------------------------------------


def test_done_cancelled_and_running_in_every_state(case):
    assert {name for name in CASES if case[name].done()} == {"finished", "failed", "cancelled"}
    assert {name for name in CASES if case[name].cancelled()} == {"cancelled"}
    assert {name for name in CASES if case[name].running()} == {"running"}


def test_result_in_every_state(case):
    assert case["finished"].result(timeout=0) == 42
    with pytest.raises(OSError, match="of the work"):
        case["failed"].result(timeout=0)
    with pytest.raises(concurrent.futures.CancelledError):
        case["cancelled"].result(timeout=0)
    for name in ("running", "pending"):
        with pytest.raises(concurrent.futures.TimeoutError):
            case[name].result(timeout=0)


def test_exception_in_every_state(case):
    assert case["finished"].exception(timeout=0) is None
    assert isinstance(case["failed"].exception(timeout=0), OSError)
    with pytest.raises(concurrent.futures.CancelledError):
        case["cancelled"].exception(timeout=0)
    for name in ("running", "pending"):
        with pytest.raises(concurrent.futures.TimeoutError):
            case[name].exception(timeout=0)


def test_cancel_in_every_state(case):
    assert {name for name in CASES if case[name].cancel()} == {"running", "pending"}


def test_the_repr_in_every_state(case):
    states = {
        "finished": "succeeded",
        "failed": "failed",
        "cancelled": "cancelled",
        "running": "running",
        "pending": "pending",
    }

    for name, state in states.items():
        assert f" {state}, submitted at " in repr(case[name])


@pytest.mark.promise("`concurrent.futures.wait` and `as_completed` take tasks, in every state")
def test_wait_and_as_completed_see_every_state(case):
    done, not_done = concurrent.futures.wait(case.values(), timeout=0)

    assert done == {case["finished"], case["failed"], case["cancelled"]}
    assert not_done == {case["running"], case["pending"]}
    done_first = list(concurrent.futures.as_completed([case["finished"], case["failed"], case["cancelled"]], timeout=0))
    assert set(done_first) == done
    with pytest.raises(concurrent.futures.TimeoutError, match=r"2 \(of 5\) futures unfinished"):
        list(concurrent.futures.as_completed(case.values(), timeout=0.01))


def test_a_result_an_exception_and_a_cancellation_that_come_later_end_the_wait(runtime, gate):
    value_later, failure_later = runtime.go(value(42, gate)), runtime.go(failure(OSError(), gate))
    cancelled_later = runtime.go(asyncio.sleep(60))
    threading.Timer(0.02, gate.open).start()
    threading.Timer(0.02, cancelled_later.cancel).start()

    assert value_later.result(timeout=5) == 42
    assert isinstance(failure_later.exception(timeout=5), OSError)
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled_later.result(timeout=5)


# --- callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("outcome", ["value", "error", "cancellation"])
def test_a_callback_gets_the_future_whatever_its_outcome(runtime, gate, when, outcome):
    def ask(future):
        if future.cancelled():
            seen.append("cancellation")
        elif future.exception() is not None:
            seen.append("error")
        else:
            seen.append("value")
        called.set()

    seen, called = [], threading.Event()
    task = runtime.go(failure(OSError(), gate) if outcome == "error" else value(1, gate))
    if when == "before":
        task.add_done_callback(ask)
    if outcome == "cancellation":
        task.cancel()
    else:
        gate.open()
    concurrent.futures.wait([task], timeout=5)
    if when == "after":
        task.add_done_callback(ask)

    assert called.wait(timeout=5)
    assert seen == [outcome]


def test_callbacks_are_called_in_the_order_they_were_added_though_one_fails(runtime, gate, failures):
    order = []
    task = runtime.go(value(1, gate))
    task.add_done_callback(lambda _: order.append(1))
    task.add_done_callback(lambda _: 1 / 0)
    task.add_done_callback(lambda _: order.append(3))
    gate.open()
    assert task.result(timeout=5) == 1
    runtime.flush(timeout=5)

    assert order == [1, 3]
    assert [type(failure.exception) for failure in failures] == [ZeroDivisionError]


def test_a_callback_that_fails_on_a_done_future_does_not_reach_the_caller(runtime, failures):
    task = runtime.go(value(1))
    task.result(timeout=5)

    task.add_done_callback(lambda _: 1 / 0)
    runtime.flush(timeout=5)

    assert [type(failure.exception) for failure in failures] == [ZeroDivisionError]


# --- concurrent.futures.wait ------------------------------------------------------------------------------------------


def test_wait_for_the_first(runtime, gate):
    first, second = runtime.go(value(1)), runtime.go(value(2, gate))

    done, not_done = concurrent.futures.wait([first, second], timeout=5, return_when=FIRST_COMPLETED)

    assert (done, not_done) == ({first}, {second})


def test_wait_for_the_first_that_comes_later(runtime, gate):
    slow = [runtime.go(asyncio.sleep(60)) for _ in range(3)]
    task = runtime.go(value(1, gate))
    threading.Timer(0.02, gate.open).start()

    done, not_done = concurrent.futures.wait([*slow, task], timeout=5, return_when=FIRST_COMPLETED)

    assert (done, not_done) == ({task}, set(slow))
    for task in slow:
        task.cancel()


def test_wait_for_the_first_exception(runtime, gate):
    other = runtime.call_soon(asyncio.Event).result(timeout=5)
    fine, fails, late = runtime.go(value(1)), runtime.go(failure(OSError(), gate)), runtime.go(other.wait())
    threading.Timer(0.02, gate.open).start()

    done, not_done = concurrent.futures.wait([fine, fails, late], timeout=5, return_when=FIRST_EXCEPTION)

    assert (done, not_done) == ({fine, fails}, {late})
    assert isinstance(fails.exception(), OSError)
    runtime.call_soon(other.set)


def test_wait_for_the_first_exception_that_is_there_already(runtime, gate):
    fails = runtime.go(failure(OSError()))
    fails.exception(timeout=5)
    late = runtime.go(value(1, gate))

    done, not_done = concurrent.futures.wait([fails, late], timeout=5, return_when=FIRST_EXCEPTION)

    assert (done, not_done) == ({fails}, {late})


def test_wait_for_the_first_exception_of_none_waits_for_all_and_a_cancellation_is_none(runtime, gate):
    cancelled, fine = runtime.go(asyncio.sleep(60)), runtime.go(value(1, gate))
    cancelled.cancel()
    threading.Timer(0.02, gate.open).start()

    done, not_done = concurrent.futures.wait([cancelled, fine], timeout=5, return_when=FIRST_EXCEPTION)

    assert (done, not_done) == ({cancelled, fine}, set())


def test_wait_for_all_with_results_errors_cancellations_and_futures_of_a_pool(runtime, gate):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        foreign = pool.submit(int, "7")
        tasks = [runtime.go(value(1, gate)), runtime.go(failure(OSError(), gate)), runtime.go(asyncio.sleep(60))]
        tasks[2].cancel()
        threading.Timer(0.02, gate.open).start()

        done, not_done = concurrent.futures.wait([*tasks, foreign], timeout=5, return_when=ALL_COMPLETED)

    assert (done, not_done) == ({*tasks, foreign}, set())
    tasks[1].exception()


def test_wait_that_times_out_leaves_the_futures_usable(runtime, gate):
    task = runtime.go(value(1, gate))
    for _ in range(3):
        assert concurrent.futures.wait([task], timeout=0.01).not_done == {task}
    assert task._waiters == []
    gate.open()

    assert concurrent.futures.wait([task, task], timeout=5).done == {task}


# --- as_completed -----------------------------------------------------------------------------------------------------


def test_as_completed_yields_in_the_order_of_completion(runtime):
    gates = [Gate(runtime) for _ in range(3)]
    tasks = [runtime.go(value(number, gate)) for number, gate in enumerate(gates)]
    order = []
    gates[2].open()
    for task in concurrent.futures.as_completed(tasks, timeout=5):
        order.append(task.result())
        for gate, number in ((gates[0], 2), (gates[1], 0)):
            if order[-1] == number:
                gate.open()

    assert order == [2, 0, 1]


def test_as_completed_yields_each_once_however_often_it_is_given(runtime, gate):
    task = runtime.go(value(1, gate))
    threading.Timer(0.02, gate.open).start()

    assert list(concurrent.futures.as_completed([task, task, task], timeout=5)) == [task]


def test_as_completed_with_a_timeout_of_nothing_yields_what_is_done(runtime, gate):
    fast, slow = runtime.go(value(1)), runtime.go(value(2, gate))
    fast.result(timeout=5)
    seen = []

    with pytest.raises(concurrent.futures.TimeoutError):
        seen.extend(concurrent.futures.as_completed([fast, slow], timeout=0))

    assert seen == [fast]


# --- asyncio.run_coroutine_threadsafe, with go in its place -----------------------------------------------------------


async def add(a, b, *, fail=False, cancel=False):
    await asyncio.sleep(0.01)
    if fail:
        raise RuntimeError("fails")
    if cancel:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)
    return a + b


def in_another_threads_loop(function):
    """Run *function* in an executor of another loop that runs meanwhile, as the standard library's tests do."""

    async def main():
        return await asyncio.get_running_loop().run_in_executor(None, function)

    return asyncio.run(main())


def test_the_result_arrives_in_another_thread(runtime):
    assert in_another_threads_loop(lambda: runtime.go(add(1, 2)).result(timeout=5)) == 3


def test_the_error_arrives_in_another_thread(runtime):
    with pytest.raises(RuntimeError, match="fails"):
        in_another_threads_loop(lambda: runtime.go(add(1, 2, fail=True)).result(timeout=5))


def test_a_timeout_in_another_thread_does_not_end_the_work(runtime, gate):
    def times_out():
        tasks.append(runtime.go(value("after all", gate)))
        return tasks[0].result(timeout=0.01)

    tasks = []
    with pytest.raises(TimeoutError):
        in_another_threads_loop(times_out)
    gate.open()
    assert tasks[0].result(timeout=5) == "after all"


def test_a_cancellation_from_another_thread_arrives(runtime):
    def cancels():
        task = runtime.go(asyncio.sleep(60))
        task.cancel()
        return task.result(timeout=5)

    # Out of the other loop's executor it comes as that loop's own.
    with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        in_another_threads_loop(cancels)


def test_work_that_cancels_itself_is_cancelled(runtime):
    with pytest.raises(concurrent.futures.CancelledError):
        runtime.go(add(1, 2, cancel=True)).result(timeout=5)


def test_a_task_factory_that_fails_is_the_error(runtime):
    def factory(loop, coro, **options):
        raise NameError("of the factory")

    runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(factory)).result(timeout=5)
    try:
        with pytest.raises(NameError, match="of the factory"):
            runtime.go(add(1, 2)).result(timeout=5)
    finally:
        runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(None)).result(timeout=5)


def test_what_is_no_coroutine_is_refused(runtime):
    with pytest.raises(TypeError):
        runtime.go(add)
    with pytest.raises(NotAsyncError):
        runtime.go("add(1, 2)")


# --- asyncio.wrap_future ----------------------------------------------------------------------------------------------


def test_wrap_future_passes_on_value_error_and_cancellation(runtime, gate):
    async def main():
        assert await asyncio.wrap_future(runtime.go(add(1, 2))) == 3
        with pytest.raises(RuntimeError, match="fails"):
            await asyncio.wrap_future(runtime.go(add(1, 2, fail=True)))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wrap_future(runtime.go(add(1, 2, cancel=True)))

    asyncio.run(asyncio.wait_for(main(), 5))


def test_wrap_future_of_a_task_that_is_done(runtime):
    async def main():
        return await asyncio.wrap_future(task)

    task = runtime.go(value(7))
    task.result(timeout=5)

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 7


def test_cancelling_a_wrapped_future_asks_the_work_to_end(runtime):
    async def work():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def main():
        wrapped = asyncio.wrap_future(task)
        await asyncio.to_thread(started.wait, 5)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    started, ended = threading.Event(), threading.Event()
    task = runtime.go(work())
    asyncio.run(asyncio.wait_for(main(), 5))

    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)
    assert ended.is_set()


def test_what_asyncio_asks_a_chained_future_for_in_one_call(runtime, case):
    assert case["finished"]._get_snapshot() == (True, False, 42, None)
    assert case["cancelled"]._get_snapshot()[:2] == (True, True)
    assert case["running"]._get_snapshot()[0] is False
    done, cancelled, result, error = case["failed"]._get_snapshot()
    assert (done, cancelled, result) == (True, False, None)
    assert isinstance(error, OSError)


def test_asyncio_does_not_take_a_task_for_a_future_of_its_own(runtime):
    task = runtime.go(value(1))

    assert isinstance(task, Task)
    assert not asyncio.isfuture(task)
    assert not asyncio.iscoroutine(task)
    assert task.result(timeout=5) == 1


@pytest.mark.promise("Asking a finished handle again and again, by `concurrent.futures.wait`, makes it no larger")
def test_asking_a_finished_handle_again_and_again_makes_it_no_larger(runtime):
    """Each look left something at the handle, which a program that polls its handles kept for ever."""
    task = runtime.go(value(1))
    runtime.flush(timeout=5)

    concurrent.futures.wait([task], timeout=0)
    meeting = task._meet()
    before = {name: str(getattr(meeting, name)) for name in meeting.__slots__}
    for _ in range(10):
        assert concurrent.futures.wait([task], timeout=0).done == {task}

    assert task._meet() is meeting
    assert before == {name: str(getattr(meeting, name)) for name in meeting.__slots__}
