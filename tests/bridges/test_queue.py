"""A queue between threads and the loop: janus' own, joined to the runtime."""

import asyncio
import concurrent.futures
import gc
import os
import signal
import sys
import threading
import weakref

import janus
import pytest

import omniloop
from children import run_child
from omniloop import Queue, Runtime, WouldDeadlockError, WrongLoopError, queue


@pytest.fixture(params=["asyncio", "uvloop"])
def runtime(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(name=request.param, loop_factory=factory) as made:
        yield made


@pytest.mark.promise("What a thread puts into a queue a task gets")
def test_a_thread_puts_and_a_task_gets(runtime):
    q: Queue[int] = queue(1, runtime=runtime)

    async def take():
        return [await q.async_q.get() for _ in range(20)]

    task = runtime.go(take())
    for number in range(20):
        q.sync_q.put(number, timeout=5)

    assert task.result(timeout=5) == list(range(20))


@pytest.mark.promise("What a task puts a thread gets")
def test_a_task_puts_and_a_thread_gets(runtime):
    q: Queue[int] = queue(1, runtime=runtime)

    async def give():
        for number in range(20):
            await q.async_q.put(number)

    runtime.go(give())

    assert [q.sync_q.get(timeout=5) for _ in range(20)] == list(range(20))


@pytest.mark.promise("A queue may be first-in-first-out, last-in-first-out, or by priority")
@pytest.mark.parametrize(("kind", "order"), [("fifo", [2, 3, 1]), ("lifo", [1, 3, 2]), ("priority", [1, 2, 3])])
def test_the_kind_says_which_item_comes_out_first(runtime, kind, order):
    q: Queue[int] = queue(kind=kind, runtime=runtime)
    for number in (2, 3, 1):
        q.sync_q.put_nowait(number)

    async def take():
        return [await q.async_q.get() for _ in range(3)]

    assert runtime.run(take()) == order


@pytest.mark.promise("It is a `janus.Queue` with all its methods")
def test_it_is_a_janus_queue_with_all_its_methods(runtime):
    q: Queue[str] = queue(2, runtime=runtime)

    assert isinstance(q, janus.Queue)
    q.sync_q.put_nowait("first")
    q.sync_q.put("second", block=False)
    with pytest.raises(janus.SyncQueueFull):
        q.sync_q.put_nowait("third")
    with pytest.raises(janus.SyncQueueFull):
        q.sync_q.put("third", timeout=0.001)
    assert (q.sync_q.full(), q.sync_q.qsize(), q.maxsize, q.async_q.qsize()) == (True, 2, 2, 2)

    async def finish():
        for _ in range(2):
            q.async_q.get_nowait()
            q.async_q.task_done()
        await q.async_q.join()

    runtime.run(finish())
    q.sync_q.join()
    with pytest.raises(janus.SyncQueueEmpty):
        q.sync_q.get_nowait()
    with pytest.raises(janus.SyncQueueEmpty):
        q.sync_q.get(timeout=0.001)


@pytest.mark.promise("Making a queue starts nothing")
def test_making_one_starts_nothing():
    with Runtime() as runtime:
        queue(runtime=runtime)

        assert runtime._life.loop is None


def test_it_keeps_no_task_in_sight_and_a_flush_does_not_wait_for_it(runtime):
    q: Queue[int] = queue(runtime=runtime)
    q.sync_q.put(1)

    runtime.flush(timeout=5)

    assert runtime.tasks() == []


@pytest.mark.promise("The drain shuts a queue down after all work, and whoever waits hears of it")
def test_a_shutdown_ends_the_queue_after_all_work_and_whoever_waits_hears_of_it():
    runtime = Runtime()
    q: Queue[int] = queue(runtime=runtime)
    started, heard = threading.Event(), threading.Event()

    def wait():
        q.sync_q.put(1)
        assert q.sync_q.get() == 1
        started.set()
        # Comes out first: what is in the queue is not lost.
        assert q.sync_q.get() == 2
        with pytest.raises(janus.SyncQueueShutDown):
            q.sync_q.get()
        heard.set()

    async def last_work():
        await asyncio.sleep(0.01)
        q.sync_q.put_nowait(2)

    thread = threading.Thread(target=wait)
    thread.start()
    assert started.wait(timeout=5)
    runtime.go(last_work())
    runtime.shutdown()

    assert heard.wait(timeout=5)
    thread.join()
    with pytest.raises(janus.SyncQueueShutDown):
        q.sync_q.put(3)


def test_a_shutdown_ends_a_waiting_daemon():
    runtime = Runtime()
    q: Queue[int] = queue(runtime=runtime)

    async def for_ever():
        while True:
            await q.async_q.get()

    task = runtime.go(for_ever(), daemon=True)
    runtime.shutdown(timeout=5)

    assert task.cancelled()


def test_one_that_nobody_refers_to_is_forgotten(runtime):
    q: Queue[int] = queue(runtime=runtime)
    q.sync_q.put(1)
    gone, keeper = weakref.ref(q), q._keepers[0]

    del q
    gc.collect()

    assert gone() is None
    concurrent.futures.wait([keeper], timeout=5)
    assert keeper.cancelled() or keeper.exception(timeout=0) is None


@pytest.mark.promise("Waiting on the sync side on the loop's own thread is an error, not a hang")
def test_waiting_on_the_loops_own_thread_would_deadlock(runtime):
    q: Queue[int] = queue(1, runtime=runtime)

    for call in (q.sync_q.get, lambda: q.sync_q.get(timeout=5)):
        with pytest.raises(WouldDeadlockError, match="await"):
            runtime.call_soon(call).result(timeout=5)
    q.sync_q.put(1)
    for call in (lambda: q.sync_q.put(2), q.sync_q.join):
        with pytest.raises(WouldDeadlockError, match="await"):
            runtime.call_soon(call).result(timeout=5)
    # What need not wait is allowed.
    assert runtime.call_soon(q.sync_q.get).result(timeout=5) == 1


@pytest.mark.promise("Workers that wait for a queue leave their places to others")
def test_workers_that_wait_leave_their_places_to_others():
    with Runtime(max_workers=1) as runtime:
        q: Queue[int] = queue(runtime=runtime)
        taken = runtime.to_thread(q.sync_q.get)

        runtime.to_thread(q.sync_q.put, 1).result(timeout=5)

        assert taken.result(timeout=5) == 1


@pytest.mark.promise("The async side on another loop is refused with the way out")
def test_the_async_side_on_another_loop_is_refused_with_the_way_out(runtime):
    q: Queue[int] = queue(runtime=runtime)

    async def elsewhere():
        with pytest.raises(WrongLoopError, match=r"go\(q.async_q.get\(\)\)"):
            await q.async_q.get()
        q.sync_q.put(1)
        return await runtime.go(q.async_q.get())

    assert asyncio.run(elsewhere()) == 1


@pytest.mark.parametrize("maxsize", [-1, 1.5, None, True, "1"])
def test_a_size_that_is_no_whole_number_is_refused(maxsize):
    with pytest.raises(ValueError, match=f"maxsize={maxsize!r}"):
        queue(maxsize)


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="kind='stack'.*lifo"):
        queue(kind="stack")
    with pytest.raises(ValueError, match=r"kind=\[\].*lifo"):
        queue(kind=[])


