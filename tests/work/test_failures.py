"""A failure that nobody asked for is told once, whatever became of the loop in which it happened."""

import asyncio
import gc
import os
import threading

import pytest

from children import run_child
from omniloop import Failure, LoopDiedError, Runtime


class Breakable(asyncio.SelectorEventLoop):
    """A loop that can be broken as a lost descriptor breaks one: what it waits with raises."""

    broken = False

    def _run_once(self):
        if self.broken:
            raise OSError(9, "Bad file descriptor")
        super()._run_once()

    def break_down(self):
        self.broken = True
        self._write_to_self()


async def fail():
    raise LookupError("of the first loop")


async def running_loop():
    return asyncio.get_running_loop()


async def waits_for_ever():
    await asyncio.Event().wait()


@pytest.fixture
def reported():
    return []


def failed_and_then_died(reported: list[Failure]):
    """A runtime whose loop has died, and a handle whose failure nobody has asked for."""
    runtime = Runtime(name="breaks", loop_factory=Breakable, on_error=reported.append)
    held = runtime.go(fail())
    loop = runtime.run(running_loop())
    last = runtime.go(waits_for_ever())
    loop.break_down()
    assert isinstance(last.exception(timeout=5), LoopDiedError)
    assert [type(failure.exception) for failure in reported] == [OSError]
    reported.clear()
    return runtime, held


@pytest.mark.promise(
    "A failure outlives the loop it happened in: it is told when its handle is dropped, also where another loop runs by then"
)
def test_a_failure_outlives_the_loop_it_happened_in_and_is_told_when_its_handle_is_dropped(reported):
    """It was told to the ledger of a life that was over, which nobody read any more."""
    runtime, held = failed_and_then_died(reported)
    assert runtime.run(running_loop(), timeout=5)

    del held
    runtime.flush(timeout=5)

    assert [str(failure.exception) for failure in reported] == ["of the first loop"]
    runtime.shutdown()
    assert len(reported) == 1


@pytest.mark.promise("One that is dropped while no loop runs is told by the next `flush()` or `shutdown()`, or at exit")
def test_a_failure_that_is_dropped_while_no_loop_runs_is_told_by_the_next_flush(reported):
    runtime, held = failed_and_then_died(reported)

    del held
    runtime.flush(timeout=5)

    assert [str(failure.exception) for failure in reported] == ["of the first loop"]
    runtime.shutdown()
    assert len(reported) == 1


@pytest.mark.parametrize("goes_on", [True, False], ids=["another loop runs", "no other loop runs"])
def test_a_failure_of_a_loop_that_died_is_told_by_shutdown(reported, goes_on):
    runtime, held = failed_and_then_died(reported)
    if goes_on:
        runtime.run(running_loop(), timeout=5)

    runtime.shutdown()

    assert [str(failure.exception) for failure in reported] == ["of the first loop"]
    assert isinstance(held.exception(), LookupError)


@pytest.mark.parametrize("goes_on", [True, False], ids=["another loop runs", "no other loop runs"])
def test_a_failure_of_a_loop_that_died_is_told_at_exit(goes_on):
    def program():
        import omniloop

        omniloop.configure(loop_factory=Breakable, on_error=lambda failure: print(repr(failure.exception)))
        held = omniloop.go(fail())
        loop = omniloop.run(running_loop())
        last = omniloop.go(waits_for_ever())
        loop.break_down()
        last.exception(timeout=5)
        del last
        if goes_on:
            omniloop.run(running_loop())

    result = run_child(program)

    assert (result.stderr, result.code) == ("", 0)
    assert result.stdout.splitlines() == ["OSError(9, 'Bad file descriptor')", "LookupError('of the first loop')"]


def test_a_failure_that_is_dropped_after_shutdown_is_told_at_exit():
    """A worker that comes back late: its handle was settled, what it calls back is not."""

    def program():
        import threading

        import omniloop

        runtime = omniloop.Runtime(on_error=lambda failure: print(failure.message), cancel_timeout=0.01)
        asked, go_on = threading.Event(), threading.Event()
        task = runtime.to_thread(lambda: (asked.set(), go_on.wait(5)))
        asked.wait(5)
        runtime.shutdown(timeout=0)
        task.exception()
        # At once, here, because the task is done; and of a runtime whose loop is closed.
        task.add_done_callback(lambda task: 1 / 0)
        go_on.set()

    result = run_child(program)

    assert result.code == 0
    assert result.stdout == "A done callback of task '<lambda>' failed\n"


