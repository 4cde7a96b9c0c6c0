"""`await task` works on any asyncio loop, and means what awaiting an `asyncio.Task` means."""

import asyncio
import concurrent.futures
import math
import signal
import sys
import threading
import time

import pytest

import omniloop
from omniloop import Runtime, TaskGroup, WouldDeadlockError


@pytest.fixture(params=["asyncio", "uvloop"])
def run_elsewhere(request):
    """Run a coroutine on a loop that is not omniloop's, in this thread."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    def run(coro):
        loop = factory()
        try:
            return loop.run_until_complete(asyncio.wait_for(coro, 5))
        finally:
            loop.close()

    return run


async def work():
    await asyncio.sleep(0.001)
    return "done"


async def fails():
    await asyncio.sleep(0.001)
    raise OSError("of the work")


class Patient:
    """Work that waits, cleans up when it is cancelled, and takes its time for that."""

    def __init__(self, runtime, swallows=False):
        self.started, self.may_end, self.cleaned_up = threading.Event(), threading.Event(), threading.Event()
        self._swallows = swallows
        self.task = runtime.go(self._work())
        assert self.started.wait(timeout=5)

    async def _work(self):
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            self.message = error.args
            if not self._swallows:
                raise
        finally:
            await asyncio.to_thread(self.may_end.wait, 5)
            self.cleaned_up.set()
        return "survived"


# --- value, error, cancellation ---------------------------------------------------------------------------------------


@pytest.mark.promise("Awaiting works on any asyncio loop")
def test_awaiting_elsewhere_gives_the_value_or_the_error(runtime, run_elsewhere):
    async def main():
        return await task

    task = runtime.go(work())
    assert run_elsewhere(main()) == "done"
    assert run_elsewhere(main()) == "done"  # Again, when it is done.

    task = runtime.go(fails())
    with pytest.raises(OSError, match="of the work"):
        run_elsewhere(main())


def test_awaiting_on_the_own_loop_gives_the_value_or_the_error(runtime):
    async def main():
        assert await runtime.go(work()) == "done"
        assert await runtime.to_thread(int, "7") == 7
        assert await runtime.call_soon(int, "8") == 8
        with pytest.raises(OSError, match="of the work"):
            await runtime.go(fails())

    runtime.go(main()).result(timeout=5)


def test_a_cancelled_task_raises_the_cancelled_error_of_asyncio(runtime, run_elsewhere):
    async def main():
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        return "went on"

    task = runtime.go(asyncio.sleep(60))
    task.cancel("enough")

    assert run_elsewhere(main()) == "went on"


def test_tasks_can_be_gathered_shielded_waited_for_and_wrapped_elsewhere(runtime, run_elsewhere):
    async def main():
        assert await asyncio.gather(runtime.go(work()), runtime.go(work())) == ["done", "done"]
        assert await asyncio.shield(runtime.go(work())) == "done"
        assert await asyncio.wait_for(runtime.go(work()), 5) == "done"
        done, _ = await asyncio.wait({asyncio.ensure_future(runtime.go(work()))}, timeout=5)
        assert done.pop().result() == "done"
        async with asyncio.TaskGroup() as group:
            inner = group.create_task(wait_for(runtime.go(work())))
        assert inner.result() == "done"

    async def wait_for(task):
        return await task

    run_elsewhere(main())


def test_two_loops_may_await_one_task_at_once(runtime):
    def elsewhere(number):
        results[number] = asyncio.run(wait())

    async def wait():
        ready.wait(timeout=5)
        return await task

    ready, results = threading.Barrier(4), {}
    for _ in range(50):
        results.clear()
        task = runtime.go(work())
        threads = [threading.Thread(target=elsewhere, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=5)
        assert results == dict.fromkeys(range(4), "done")


def test_awaiting_does_not_block_the_loop_that_awaits(runtime, run_elsewhere):
    async def main():
        ticks = 0
        waiter = asyncio.ensure_future(wait())
        while not waiter.done():
            await asyncio.sleep(0.001)
            ticks += 1
            if ticks == 5:
                gate.set()
        return ticks

    async def wait():
        return await runtime.to_thread(gate.wait, 5)

    gate = threading.Event()
    assert run_elsewhere(main()) >= 5


def test_a_task_can_be_awaited_by_one_that_awaits_it_in_turn_elsewhere(runtime, run_elsewhere):
    """Across two loops and back."""

    async def main():
        return await runtime.go(on_omniloop())

    async def on_omniloop():
        return await other.go(work())

    with Runtime(name="other") as other:
        assert run_elsewhere(main()) == "done"


# --- cancelling the waiter --------------------------------------------------------------------------------------------


@pytest.mark.promise("Cancelling an awaiting task asks the work to end, and waits for its clean-up")
@pytest.mark.parametrize("where", ["elsewhere", "on the own loop"])
def test_cancelling_the_waiter_asks_the_work_and_waits_for_its_clean_up(runtime, where):
    async def main():
        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiter.cancel("enough")
        done, pending = await asyncio.wait({waiter}, timeout=0.05)
        assert (done, pending) == (set(), {waiter})
        patient.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert patient.cleaned_up.is_set()

    async def wait():
        return await patient.task

    patient = Patient(runtime)
    if where == "elsewhere":
        asyncio.run(asyncio.wait_for(main(), 5))
    else:
        runtime.go(main()).result(timeout=5)

    assert patient.task.cancelled()
    assert patient.message == ("enough",)


def test_if_the_work_swallows_the_cancellation_its_result_comes_out(runtime, run_elsewhere):
    async def main():
        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiter.cancel()
        patient.may_end.set()
        return await waiter

    async def wait():
        return await patient.task

    patient = Patient(runtime, swallows=True)

    assert run_elsewhere(main()) == "survived"


def test_a_shielded_task_goes_on_when_the_waiter_is_cancelled(runtime, run_elsewhere):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(patient.task), 0.01)

    patient = Patient(runtime, swallows=True)
    run_elsewhere(main())
    assert not patient.task.done()

    patient.may_end.set()
    patient.task.cancel()
    assert patient.task.result(timeout=5) == "survived"


def test_waiting_for_a_time_cancels_the_work_as_with_a_task_of_asyncio(runtime, run_elsewhere):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.01)
        assert task.cancelled()
        async with asyncio.timeout(5):
            assert await runtime.go(work()) == "done"

    task = runtime.go(asyncio.sleep(60))
    run_elsewhere(main())


class Stuck:
    """A function that runs, and that nothing can interrupt."""

    def __init__(self):
        self.started, self.may_end = threading.Event(), threading.Event()

    def __call__(self):
        self.started.set()
        self.may_end.wait(timeout=10)
        return "done"


@pytest.mark.promise(
    "Cancelling an `await` of work that can't be cancelled any more, a function that runs, ends the waiting at once; the work goes on"
)
@pytest.mark.parametrize("call", ["to_thread", "call_soon"])
def test_cancelling_the_wait_for_a_function_that_runs_ends_the_waiting(runtime, run_elsewhere, call):
    """It was lost: whoever waited went on with the function's result, as if it had not been asked."""

    async def main():
        waiter = asyncio.ensure_future(wait())
        await asyncio.to_thread(stuck.started.wait, 5)
        waiter.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await waiter
        return task.done()

    async def wait():
        return await task

    stuck = Stuck()
    task = getattr(runtime, call)(stuck)

    assert run_elsewhere(main()) is False
    stuck.may_end.set()
    assert task.result(timeout=5) == "done"


