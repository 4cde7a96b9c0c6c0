"""`shutdown` drains, cancels what is left, awaits its clean-up and ends the threads; what races with it is delivered or refused."""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import threading
import time

import pytest

import omniloop
from omniloop import ClosedError, Runtime
from omniloop._life import shutdown
from omniloop._work.inbox import Inbox


def threads_of(name):
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(name)}


def test_work_that_was_accepted_is_done_and_the_threads_are_gone():
    async def work():
        await asyncio.sleep(0.001)
        await asyncio.to_thread(done.append, 1)

    done = []
    runtime = Runtime(name="drained")
    for _ in range(50):
        runtime.go(work())
    runtime.to_thread(done.append, 1)
    runtime.shutdown()

    assert len(done) == 51
    assert threads_of("drained") == set()


def test_what_draining_work_starts_is_done_too():
    async def chain(left):
        await asyncio.sleep(0)
        done.append(left)
        if left:
            runtime.go(chain(left - 1)) if left % 2 else runtime.to_thread(lambda: runtime.go(chain(left - 1)))

    done = []
    runtime = Runtime(name="drained")
    runtime.go(chain(50))
    runtime.shutdown()

    assert done == list(range(50, -1, -1))


@pytest.mark.promise("A daemon whose own time limit is just over is cancelled at the end as others are")
def test_a_daemon_whose_own_time_limit_is_just_over_is_cancelled_too(caplog):
    async def daemon():
        started.release()
        while True:
            # For a moment in each round it is being cancelled, by its own limit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.sleep(60)

    started = threading.Semaphore(0)
    runtime = Runtime(name="limited")
    daemons = [runtime.go(daemon(), daemon=True) for _ in range(20)]
    for _ in daemons:
        assert started.acquire(timeout=5)
    runtime.shutdown(20)

    assert all(task.cancelled() for task in daemons)
    assert caplog.records == []


@pytest.mark.promise("So it is however few looks at it a busy machine leaves")
def test_a_daemon_whose_own_time_limit_is_just_over_is_cancelled_though_there_is_time_for_one_look_only(caplog):
    """At each of the few looks it was in the middle of its own cancellation, and was dropped without being asked."""

    async def daemon(number):
        # At any moment half of them are being cancelled, by their own limits.
        for _ in range(number % 2):
            await asyncio.sleep(0)
        started.release()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.sleep(60)

    started = threading.Semaphore(0)
    runtime = Runtime(name="limited", cancel_timeout=0.01)
    daemons = [runtime.go(daemon(number), daemon=True) for number in range(20)]
    for _ in daemons:
        assert started.acquire(timeout=5)
    runtime.shutdown(20)

    assert all(task.cancelled() for task in daemons)
    assert caplog.records == []


@pytest.mark.promise(
    "A daemon that begins during the end, after the others were cancelled, is cancelled too and can clean up"
)
def test_a_daemon_that_begins_late_in_the_end_is_cancelled_too(caplog):
    """It was never asked, and the log said that it had not ended when cancelled."""

    async def late():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ends.append("cleaned up")

    async def bare():
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            daemons.append(runtime.go(late(), daemon=True))
            while not began.is_set():
                await asyncio.sleep(0)
            raise

    async def leave():
        tasks.append(asyncio.create_task(bare()))

    daemons, tasks, ends = [], [], []
    began, running = threading.Event(), threading.Event()
    runtime = Runtime(name="late", leftover_timeout=0)
    runtime.go(leave()).result(5)
    assert running.wait(5)
    runtime.shutdown(5)

    assert daemons[0].cancelled() and ends == ["cleaned up"]
    assert not [record for record in caplog.messages if "did not end when cancelled" in record]


@pytest.mark.promise(
    "A daemon that begins the next one when it is cancelled does not hold up a `shutdown()` that has no limit"
)
def test_a_daemon_that_begins_the_next_without_end_does_not_hold_up_the_end():
    async def daemon():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(ClosedError):
                runtime.go(daemon(), daemon=True)

    started = threading.Event()
    runtime = Runtime(name="again", cancel_timeout=float("inf"))
    runtime.go(daemon(), daemon=True)
    assert started.wait(5)
    ending = threading.Thread(target=runtime.shutdown, args=(None,), daemon=True)
    ending.start()
    ending.join(10)

    assert not ending.is_alive()
    assert runtime.tasks() == []


