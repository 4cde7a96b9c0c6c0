"""`flush` waits until all that was accepted before it is done, whatever came of it, and waits for nothing else."""

import asyncio
import threading
import time

import pytest

from omniloop import Runtime, WaitTimeoutError


async def work(done, turns=1):
    for _ in range(turns):
        await asyncio.sleep(0)
    done.append(1)


@pytest.mark.promise("`flush` waits for all that was accepted before it")
def test_all_that_was_accepted_before_is_done(runtime):
    done = []
    for turns in range(100):
        runtime.go(work(done, turns))
        runtime.call_soon(done.append, 1)
        runtime.to_thread(done.append, 1)
    runtime.flush(timeout=5)

    assert len(done) == 300


def test_what_fails_or_is_cancelled_is_done_too(runtime, failures):
    async def fails():
        await asyncio.sleep(0)
        raise OSError

    runtime.go(fails())
    runtime.go(asyncio.sleep(60)).cancel()
    runtime.flush(timeout=5)

    assert runtime.tasks() == []
    assert len(failures) == 1


def test_nothing_is_started_by_a_flush_of_nothing():
    runtime = Runtime(name="unused")
    runtime.flush()

    assert "unused" not in {thread.name for thread in threading.enumerate()}
    runtime.shutdown()


def test_what_comes_later_is_not_waited_for(runtime):
    started = threading.Event()

    async def endless():
        started.set()
        while not over:
            await asyncio.sleep(0)

    async def first():
        tasks.append(runtime.go(endless()))

    over, tasks, gate = [], [], threading.Event()
    runtime.call_soon(gate.wait)
    runtime.go(first())
    flushing = threading.Thread(target=lambda: flushed.append(runtime.flush(timeout=5)))
    flushed = []
    flushing.start()
    # What it waits for comes after its own mark, in the inbox behind the first.
    while len(runtime._life.inbox) < 2:
        time.sleep(0.001)
    gate.set()
    flushing.join()

    assert flushed == [None]
    assert started.wait(timeout=5)
    assert not tasks[0].done()
    over.append(1)


def test_daemons_periodic_calls_and_what_is_not_due_are_not_waited_for(runtime):
    tasks = [runtime.go(asyncio.sleep(60), daemon=True), runtime.every(60, int), runtime.call_later(60, int)]
    runtime.flush(timeout=5)

    assert not any(task.done() for task in tasks)


def test_a_daemon_is_not_inherited(runtime):
    async def daemon():
        tasks.append(runtime.go(work(done, turns=50)))
        await asyncio.sleep(60)

    tasks, done = [], []
    runtime.go(daemon(), daemon=True)
    runtime.call_soon(int).result(timeout=5)
    while not tasks:
        runtime.call_soon(int).result(timeout=5)
    runtime.flush(timeout=5)

    assert done == [1]


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_flush_that_times_out_says_so_and_the_work_goes_on(runtime, timeout):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    task = runtime.go(gate.wait())
    # It is counted where it waits or runs, and not in between.
    runtime.call_soon(int).result(timeout=5)

    with pytest.raises(WaitTimeoutError, match=rf"^flush\(\) was not done after {timeout} s: 1 tasks? "):
        runtime.flush(timeout=timeout)

    runtime.call_soon(gate.set)
    assert task.result(timeout=5) is True


def test_many_threads_may_flush_at_once(runtime):
    def submit_and_flush():
        for _ in range(20):
            done = []
            for turns in range(5):
                runtime.go(work(done, turns))
            runtime.flush(timeout=5)
            results.append(len(done))

    results = []
    threads = [threading.Thread(target=submit_and_flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=9)

    assert results == [5] * 80


@pytest.mark.promise("Calls in worker threads that end meanwhile do not disturb a `flush`, without a GIL too")
def test_calls_in_worker_threads_that_begin_and_end_meanwhile_do_not_disturb_it():
    """The loop looked at a set of theirs that they changed: its look failed, and the flush, a `shutdown` or the exit waited for ever."""
    over = threading.Event()

    def pour():
        while not over.is_set():
            for task in [runtime.to_thread(int) for _ in range(100)]:
                task.result(timeout=5)

    with Runtime(name="poured into") as runtime:
        threads = [threading.Thread(target=pour) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(300):
                runtime.flush(timeout=5)
        finally:
            over.set()
            for thread in threads:
                thread.join(timeout=5)