@pytest.mark.promise("A time limit around an `await` of a function that runs is kept")
@pytest.mark.parametrize("limit", ["timeout", "wait_for", "gather", "anyio", "asyncio.TaskGroup", "TaskGroup"])
def test_a_time_limit_around_a_function_that_runs_is_kept(runtime, run_elsewhere, limit):
    async def main():
        await asyncio.to_thread(stuck.started.wait, 5)
        turns = 0

        def turn():
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_later(0.001, turn)

        turn()
        await LIMITS[limit](task)
        assert not task.done()

    stuck = Stuck()
    task = runtime.to_thread(stuck)
    try:
        run_elsewhere(main())
    finally:
        stuck.may_end.set()
    assert task.result(timeout=5) == "done"


async def by_timeout(task):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await task


async def by_wait_for(task):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.01)


async def by_gather(task):
    both = asyncio.gather(task, asyncio.sleep(60))
    await asyncio.sleep(0.01)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both


async def by_anyio(task):
    anyio = pytest.importorskip("anyio")
    with anyio.move_on_after(0.01) as scope:
        await task
    assert scope.cancelled_caught


async def by_asyncios_group(task):
    async def wait():
        await task

    async def fail():
        await asyncio.sleep(0.01)
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(fail())


async def by_group(task):
    with pytest.raises(TimeoutError):
        async with TaskGroup(timeout=0.01):
            await task


LIMITS = {
    "timeout": by_timeout,
    "wait_for": by_wait_for,
    "gather": by_gather,
    "anyio": by_anyio,
    "asyncio.TaskGroup": by_asyncios_group,
    "TaskGroup": by_group,
}


@pytest.mark.promise(
    "Work that awaits a function that runs can be cancelled: `shutdown(0)` waits for no clean-up that never comes"
)
def test_work_that_awaits_one_function_after_another_can_be_cancelled():
    async def rounds():
        while True:
            await small.to_thread(stuck)

    stuck = Stuck()
    small = Runtime(name="small", cancel_timeout=60)
    try:
        task = small.go(rounds())
        assert stuck.started.wait(timeout=5)
        task.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            task.result(timeout=5)
    finally:
        stuck.may_end.set()
        small.shutdown()


