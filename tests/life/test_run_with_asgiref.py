"""Work that `run` waits for, and that uses asgiref's `sync_to_async`: the waiting thread makes its calls."""

import asyncio
import signal
import threading
import time

import pytest

from omniloop import Runtime, WaitTimeoutError

pytest.importorskip("asgiref.sync")

from asgiref.sync import sync_to_async


@pytest.fixture
def runtime():
    with Runtime(name="waited for") as runtime:
        # The first use makes the loop, and goes another way.
        runtime.run(asyncio.sleep(0))
        runtime.run(asyncio.sleep(0))
        yield runtime


@pytest.mark.promise(
    "Where asgiref is loaded, `run()` makes the calls of `sync_to_async` in the thread that waits", section="Waiting"
)
def test_the_waiting_thread_makes_the_calls_of_sync_to_async(runtime):
    async def work():
        first = await sync_to_async(threading.get_ident)()
        await asyncio.sleep(0)
        return {first, *await asyncio.gather(*[sync_to_async(threading.get_ident)() for _ in range(5)])}

    for _ in range(50):
        assert runtime.run(work(), timeout=5) == {threading.get_ident()}


def test_what_such_a_call_raises_comes_out_in_the_work(runtime):
    async def work():
        with pytest.raises(ZeroDivisionError):
            await sync_to_async(lambda: 1 / 0)()
        return "went on"

    assert runtime.run(work(), timeout=5) == "went on"


def test_a_call_may_itself_run_something_on_the_loop(runtime):
    async def inner():
        return await sync_to_async(threading.get_ident)()

    async def work():
        return await sync_to_async(lambda: runtime.run(inner(), timeout=5))()

    assert runtime.run(work(), timeout=5) == threading.get_ident()


def test_what_is_left_when_the_wait_is_over_is_made_in_another_thread(runtime):
    made_in = []

    async def later():
        await asyncio.to_thread(over.wait, 5)
        made_in.append(await sync_to_async(threading.get_ident)())

    async def work():
        return asyncio.get_running_loop().create_task(later())

    over = threading.Event()
    left = runtime.run(work(), timeout=5)
    over.set()

    async def wait():
        await left

    runtime.go(wait()).result(timeout=5)
    assert made_in and made_in != [threading.get_ident()]


@pytest.mark.promise(
    "Ctrl-C in `run()` cancels the work, waits for its clean-up and leaves nothing behind, also where asgiref is loaded",
    section="Waiting",
)
def test_an_interrupted_wait_sees_the_clean_up_and_leaves_nothing_to_wait_for(runtime):
    """Its gate was opened twice; the loop never came to the end of the task, and `shutdown()` waited out its time."""

    class Interrupted(Exception):
        pass

    def handler(number, frame):
        raise Interrupted

    async def work():
        runtime.call_soon(signal.pthread_kill, threading.main_thread().ident, signal.SIGUSR1)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(await sync_to_async(threading.get_ident)())

    cleaned_up = []
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interrupted):
            runtime.run(work(), timeout=20)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert cleaned_up == [threading.get_ident()]
    assert runtime.tasks() == []
    assert runtime.flush(timeout=5) is None


def test_a_timeout_holds_while_calls_come(runtime):
    async def work():
        while True:
            await sync_to_async(time.sleep)(0.001)

    with pytest.raises(WaitTimeoutError):
        runtime.run(work(), timeout=0.05)
    assert runtime.tasks() == []