@pytest.mark.promise("Dropping one never logs on the thread that drops it")
def test_dropping_a_failure_never_logs_on_the_thread_that_drops_it(reported):
    """A garbage collection inside a logging handler that holds a plain lock deadlocked."""
    threads = []
    runtime, held = failed_and_then_died(reported)
    runtime.configure(on_error=lambda failure: threads.append(threading.current_thread()))

    del held

    assert threads == []
    runtime.shutdown()
    assert len(threads) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.promise("A forked child does not tell of its parent's failures")
def test_a_forked_child_does_not_tell_of_its_parents_failures():
    def program():
        import os

        import omniloop

        omniloop.configure(on_error=lambda failure: print("told in", "parent" if os.getpid() == parent else "child"))
        parent = os.getpid()
        held = omniloop.go(fail())
        omniloop.flush()
        if os.fork():
            assert os.wait()[1] == 0
        del held

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("told in parent\n", "", 0)


@pytest.mark.promise(
    "A failure that somebody waits for is not reported as one that nobody asked for, also not by `shutdown()`"
)
@pytest.mark.parametrize("where", ["a thread", "another loop"])
def test_a_failure_that_somebody_waits_for_is_not_reported(where, failures):
    """Who waited was woken, and had not asked yet when the last report was made: 1 to 3 of 400."""

    async def fails():
        waited_for = False
        while not waited_for:
            await asyncio.sleep(0.001)
            # At a gate, or in a task.
            waited_for = task and (meeting := task._meeting) and (meeting.gates or meeting.awaited)
        raise LookupError

    async def waits(task):
        return await task

    async def main(runtime, task):
        waiting = asyncio.create_task(waits(task))
        await asyncio.sleep(0)
        # The loop that waits stands still meanwhile.
        runtime.shutdown()
        with pytest.raises(LookupError):
            await waiting

    for _ in range(5):
        runtime = Runtime(name="asked", on_error=failures.append)
        task = None
        task = runtime.go(fails())
        if where == "a thread":
            shutting_down = threading.Thread(target=runtime.shutdown)
            shutting_down.start()
            assert isinstance(task.exception(timeout=5), LookupError)
            shutting_down.join(timeout=5)
        else:
            asyncio.run(main(runtime, task))

    assert failures == []


def test_one_that_somebody_has_waited_for_in_vain_is_reported_when_the_handle_is_dropped(failures):
    async def fails():
        await release.wait()
        raise LookupError

    async def main(runtime, task):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.01)
        runtime.call_soon(release.set)
        runtime.shutdown()

    release = asyncio.Event()
    runtime = Runtime(name="asked", on_error=failures.append)
    task = runtime.go(fails())
    asyncio.run(main(runtime, task))
    del task
    gc.collect()
    runtime._failures.tell_unheld()

    assert [type(failure.exception) for failure in failures] == [LookupError]


@pytest.mark.promise(
    "A failure that somebody has waited for, and not asked for, is told by `shutdown()`, though the handle is kept"
)
@pytest.mark.parametrize("waited", ["in vain", "to the end"])
def test_a_failure_that_somebody_has_waited_for_and_not_asked_for_is_told_by_shutdown(waited, failures):
    """A wait that was over counted for ever: the failure was left to a waiter who had gone, and nobody told it."""

    async def fails():
        await release.wait()
        raise LookupError

    async def wait(task):
        if waited == "in vain":
            assert not await task.wait(0.01)
            runtime.call_soon(release.set)
        else:
            waiting = asyncio.create_task(task.wait(5))
            await asyncio.sleep(0)
            runtime.call_soon(release.set)
            assert await waiting

    release = asyncio.Event()
    runtime = Runtime(name="left", on_error=failures.append)
    task = runtime.go(fails())
    asyncio.run(wait(task))
    runtime.shutdown()

    assert [type(failure.exception) for failure in failures] == [LookupError]
    assert isinstance(task.exception(), LookupError)
    assert len(failures) == 1