def test_what_is_waited_for_no_more_is_reported_if_it_fails(runtime, failures):
    async def main():
        call = runtime.to_thread(fail)
        # One that has not begun would be cancelled.
        assert begun.wait(timeout=5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)

    def fail():
        begun.set()
        may_end.wait(timeout=5)
        raise LookupError("nobody waited")

    begun, may_end = threading.Event(), threading.Event()
    asyncio.run(main())
    may_end.set()
    runtime.flush(timeout=5)

    assert [str(failure.exception) for failure in failures] == ["nobody waited"]


# --- waiting without owning -------------------------------------------------------------------------------------------


@pytest.mark.promise("`await task.wait(timeout)` leaves the work alone, and leaves nothing behind")
def test_a_wait_leaves_the_work_alone_and_nothing_behind(runtime, run_elsewhere):
    async def main():
        assert await patient.task.wait(0) is False
        before = asyncio.all_tasks()
        for _ in range(100):
            assert await patient.task.wait(1e-6) is False
        assert asyncio.all_tasks() == before
        waiter = asyncio.ensure_future(patient.task.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not patient.task._meet().callbacks
        patient.may_end.set()
        patient.task.cancel()
        assert await patient.task.wait(float("inf")) is True
        assert await patient.task.wait() is True

    patient = Patient(runtime, swallows=True)
    run_elsewhere(main())

    assert patient.task.result(timeout=0) == "survived"


def test_a_wait_does_not_claim_the_failure(runtime, run_elsewhere, failures):
    async def main():
        assert await runtime.go(fails()).wait(5) is True

    run_elsewhere(main())
    runtime.flush(timeout=5)

    assert [str(failure.exception) for failure in failures] == ["of the work"]


@pytest.mark.parametrize("timeout", ["5", math.nan, 10**400])
def test_a_wait_of_no_number_is_refused(runtime, timeout):
    with pytest.raises(ValueError, match="timeout="):
        asyncio.run(runtime.go(work()).wait(timeout))


def test_a_wait_for_oneself_is_told_so(runtime):
    async def work():
        await asyncio.to_thread(ready.wait, 5)
        await task.wait()

    ready = threading.Event()
    task = runtime.go(work())
    ready.set()
    with pytest.raises(WouldDeadlockError, match="awaits itself"):
        task.result(timeout=5)


def test_a_wait_where_no_loop_runs_is_told_what_to_do(runtime):
    patient = Patient(runtime)
    with pytest.raises(RuntimeError, match="No event loop runs here"):
        patient.task.wait().send(None)
    patient.may_end.set()
    patient.task.cancel()


# --- asyncio.shield() -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "eager"])
def run_shielded(request):
    """`asyncio.run`, also with tasks that start eagerly."""
    if request.param == "eager" and sys.version_info < (3, 12):
        pytest.skip("from 3.12 on")

    def run(main):
        with asyncio.Runner() as runner:
            if request.param == "eager":
                runner.get_loop().set_task_factory(asyncio.eager_task_factory)
            return runner.run(main)

    return run


@pytest.mark.promise("What `asyncio.shield` protects goes on when the loop of the caller ends")
def test_what_shield_protects_goes_on_when_the_loop_of_the_caller_ends(runtime, run_shielded):
    """The end of `asyncio.run` cancels the task that shield wraps the handle in, and that cancelled the work."""

    async def given_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(patient.task), 0.01)

    async def still_held():
        kept.append(asyncio.shield(patient.task))
        await asyncio.sleep(0.01)

    kept = []
    patient = Patient(runtime)
    run_shielded(given_up())
    run_shielded(still_held())
    # In order with a cancellation that was asked for.
    runtime.run(asyncio.sleep(0), timeout=5)

    assert not hasattr(patient, "message")
    assert not patient.task.done()
    assert kept[0].cancelled()
    patient.may_end.set()
    patient.task.cancel()


@pytest.mark.promise("Giving up an `asyncio.shield` leaves no task behind")
def test_giving_up_a_shield_leaves_no_task_behind(runtime, run_shielded):
    async def main():
        before = asyncio.all_tasks()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(patient.task), 1e-6)
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert not patient.task._meet().callbacks

    patient = Patient(runtime)
    run_shielded(main())
    patient.may_end.set()
    patient.task.cancel()


def test_a_task_that_one_has_wrapped_oneself_outlives_the_shield(runtime, run_shielded):
    async def main():
        mine = asyncio.ensure_future(patient.task)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(mine), 0.01)
        await asyncio.sleep(0.01)
        assert not mine.done()
        patient.may_end.set()
        patient.task.cancel()
        return await mine

    patient = Patient(runtime, swallows=True)

    assert run_shielded(main()) == "survived"


