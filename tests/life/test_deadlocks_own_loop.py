"""A wait, on the loop's own thread, for work that needs that thread is an error at once, and not a hang."""

import asyncio
import concurrent.futures
import threading

import pytest

from omniloop import Runtime, WouldDeadlockError


async def work():
    await asyncio.sleep(0)
    return "done"


WAITS = {
    "result": lambda runtime: runtime.go(work()).result(),
    "result with a timeout": lambda runtime: runtime.go(work()).result(timeout=60),
    "exception": lambda runtime: runtime.go(work()).exception(),
    "result of a thread's work": lambda runtime: result_of_a_thread(runtime),
    "concurrent.futures.wait": lambda runtime: concurrent.futures.wait([runtime.go(work())]),
    "concurrent.futures.as_completed": lambda runtime: list(concurrent.futures.as_completed([runtime.go(work())])),
    "run": lambda runtime: runtime.run(work()),
    "run with a timeout": lambda runtime: runtime.run(work(), timeout=60),
    "flush": lambda runtime: runtime.flush(),
    "shutdown": lambda runtime: runtime.shutdown(),
}


def result_of_a_thread(runtime):
    over = threading.Event()
    try:
        return runtime.to_thread(over.wait, 5).result()
    finally:
        over.set()


def in_a_coroutine(runtime, wait):
    async def main():
        return wait(runtime)

    return runtime.go(main())


def in_a_callback(runtime, wait):
    return runtime.call_soon(wait, runtime)


def in_a_delayed_callback(runtime, wait):
    return runtime.call_later(0, wait, runtime)


def in_a_bare_callback_of_the_loop(runtime, wait):
    async def main():
        future = asyncio.get_running_loop().create_future()

        def callback():
            try:
                future.set_result(wait(runtime))
            except BaseException as error:
                future.set_exception(error)

        asyncio.get_running_loop().call_soon(callback)
        return await future

    return runtime.go(main())


@pytest.mark.promise("Waiting on the loop's own thread for what is not done is an error at once")
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize(
    "place", [in_a_coroutine, in_a_callback, in_a_delayed_callback, in_a_bare_callback_of_the_loop]
)
def test_waiting_on_the_loops_own_thread_is_refused_at_once(runtime, place, wait):
    with pytest.raises(WouldDeadlockError, match=r"would wait, on the loop's own thread, .* Instead "):
        place(runtime, wait).result(timeout=5)

    # It goes on, and nothing that was refused is left.
    assert runtime.go(work()).result(timeout=5) == "done"
    runtime.flush(timeout=5)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_in_a_done_callback_is_refused_at_once(runtime, wait):
    def callback(task):
        try:
            wait(runtime)
        except BaseException as error:
            errors.append(error)
        over.set()

    errors, over = [], threading.Event()
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    runtime.go(gate.wait()).add_done_callback(callback)
    runtime.call_soon(gate.set)

    assert over.wait(timeout=5)
    assert isinstance(errors[0], WouldDeadlockError)


def test_asking_on_the_loops_own_thread_for_what_is_done_is_fine(runtime):
    async def main():
        task = runtime.go(work())
        await task
        assert task.exception() is None
        assert concurrent.futures.wait([task]).done == {task}
        assert list(concurrent.futures.as_completed([task])) == [task]
        return task.result()

    assert runtime.go(main()).result(timeout=5) == "done"


def test_run_that_is_refused_closes_the_coroutine(runtime):
    coro = work()

    def wait():
        with pytest.raises(WouldDeadlockError):
            runtime.run(coro)

    runtime.call_soon(wait).result(timeout=5)
    assert coro.cr_frame is None


def test_another_runtime_may_be_waited_for_but_not_in_a_circle():
    async def inner():
        return first.run(work(), timeout=5)

    async def outer():
        return second.run(inner(), timeout=5)

    with Runtime(name="first") as first, Runtime(name="second") as second:
        assert second.call_soon(lambda: first.run(work(), timeout=5)).result(timeout=5) == "done"
        with pytest.raises(WouldDeadlockError, match="the thread that runs it waits for this one"):
            first.go(outer()).result(timeout=5)


@pytest.mark.parametrize("call", ["flush", "shutdown"])
def test_a_worker_thread_can_not_wait_for_all_of_the_work(runtime, call):
    task = runtime.to_thread(getattr(runtime, call))

    with pytest.raises(WouldDeadlockError, match=rf"^{call}\(\) in a worker thread of the same runtime"):
        task.result(timeout=5)