@pytest.mark.promise(
    "Work that another thread submits while the end goes on is not refused as long as anything else is left"
)
def test_work_is_not_refused_while_something_is_left(monkeypatch):
    """The inbox was closed for each look at what is left, and opened again."""

    async def left_by_the_clean_up():
        await asyncio.Event().wait()

    async def generate():
        try:
            yield
        finally:
            left.append(asyncio.create_task(left_by_the_clean_up()))

    async def work():
        generators.append(generate())
        await anext(generators[0])

    def submit():
        try:
            runtime.call_soon(int)
        except ClosedError as error:
            refused.append(error)

    def look(loop=None):
        if left and not left[0].done() and len(looks) < 100:
            looks.append(loop)
            thread = threading.Thread(target=submit)
            thread.start()
            thread.join()
        return all_tasks(loop)

    generators, left, looks, refused = [], [], [], []
    all_tasks = asyncio.all_tasks
    runtime = Runtime(name="looked at")
    runtime.go(work()).result(5)
    monkeypatch.setattr(asyncio, "all_tasks", look)
    runtime.shutdown(10)

    assert looks and left[0].cancelled()
    assert refused == []


@pytest.mark.promise(
    "Work that is the first to use a runtime, in the middle of its `shutdown()`, is done or refused, and not cancelled"
)
def test_a_first_use_in_the_middle_of_the_end_is_done(monkeypatch):
    """The end had seen that no thread runs, and stopped the one that was started then, with what it had begun."""

    async def work():
        began.set()
        await asyncio.sleep(0.05)
        return "done"

    def submit():
        tasks.append(runtime.go(work()))

    def close(inbox):
        # The end has looked by now; in another thread the runtime starts, and begins its work.
        if not tasks:
            thread = threading.Thread(target=submit)
            thread.start()
            thread.join()
            assert began.wait(5)
        return original(inbox)

    began, tasks = threading.Event(), []
    runtime = Runtime(name="first used")
    original = Inbox.close
    monkeypatch.setattr(Inbox, "close", close)
    runtime.shutdown(10)

    assert tasks[0].result(5) == "done"


def test_daemons_are_cancelled_after_the_others_and_their_clean_up_runs():
    async def daemon():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            order.append("the daemon's clean-up")

    async def work():
        await asyncio.sleep(0.05)
        order.append("the work")

    order, started = [], threading.Event()
    runtime = Runtime(name="drained")
    task = runtime.go(daemon(), daemon=True)
    assert started.wait(timeout=5)
    runtime.go(work())
    runtime.shutdown()

    assert order == ["the work", "the daemon's clean-up"]
    assert task.cancelled()


def test_bare_tasks_of_the_work_are_cancelled_after_the_others():
    async def bare():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    async def work():
        held.append(asyncio.create_task(bare()))
        await asyncio.sleep(0.01)
        assert ended == []

    ended, held = [], []
    runtime = Runtime(name="drained")
    runtime.go(work())
    runtime.shutdown()

    assert ended == [1]


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_what_is_not_done_in_time_is_cancelled_awaited_and_named(caplog, timeout):
    async def late():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned_up.set()

    started, cleaned_up = threading.Event(), threading.Event()
    runtime = Runtime(name="drained")
    task = runtime.go(late(), name="the late one")
    assert started.wait(timeout=5)
    with caplog.at_level(logging.WARNING, "omniloop"):
        runtime.shutdown(timeout=timeout)

    assert cleaned_up.is_set()
    assert task.cancelled()
    (record,) = caplog.records
    assert "drained: 1 unfinished when the time for draining was over, and cancelled:" in record.getMessage()
    assert "the late one" in record.getMessage()
    assert "test_shutdown.py" in record.getMessage()