@pytest.mark.promise("A task that joins the queue has the drain wait until all of it is done")
def test_the_drain_at_exit_waits_for_what_is_joined():
    def program():
        q = omniloop.queue()

        async def consume():
            try:
                while True:
                    item = await q.async_q.get()
                    await asyncio.sleep(0.01)
                    print(item)
                    q.async_q.task_done()
            finally:
                print("consumer ended")

        omniloop.go(consume(), daemon=True)
        for number in range(3):
            q.sync_q.put(number)
        omniloop.go(q.async_q.join())
        print("last line")

    result = run_child(program)

    lines = result.stdout.splitlines()
    assert [line for line in lines if line != "last line"] == ["0", "1", "2", "consumer ended"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A forked child refuses a queue that its parent has used")
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_child_refuses_the_parents_queue_and_one_that_was_not_used_is_its_own():
    def program():
        used, unused = omniloop.queue(), omniloop.queue()
        used.sync_q.put(1)
        if os.fork() == 0:
            for call in (lambda: used.sync_q.put(2), used.sync_q.get, lambda: omniloop.run(used.async_q.get())):
                try:
                    call()
                except omniloop.ForkedError as error:
                    print(type(error).__name__)
            unused.sync_q.put(3)
            print(omniloop.run(unused.async_q.get()), flush=True)
            sys.exit()
        assert os.wait()[1] == 0
        print(used.sync_q.get(), used.sync_q.qsize())

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    assert result.stdout.splitlines() == ["ForkedError", "ForkedError", "ForkedError", "3", "1 0"]
    assert (result.stderr, result.code) == ("", 0)


def main_waits():
    """Whether the main thread waits in the queue's `get`, and no longer for the start of the loop."""
    frame = sys._current_frames()[threading.main_thread().ident]
    names = []
    while frame is not None:
        names.append((frame.f_globals["__name__"], frame.f_code.co_name))
        frame = frame.f_back
    return names[0] == ("threading", "wait") and ("janus", "get") in names


async def interrupt_the_wait():
    while not main_waits():
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.promise("Ctrl-C ends a wait, and the queue goes on")
def test_ctrl_c_ends_a_wait_and_the_queue_goes_on():
    def program():
        q = omniloop.queue()
        try:
            omniloop.go(interrupt_the_wait())
            q.sync_q.get()
        except KeyboardInterrupt:
            omniloop.go(q.async_q.put("goes on"))
            print(q.sync_q.get(timeout=5))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("goes on\n", "", 0)