@pytest.mark.parametrize("wrap", [asyncio.gather, asyncio.ensure_future])
def test_what_else_wraps_a_task_goes_on_cancelling_the_work(runtime, run_shielded, wrap):
    async def main():
        wrapped = wrap(patient.task)
        await asyncio.sleep(0.01)
        wrapped.cancel()
        patient.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    patient = Patient(runtime)
    run_shielded(main())

    assert patient.task.cancelled()


# --- loops that end first ---------------------------------------------------------------------------------------------


def test_a_loop_that_is_closed_while_it_awaits_harms_nobody(runtime):
    async def wait():
        return await patient.task

    patient = Patient(runtime, swallows=True)
    loop = asyncio.new_event_loop()
    waiter = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    patient.may_end.set()
    patient.task.cancel()

    assert patient.task.result(timeout=5) == "survived"
    waiter._log_destroy_pending = False


def test_a_loop_that_is_closed_in_the_thread_that_settles_harms_nobody(runtime):
    """The same, where the task ends in the very thread whose loop is closed: the wake-up took the way without a wake-up call."""

    async def wait():
        return await task

    blocked, gate = threading.Event(), threading.Event()
    with Runtime(name="small", max_workers=1) as small:
        small.to_thread(lambda: (blocked.set(), gate.wait(5)))
        assert blocked.wait(timeout=5)
        task = small.to_thread(int)
        loop = asyncio.new_event_loop()
        waiter = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

        assert task.cancel()

        with pytest.raises(concurrent.futures.CancelledError):
            task.result(timeout=0)
        gate.set()
    waiter._log_destroy_pending = False


# --- what can't be awaited --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_step", [True, False])
def test_a_task_that_awaits_itself_is_told_so(runtime, first_step):
    async def itself():
        if not first_step:
            await asyncio.sleep(0)
        await handles[0]

    handles = []
    runtime.call_soon(lambda: handles.append(runtime.go(itself()))).result(timeout=5)

    with pytest.raises(WouldDeadlockError, match="awaits itself"):
        handles[0].result(timeout=5)


def test_awaiting_without_a_loop_is_told_what_to_do(runtime):
    async def wait():
        return await task

    task = runtime.go(asyncio.sleep(60))
    coro = wait()
    with pytest.raises(RuntimeError, match=r"result\(\)"):
        coro.send(None)
    task.cancel()


def test_a_task_that_is_done_can_be_awaited_where_no_loop_runs(runtime):
    async def wait():
        return await task

    task = runtime.go(work())
    task.result(timeout=5)

    with pytest.raises(StopIteration) as stopped:
        wait().send(None)
    assert stopped.value.value == "done"


def test_asyncio_wait_on_a_bare_task_is_an_error_and_not_a_hang():
    async def main():
        task = omniloop.go(asyncio.sleep(0.01, "slept"))
        with pytest.raises(omniloop.WrongLoopError, match="ensure_future"):
            await asyncio.wait([task])
        done, _ = await asyncio.wait([asyncio.ensure_future(task)], timeout=5)
        return done.pop().result()

    assert asyncio.run(main()) == "slept"


def test_it_can_be_awaited_by_tasks_of_another_make():
    """Those of PySide6's QtAsyncio keep their callbacks without contexts: a look for `shield` among them was a TypeError."""

    class Task(asyncio.Task):
        _callbacks = property(lambda self: [print])

    async def main():
        asyncio.get_running_loop().set_task_factory(lambda loop, coro, **options: Task(coro, loop=loop, **options))
        return await asyncio.gather(*(omniloop.go(asyncio.sleep(0.01, what)) for what in ("one", "two")))

    assert asyncio.run(main()) == ["one", "two"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.parametrize("in_group", [False, True], ids=["await", "group"])
def test_a_signal_handler_that_cancels_a_queued_call_wakes_the_waiting_loop(in_group):
    """The handler runs in the loop's own thread while the loop sleeps: without a wake-up it slept on."""
    release, queued = threading.Event(), []

    async def wait(runtime):
        if in_group:
            async with TaskGroup(runtime=runtime) as group:
                queued.append(group.to_thread(print))
        else:
            queued.append(runtime.to_thread(print))
            with pytest.raises(asyncio.CancelledError):
                await queued[0]

    async def main(runtime):
        # Wakes the loop otherwise.
        rescue = asyncio.get_running_loop().call_later(10, print)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        await wait(runtime)
        rescue.cancel()
        return time.monotonic() - began

    former = signal.signal(signal.SIGALRM, lambda *_: queued[0].cancel())
    try:
        with Runtime(max_workers=1) as runtime:
            runtime.to_thread(release.wait, 60)
            try:
                assert asyncio.run(main(runtime)) < 5
            finally:
                release.set()
    finally:
        signal.signal(signal.SIGALRM, former)