def test_async_generators_are_closed():
    async def numbers():
        try:
            yield 1
        finally:
            closed.append(1)

    async def work():
        held.append(numbers())
        await anext(held[0])

    held, closed = [], []
    runtime = Runtime(name="drained")
    runtime.go(work())
    runtime.shutdown()

    assert closed == [1]


@pytest.mark.promise("Async generators are closed at the end, those that the closing of others opens too")
@pytest.mark.skipif(os.environ.get("OMNILOOP_LOOP") == "uvloop", reason="uvloop does not show what generators are open")
def test_async_generators_that_the_closing_of_others_opens_are_closed_too():
    """asyncio complains of them, which here is an error, and closed them never."""

    async def numbers(name, at_the_end):
        try:
            yield name
        finally:
            await asyncio.sleep(0)
            closed.append(name)
            if at_the_end is not None:
                tasks.append(runtime.go(at_the_end))

    async def work(generator):
        held.append(generator)
        return await anext(generator)

    held, closed, tasks = [], [], []
    runtime = Runtime(name="drained")
    runtime.run(work(numbers("first", work(numbers("second", work(numbers("third", None)))))))
    runtime.shutdown()

    assert [task.result() for task in tasks] == ["second", "third"]
    assert closed == ["first", "second", "third"]


@pytest.mark.filterwarnings("ignore")
def test_nobody_waits_for_ever_for_work_that_blocks_the_loop():
    gate = threading.Event()
    runtime = Runtime(name="stuck", cancel_timeout=0.01, slow_callback=None)
    stuck, behind = runtime.call_soon(gate.wait, 5), runtime.call_soon(int)
    outcomes = []
    waiter = threading.Thread(target=lambda task: outcomes.append(task.exception(timeout=5)), args=[behind])
    waiter.start()
    runtime.shutdown(timeout=0)
    waiter.join(timeout=5)

    assert isinstance(outcomes[0], ClosedError)
    gate.set()
    assert stuck.result(timeout=5) is True
    # Closed by its own thread, now that that has come back.
    for thread in threading.enumerate():
        if thread.name == "stuck":
            thread.join(timeout=5)
    del runtime, stuck, behind, waiter
    gc.collect()


