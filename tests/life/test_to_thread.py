"""`to_thread` runs blocking functions in worker threads, which are not starved by their own waits."""

import asyncio
import concurrent.futures
import socket
import threading

import pytest

from omniloop import CannotStartError, Runtime


def test_a_function_runs_in_a_thread_that_is_not_the_loops(runtime):
    def where(*args, **kwargs):
        return threading.get_ident(), args, kwargs

    ident, args, kwargs = runtime.to_thread(where, 1, key=2).result(timeout=5)

    assert (args, kwargs) == ((1,), {"key": 2})
    assert ident not in (threading.get_ident(), runtime.call_soon(threading.get_ident).result(timeout=5))


def test_functions_run_at_the_same_time(runtime):
    barrier = threading.Barrier(4)

    tasks = [runtime.to_thread(barrier.wait, 5) for _ in range(4)]

    assert sorted(task.result(timeout=5) for task in tasks) == [0, 1, 2, 3]


def test_no_more_threads_run_than_max_workers_and_all_is_done():
    running, most, lock = 0, 0, threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return number

    with Runtime(name="small", max_workers=3) as small:
        tasks = [small.to_thread(work, number) for number in range(60)]
        assert [task.result(timeout=5) for task in tasks] == list(range(60))
    assert most <= 3


def test_there_is_a_thread_for_every_call_while_there_is_room(runtime):
    """A worker that was taken for idle, because it was just about to take another job, held a call back for as long as it worked."""
    for _ in range(100):
        first, second = threading.Event(), threading.Event()

        def ping(first=first, second=second):
            first.set()
            return second.wait(timeout=4)

        def pong(first=first, second=second):
            second.set()
            return first.wait(timeout=4)

        tasks = [runtime.to_thread(ping), runtime.to_thread(pong)]
        assert [task.result(timeout=5) for task in tasks] == [True, True]


def test_it_can_be_cancelled_until_it_starts():
    with Runtime(name="small", max_workers=1) as small:
        started, go_on = threading.Event(), threading.Event()

        def block():
            started.set()
            return go_on.wait(timeout=5)

        ran = []
        runs = small.to_thread(block)
        assert started.wait(timeout=5)
        waits = small.to_thread(ran.append, 1)
        assert runs.running()
        assert not waits.running()

        assert runs.cancel() is False
        assert waits.cancel("too early") is True
        assert waits.cancelled()
        with pytest.raises(concurrent.futures.CancelledError, match="too early"):
            waits.result(timeout=0)

        go_on.set()
        assert runs.result(timeout=5) is True
    assert ran == []


def test_cancelling_races_with_the_start_and_either_wins(runtime):
    for _ in range(300):
        ran = []
        task = runtime.to_thread(ran.append, 1)
        if task.cancel():
            assert task.cancelled()
            assert ran == []
        else:
            assert task.result(timeout=5) is None
            assert ran == [1]


def test_a_worker_that_waits_for_the_runtime_does_not_count_against_the_pool():
    """Blocking workers filled the pool, and the look-ups that they waited for never ran."""

    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    with Runtime(name="small", max_workers=2) as small:
        tasks = [small.to_thread(lambda: small.run(look_up(), timeout=5)) for _ in range(8)]
        for task in tasks:
            assert task.result(timeout=9)


def test_waits_may_be_nested_deeper_than_the_pool_is_wide():
    def nest(depth):
        return small.to_thread(nest, depth - 1).result(timeout=9) + 1 if depth else 0

    with Runtime(name="small", max_workers=1) as small:
        assert small.to_thread(nest, 20).result(timeout=9) == 20


def test_the_first_use_of_two_threads_at_once_may_be_a_call_in_a_thread():
    """The one that came second was told that the runtime was being started by the frame that it had interrupted."""

    def use():
        barrier.wait(timeout=5)
        results.append(runtime.to_thread(int, "7").result(timeout=5))

    for _ in range(20):
        results, barrier = [], threading.Barrier(3)
        with Runtime(name="first") as runtime:
            threads = [threading.Thread(target=use) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=5)
        assert results == [7, 7, 7]


def test_in_the_frame_that_the_start_interrupted_it_is_refused():
    refused = []

    def factory():
        try:
            runtime.to_thread(int)
        except CannotStartError as error:
            refused.append(str(error))
        return asyncio.new_event_loop()

    with Runtime(name="first", loop_factory=factory) as runtime:
        assert runtime.call_soon(int).result(timeout=5) == 0
    assert "Call again later" in refused[0]


def test_the_loops_own_executor_is_the_same_pool(runtime):
    async def thread_name():
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert runtime.go(thread_name()).result(timeout=5).startswith("tested-worker-")
    assert runtime.to_thread(lambda: threading.current_thread().name).result(timeout=5).startswith("tested-worker-")
