"""One book: at every moment the counts of `stats()` add up, whatever goes on in other threads."""

import asyncio
import threading

import pytest

from omniloop import Runtime
from omniloop._work.task import Dropped


def adds_up(stats):
    return stats.accepted == stats.queue_depth + stats.running + stats.scheduled + stats.finished + stats.dropped


def assert_sound(seen, most):
    for stats in seen:
        assert adds_up(stats), stats
        assert min(stats[:5]) >= 0 and min(stats.running, stats.scheduled, stats.queue_depth) >= 0, stats
        assert stats.accepted <= most
        assert stats.failed + stats.cancelled <= stats.finished, stats
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert all(after >= before for before, after in zip(earlier[:5], later[:5], strict=True)), (earlier, later)


async def fail():
    raise ValueError


def watch(runtime, work):
    """What a thread sees that looks all the time while *work* is done."""
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.append(runtime.stats())

    looker = threading.Thread(target=look)
    looker.start()
    try:
        work()
    finally:
        stop.set()
        looker.join()
    return [*seen, runtime.stats()]


def in_threads(*works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.promise("At every moment the counts of `stats()` add up, and each is behind the truth at worst")
def test_the_counts_add_up_at_every_look_under_all_kinds_of_work():
    runtime = Runtime(on_error=lambda failure: None)

    def submit():
        for number in range(300):
            runtime.go(asyncio.sleep(0))
            runtime.go(fail())
            runtime.go(asyncio.sleep(60)).cancel()
            runtime.call_later(60, int).cancel()
            runtime.call_later(0, int)
            runtime.to_thread(int)
            runtime.call_soon(int, "x" if number % 2 else "1")

    def work():
        in_threads(submit, submit, submit)
        runtime.flush(timeout=30)

    seen = watch(runtime, work)
    with runtime:
        pass

    assert_sound(seen, 6_300)
    assert runtime.stats()[:2] == (6_300, 6_300)


@pytest.mark.promise("What is counted as dropped has not run to its end, and is counted once")
@pytest.mark.parametrize("when_full", ["drop_old", "drop_new"])
def test_what_is_dropped_has_not_run_to_its_end_and_is_counted_once(when_full):
    """Of the oldest, 472 were counted as dropped that had run."""
    ran = []
    runtime = Runtime(max_pending=4, when_full=when_full, on_error=lambda failure: None)

    async def work(number):
        if number % 2:
            await asyncio.sleep(0)
        ran.append(number)

    def submit(first):
        for number in range(first, first + 1_000):
            runtime.go(work(number))

    def all_of_it():
        in_threads(lambda: submit(0), lambda: submit(1_000))
        runtime.flush(timeout=30)

    seen = watch(runtime, all_of_it)
    with runtime:
        pass

    stats = runtime.stats()
    assert_sound([*seen, stats], 2_000)
    assert stats.accepted == 2_000
    assert stats.dropped == 2_000 - len(ran)
    assert stats.finished == len(ran)


def test_a_task_that_is_cancelled_before_there_is_a_loop_is_in_the_book():
    """What is submitted while the runtime is about to start waits for a loop that is not made yet."""
    made = []

    def make_loop():
        made.append(runtime.go(asyncio.sleep(60)))
        assert made[0].cancel()
        return asyncio.new_event_loop()

    runtime = Runtime(loop_factory=make_loop)
    with runtime:
        runtime.run(asyncio.sleep(0))
        stats = runtime.stats()

    assert (stats.accepted, stats.finished, stats.cancelled) == (2, 2, 1)
    assert adds_up(stats)


def test_what_is_undelivered_at_the_end_is_in_the_book():
    runtime = Runtime(cancel_timeout=0.01, slow_callback=None)
    begun, go_on = threading.Event(), threading.Event()
    first = runtime.call_soon(lambda: (begun.set(), go_on.wait(5)))
    assert begun.wait(5)
    behind = [runtime.call_soon(int) for _ in range(3)]

    runtime.shutdown(timeout=0)
    stats = runtime.stats()
    go_on.set()
    first.result(timeout=5)

    assert all(task.exception() is not None for task in behind)
    assert adds_up(stats)
    assert stats.accepted == 4


def test_what_is_dropped_while_the_loop_comes_to_it_is_at_no_moment_seen_as_finished():
    """Between its leaving and its counting a look found it nowhere, took it for finished, and remembered that."""
    gate, told, seen = threading.Event(), threading.Event(), []
    with Runtime(max_pending=10, when_full="drop_old") as runtime:
        runtime.call_soon(gate.wait)
        dropped = runtime.go(asyncio.sleep(0))
        # Called when it is settled, and not counted yet.
        dropped.add_done_callback(lambda task: (seen.append(runtime.stats()), told.set()))
        # As a submission without room does that no longer finds it in the inbox.
        dropped.cancel(Dropped("no room"))
        gate.set()
        assert told.wait(timeout=5)
        runtime.flush(timeout=5)
        seen.append(runtime.stats())

    # The function that has waited is finished.
    assert [(stats.finished, stats.dropped) for stats in seen] == [(1, 0), (1, 1)]
    assert all(map(adds_up, seen))
