"""`await task` works on any asyncio loop, and means what awaiting an `asyncio.Task` means."""

import asyncio
import concurrent.futures
import threading

import pytest

import omniloop
from omniloop import Runtime, WouldDeadlockError


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


def test_a_function_in_a_worker_thread_is_waited_for_when_the_waiter_is_cancelled(runtime, run_elsewhere):
    async def main():
        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        await asyncio.to_thread(started.wait, 5)
        waiter.cancel()
        await asyncio.sleep(0)
        may_end.set()
        return await waiter

    async def wait():
        return await task

    def block():
        started.set()
        may_end.wait(timeout=5)
        return "done"

    started, may_end = threading.Event(), threading.Event()
    task = runtime.to_thread(block)

    assert run_elsewhere(main()) == "done"


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
