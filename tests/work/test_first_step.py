"""
A piece of work that blocks in its first step is in the books like any other.

From 3.12 on a coroutine runs up to its first suspension inside the constructor of its asyncio task: nobody held it meanwhile.
"""

import asyncio
import concurrent.futures
import io
import re
import threading
import time

import pytest

from children import run_child
from omniloop import ClosedError, Runtime, WaitTimeoutError


class Held:
    """Work that blocks the loop in its first step until it is let go."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def as_coroutine(self):
        self.as_function()
        return "done"

    def as_function(self):
        self.begun.set()
        assert self.go_on.wait(timeout=20)
        return "done"


@pytest.fixture
def held():
    held = Held()
    yield held
    held.go_on.set()


WAYS = {
    "go": lambda runtime, held: runtime.go(held.as_coroutine(), name="held"),
    "a daemon": lambda runtime, held: runtime.go(held.as_coroutine(), name="held", daemon=True),
    "call_soon": lambda runtime, held: runtime.call_soon(held.as_function),
    "call_later": lambda runtime, held: runtime.call_later(0, held.as_function),
    "call_later, async": lambda runtime, held: runtime.call_later(0, held.as_coroutine),
}
every_way = pytest.mark.parametrize("submit", WAYS.values(), ids=WAYS)
every_way_that_is_waited_for = pytest.mark.parametrize(
    "submit",
    [way for name, way in WAYS.items() if name != "a daemon"],
    ids=[name for name in WAYS if name != "a daemon"],
)


@pytest.mark.promise(
    "A piece of work that blocks the loop in its first step is listed, counted and shown, and named when it is dropped"
)
@every_way
def test_work_in_its_first_step_is_listed_counted_and_shown(submit, held, runtime):
    runtime.call_soon(int).result(timeout=5)
    task = submit(runtime, held)
    assert held.begun.wait(timeout=5)

    tasks, stats, shown = runtime.tasks(), runtime.stats(), io.StringIO()
    runtime.dump(shown)
    running = task.running()
    held.go_on.set()

    assert tasks == [task]
    assert running
    assert (stats.accepted, stats.finished, stats.running, stats.queue_depth, stats.scheduled) == (2, 1, 1, 0, 0)
    assert "1 unfinished" in shown.getvalue()
    assert task.get_name() in shown.getvalue()
    task.result(timeout=5)
    assert runtime.tasks() == []


def test_the_place_where_a_first_step_is_is_shown(held, runtime):
    task = runtime.go(held.as_coroutine())
    assert held.begun.wait(timeout=5)

    shown = io.StringIO()
    runtime.dump(shown)
    held.go_on.set()

    assert re.search("runs at File .*, in Held.as_coroutine", shown.getvalue())
    task.result(timeout=5)


@every_way_that_is_waited_for
def test_a_flush_that_times_out_counts_the_work_in_its_first_step(submit, held, runtime):
    submit(runtime, held)
    assert held.begun.wait(timeout=5)

    with pytest.raises(WaitTimeoutError, match="1 tasks are unfinished"):
        runtime.flush(timeout=0.01)
    held.go_on.set()
    runtime.flush(timeout=5)


@every_way_that_is_waited_for
def test_work_dropped_in_its_first_step_is_named_and_settles(submit, held, caplog):
    runtime = Runtime(cancel_timeout=0.01)
    task = submit(runtime, held)
    assert held.begun.wait(timeout=5)

    runtime.shutdown(timeout=0)

    held.go_on.set()
    # Where the first step comes in a turn of the loop, up to 3.11, a coroutine is held like any other by then.
    assert isinstance(task.exception(timeout=5), (ClosedError, type(None)))
    assert any(
        "1 unfinished" in record.getMessage() and task.get_name() in record.getMessage() for record in caplog.records
    )


def test_asking_to_cancel_in_the_first_step_is_heard_at_the_first_await(held, runtime):
    async def work():
        await held.as_coroutine()
        await waits_for_ever()

    async def waits_for_ever():

        await asyncio.Event().wait()

    task = runtime.go(work())
    assert held.begun.wait(timeout=5)

    assert task.cancel()
    held.go_on.set()

    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_a_coroutine_that_cancels_itself_in_its_first_step_is_cancelled_at_its_first_await(runtime, seconds):
    """After a step that was longer than a batch the cancellation came a turn later, and the work had ended by then."""
    handles = []

    async def work():
        time.sleep(seconds)
        assert handles[0].cancel()
        await asyncio.sleep(0)
        return "went on"

    ready = threading.Event()
    runtime.call_soon(ready.wait, 5)
    handles.append(runtime.go(work()))
    ready.set()

    with pytest.raises(concurrent.futures.CancelledError):
        handles[0].result(timeout=5)


@pytest.mark.promise(
    "If it comes back after `shutdown()`, its handle settles, and what it has left is cleaned up in silence"
)
def test_a_first_step_that_comes_back_after_shutdown_and_awaits_is_cleaned_up_in_silence(held, capfd, caplog):
    """Its handle was never settled ("waiter after 12 s: still waits"), and asyncio told of a pending task that was destroyed."""
    cleaned_up = threading.Event()

    async def work():
        held.as_function()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    runtime = Runtime(cancel_timeout=0.01)
    task = runtime.go(work())
    assert held.begun.wait(timeout=5)
    loop = runtime._life.thread.loop
    runtime.shutdown(timeout=0)
    caplog.clear()

    held.go_on.set()

    with pytest.raises((concurrent.futures.CancelledError, ClosedError)):
        task.result(timeout=5)
    assert cleaned_up.wait(timeout=5)
    while not loop.is_closed():
        pass
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exits", [False, True], ids=["shutdown", "exit"])
def test_whoever_waits_for_a_first_step_that_outlasts_the_runtime_is_told(exits):
    def program():
        import threading

        import omniloop

        begun, go_on = threading.Event(), threading.Event()

        async def work():
            begun.set()
            go_on.wait(5)
            await asyncio.Event().wait()

        def wait():
            try:
                task.result()
            except (omniloop.ClosedError, concurrent.futures.CancelledError):
                print("told")

        omniloop.configure(cancel_timeout=0.01, exit_timeout=0.01)
        task = omniloop.go(work())
        waiter = threading.Thread(target=wait, daemon=True)
        begun.wait(5)
        waiter.start()
        if not exits:
            omniloop.shutdown(0)
            go_on.set()
            waiter.join(5)

    result = run_child(program)

    # At exit a daemon thread may not come to say so.
    assert result.stdout in (["told\n", ""] if exits else ["told\n"])
    assert result.code == 0
    assert "1 unfinished when the time for draining was over" in result.stderr
    assert "destroyed" not in result.stderr
