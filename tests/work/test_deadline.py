"""`go(coro, timeout=…)`: what is not done in time is cancelled, what is not started in time never starts, and the error says which."""

import asyncio
import gc
import threading
import traceback
import weakref
from concurrent.futures import CancelledError

import pytest

import omniloop
from children import run_child
from omniloop import ClosedError, Runtime, TaskGroup, TaskTimeoutError, WaitTimeoutError

# Short for a test, and yet so long that a busy machine has started the work by then.
SOON = 1.0


@pytest.fixture
def runtime():
    with Runtime() as runtime:
        yield runtime


async def for_ever():
    await asyncio.Event().wait()


async def value():
    await asyncio.sleep(0)
    return 42


def test_work_that_is_done_in_time_has_its_value(runtime):
    async def at_once():
        return 42

    assert runtime.go(value(), timeout=60).result(timeout=5) == 42
    assert runtime.try_go(value(), timeout=60).result(timeout=5) == 42
    assert runtime.go(at_once(), timeout=float("inf")).result(timeout=5) == 42


@pytest.mark.promise(
    "`go(coro, timeout=…)` cancels what is not done in time, and the task fails with a `TaskTimeoutError`"
)
def test_work_that_is_not_done_in_time_is_cancelled_and_fails(runtime):
    cleaned_up = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    task = runtime.go(work(), timeout=SOON)
    error = task.exception(timeout=5)

    assert type(error) is TaskTimeoutError
    assert not isinstance(error, WaitTimeoutError)
    assert str(error).endswith("work was not done 1 s after its submission, and was cancelled.")
    assert cleaned_up == [True]
    assert not task.cancelled()
    assert task.get_name().endswith("work")


def test_the_error_shows_where_the_work_was(runtime):
    error = runtime.go(for_ever(), timeout=SOON).exception(timeout=5)

    assert "await asyncio.Event().wait()" in "".join(traceback.format_exception(error))


@pytest.mark.promise("Work that is not started within its `timeout` never starts")
def test_what_is_not_started_in_time_never_starts(runtime):
    ran = []
    busy, go_on = threading.Event(), threading.Event()

    async def work():
        ran.append(True)

    def block():
        busy.set()
        assert go_on.wait(timeout=5)

    runtime.call_soon(block)
    assert busy.wait(timeout=5)
    task = runtime.go(work(), timeout=0.01, name="late")
    with pytest.raises(WaitTimeoutError):
        task.result(timeout=0.02)
    go_on.set()

    with pytest.raises(TaskTimeoutError, match=r"^late was not started within 0\.01 s of its submission"):
        task.result(timeout=5)
    assert ran == []


def test_a_timeout_of_0_never_starts_the_work(runtime):
    ran = []

    async def work():
        ran.append(True)

    with pytest.raises(TaskTimeoutError, match="never will be"):
        runtime.go(work(), timeout=0).result(timeout=5)
    assert ran == []


@pytest.mark.promise("Work that swallows the cancellation of its `timeout` keeps its value")
def test_work_that_swallows_the_cancellation_keeps_its_value(runtime):
    async def stubborn():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "kept"

    assert runtime.go(stubborn(), timeout=SOON).result(timeout=5) == "kept"


@pytest.mark.promise("A `TimeoutError` of the work's own comes out as it is, with a `timeout` too")
def test_a_timeout_of_the_works_own_comes_out_as_it_is(runtime):
    async def own():
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    async def own_while_it_is_cancelled():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError("mine") from None

    assert type(runtime.go(own(), timeout=60).exception(timeout=5)) is TimeoutError
    error = runtime.go(own_while_it_is_cancelled(), timeout=SOON).exception(timeout=5)
    assert (type(error), str(error)) == (TimeoutError, "mine")


def test_an_error_of_the_clean_up_comes_out_as_it_is(runtime):
    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("in the clean-up")

    assert type(runtime.go(work(), timeout=SOON).exception(timeout=5)) is LookupError


def test_cancelling_the_task_before_its_time_cancels_it(runtime):
    started = threading.Event()

    async def work():
        started.set()
        await asyncio.Event().wait()

    task = runtime.go(work(), timeout=60)
    assert started.wait(timeout=5)
    task.cancel()

    with pytest.raises(CancelledError):
        task.result(timeout=5)


@pytest.mark.parametrize("timeout", ["5", float("nan"), object()])
def test_a_timeout_that_is_no_number_is_refused_and_the_coroutine_closed(runtime, timeout):
    for call in (runtime.go, runtime.try_go, omniloop.go, omniloop.try_go):
        with pytest.raises(ValueError, match="give seconds as a number"):
            call(for_ever(), timeout=timeout)
    gc.collect()


def test_what_is_refused_or_never_started_leaves_no_never_awaited_behind():
    runtime = Runtime()
    busy, go_on = threading.Event(), threading.Event()

    def block():
        busy.set()
        assert go_on.wait(timeout=5)

    runtime.call_soon(block)
    assert busy.wait(timeout=5)
    cancelled = runtime.go(for_ever(), timeout=60)
    cancelled.cancel()
    go_on.set()
    runtime.shutdown()
    with pytest.raises(ClosedError):
        runtime.go(for_ever(), timeout=60)
    gc.collect()

    assert cancelled.cancelled()


def test_a_handle_that_is_dropped_does_not_live_in_a_cycle(runtime):
    task = runtime.go(for_ever(), timeout=SOON)
    gc.disable()
    try:
        error = weakref.ref(task.exception(timeout=5))
        runtime.flush(timeout=5)
        del task
        runtime.run(value())
        assert error() is None
    finally:
        gc.enable()


def test_a_task_of_a_group_has_a_time_of_its_own(runtime):
    with pytest.raises(ExceptionGroup) as failures, TaskGroup(runtime=runtime, supervised=True, limit=2) as group:
        quick = group.go(value(), timeout=60)
        group.go(for_ever(), timeout=SOON)

    assert [type(error) for error in failures.value.exceptions] == [TaskTimeoutError]
    assert quick.result(timeout=0) == 42


def test_a_task_whose_turn_in_a_group_comes_too_late_never_starts():
    ran = []

    async def work():
        ran.append(True)

    group = TaskGroup(limit=1, supervised=True)
    with pytest.raises(ExceptionGroup), group:
        first = group.go(for_ever())
        second = group.go(work(), timeout=SOON)
        error = second.exception(timeout=5)
        first.cancel()

    assert type(error) is TaskTimeoutError
    assert ran == []


def test_a_timeout_that_nobody_asked_for_is_reported_with_the_place_where_it_waited():
    def program():
        async def slow():
            await asyncio.sleep(60)

        omniloop.go(slow(), timeout=SOON)

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15
    assert "slow was not done 1 s after its submission, and was cancelled." in result.stderr
    assert "in slow" in result.stderr
    assert result.stderr.count("omniloop.TaskTimeoutError") == 1