def test_it_may_be_called_again_and_by_many_threads_at_once():
    runtime = Runtime(name="drained")
    task = runtime.go(asyncio.sleep(0.01))
    threads = [threading.Thread(target=runtime.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    runtime.shutdown()

    assert task.result(timeout=0) is None
    assert threads_of("drained") == set()


def test_a_runtime_that_was_never_used_ends_at_once_and_refuses():
    runtime = Runtime(name="unused")
    runtime.shutdown()

    with pytest.raises(ClosedError):
        runtime.call_soon(int)


def test_the_shared_runtime_starts_afresh_on_the_next_use():
    first = omniloop.run(thread_ident())
    omniloop.shutdown()
    assert omniloop.tasks() == []
    omniloop.flush(timeout=5)

    second = omniloop.run(thread_ident())

    assert first
    assert second
    assert omniloop.to_thread(int).result(timeout=5) == 0
    omniloop.shutdown()


async def thread_ident():
    return threading.get_ident()


def test_the_shared_runtime_may_be_used_while_another_thread_shuts_it_down():
    """What was accepted in between was not drained: the next life was struck off the list together with the former."""

    async def work():
        await asyncio.sleep(0)
        done.append(1)

    def shut_down():
        while not over.is_set():
            omniloop.shutdown()

    done, over = [], threading.Event()
    thread = threading.Thread(target=shut_down)
    thread.start()
    tasks = []
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        tasks.append(omniloop.go(work()))
        tasks.append(omniloop.to_thread(done.append, 1))
    over.set()
    thread.join(timeout=5)
    omniloop.shutdown()

    assert [task for task in tasks if not task.done()] == []
    assert len(done) == len([task for task in tasks if task.exception() is None])
    assert all(isinstance(task.exception(), ClosedError | None) for task in tasks)


# --- the closing race -------------------------------------------------------------------------------------------------


# 75 runtimes and 45,000 submissions: on PyPy, on a busy machine, more than a minute.
@pytest.mark.timeout(300)
@pytest.mark.promise("What races with `shutdown` is delivered or refused, and nothing between")
@pytest.mark.parametrize("first_use", [False, True])
def test_what_races_with_shutdown_is_delivered_or_refused_and_nothing_between(first_use):
    async def work(number):
        if number % 2:
            await asyncio.sleep(0)
        done.append(number)

    def submit(start):
        barrier.wait(timeout=5)
        for number in range(start, start + 150):
            try:
                match number % 4:
                    case 0 | 1:
                        task = runtime.go(work(number))
                    case 2:
                        task = runtime.call_soon(done.append, number)
                    case _:
                        task = runtime.to_thread(done.append, number)
            except ClosedError:
                return
            accepted.append((number, task))

    gc.disable()
    try:
        for _ in range(75):
            done, accepted, barrier = [], [], threading.Barrier(5)
            runtime = Runtime(name="closing", on_error=lambda failure: None)
            if not first_use:
                runtime.call_soon(int).result(timeout=5)
            threads = [threading.Thread(target=submit, args=(1000 * number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            barrier.wait(timeout=5)
            runtime.shutdown()
            for thread in threads:
                thread.join(timeout=5)

            # Done, or refused through the handle: never pending, never both.
            outcomes = {number: task.exception(timeout=0) for number, task in accepted}
            assert {number for number, error in outcomes.items() if error is None} == set(done)
            assert len(done) == len(set(done))
            assert all(isinstance(error, ClosedError) for error in outcomes.values() if error is not None)
    finally:
        gc.enable()


def test_cancellations_that_race_with_shutdown_leave_nothing_pending():
    async def work():
        await asyncio.sleep(60)

    for _ in range(50):
        runtime = Runtime(name="closing")
        tasks = [runtime.go(work()) for _ in range(20)]
        thread = threading.Thread(target=lambda tasks=tasks: [task.cancel() for task in tasks])
        thread.start()
        runtime.shutdown(timeout=5)
        thread.join(timeout=5)

        done, not_done = concurrent.futures.wait(tasks, timeout=0)
        assert not_done == set()
        assert all(task.cancelled() for task in done)


class SlowToEnd(asyncio.SelectorEventLoop):
    """A loop whose thread takes its time to end, as on a machine that is busy with other things."""

    def run_forever(self):
        super().run_forever()
        time.sleep(1.2)


def test_a_thread_that_is_only_slow_to_end_is_waited_for(caplog, monkeypatch):
    """The log said that it did not end, "because a callback blocks it here: (the thread is gone)", and the loop was left open."""
    # However busy the machine is with other things.
    monkeypatch.setattr(shutdown, "_PATIENCE", 30)
    loops = []

    def make():
        loops.append(SlowToEnd())
        return loops[0]

    runtime = Runtime(name="slow", loop_factory=make, cancel_timeout=0.01)
    runtime.run(asyncio.sleep(0))
    runtime.shutdown(timeout=0)

    assert threads_of("slow") == set()
    assert loops[0].is_closed()
    assert caplog.records == []


def test_a_loop_that_is_busy_with_many_clean_ups_is_waited_for_past_the_deadline(caplog):
    """Each is short, and all of them together longer than the deadline: what is left was destroyed while it was pending."""

    async def waits():
        try:
            await asyncio.sleep(60)
        finally:
            cleaned_up.append(1)
            time.sleep(0.0005)

    cleaned_up = []
    # Without the watchdog: on uvloop a turn of many callbacks looks to it like one.
    runtime = Runtime(name="busy", cancel_timeout=0.01, slow_callback=None)
    tasks = [runtime.go(waits()) for _ in range(3000)]
    runtime.run(asyncio.sleep(0))
    runtime.shutdown(timeout=0)

    assert len(cleaned_up) == 3000
    assert all(task.cancelled() for task in tasks)
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " 3000 unfinished when the time for draining was over, and cancelled"
    ]
