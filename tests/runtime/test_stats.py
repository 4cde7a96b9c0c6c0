"""What `stats()` counts, and that counting costs the hot path nothing."""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterator

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, Stats, go, run, stats


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(name="counted", on_error=lambda failure: None) as runtime:
        yield runtime


async def value() -> int:
    return 1


async def fail() -> None:
    raise ValueError


def eventually(condition: Callable[[], object]) -> None:
    """Wait for what happens a moment after the handle is done; bounded by pytest-timeout."""
    while not condition():
        pass


def test_a_fresh_runtime_has_counted_nothing_and_stays_unstarted(runtime):
    assert runtime.stats() == Stats(0, 0, 0, 0, 0, 0.0, 0, 0, 0, 0.0)
    assert runtime._life.loop is None


@pytest.mark.promise("`stats()` counts every kind of submission once")
def test_every_kind_of_submission_is_accepted_and_finished_once(runtime):
    runtime.go(value())
    runtime.call_soon(int)
    runtime.call_later(0, int).result(timeout=5)
    runtime.call_later(0, value).result(timeout=5)
    runtime.to_thread(int)
    runtime.run(value())
    runtime.flush(timeout=5)

    stats = runtime.stats()
    assert (stats.accepted, stats.finished, stats.running, stats.queue_depth) == (6, 6, 0, 0)
    assert (stats.failed, stats.cancelled) == (0, 0)


def test_failures_and_cancellations_are_finished_and_counted_apart(runtime):
    runtime.go(fail())
    runtime.call_soon(int, "x")
    runtime.to_thread(int, "x")
    assert runtime.go(fail()).exception(timeout=5) is not None
    cancelled = runtime.go(asyncio.sleep(60))
    assert cancelled.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result(timeout=5)
    runtime.flush(timeout=5)

    stats = runtime.stats()
    assert (stats.accepted, stats.finished, stats.failed, stats.cancelled) == (5, 5, 4, 1)


@pytest.mark.promise("It tells apart what runs, what is not due, and what waits to be started")
def test_what_runs_and_what_waits_is_counted_where_it_is(runtime):
    go_on = threading.Event()
    both_run = threading.Barrier(2)
    workers = Runtime(name="one worker", max_workers=1)

    def work() -> None:
        both_run.wait(timeout=5)
        go_on.wait(timeout=5)

    with workers:
        workers.to_thread(work)
        both_run.wait(timeout=5)
        workers.to_thread(int)
        workers.go(asyncio.sleep(60), daemon=True)
        workers.call_later(60, int)
        blocked = workers.call_soon(work)
        both_run.wait(timeout=5)
        workers.go(value())
        stats = workers.stats()
        go_on.set()
        blocked.result(timeout=5)
        workers.flush(timeout=5)

    # The job, the daemon, the call that blocks the loop; the sleeping call; a job without a worker, and a coroutine the blocked loop has not come to.
    assert (stats.running, stats.scheduled, stats.queue_depth) == (3, 1, 2)
    assert stats.accepted == stats.finished + stats.running + stats.scheduled + stats.queue_depth
    assert workers.stats().scheduled == 0


def test_a_cancelled_call_that_was_not_due_is_cancelled_and_finished(runtime):
    task = runtime.call_later(60, int)
    task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)

    eventually(lambda: runtime.stats().finished)
    stats = runtime.stats()
    assert (stats.accepted, stats.finished, stats.cancelled, stats.scheduled) == (1, 1, 1, 0)


def test_the_snapshot_is_immutable(runtime):
    with pytest.raises(AttributeError):
        runtime.stats().accepted = 1


@pytest.mark.promise("Counts go on after a shutdown")
def test_counts_go_on_after_a_shutdown_of_the_shared_runtime():
    # What other tests have left there, daemons and timers too, would be counted as finished in between.
    omniloop.shutdown(timeout=5)
    before = omniloop.stats()
    omniloop.run(value())
    omniloop.shutdown(timeout=5)
    omniloop.run(value())

    after = omniloop.stats()
    assert after.accepted == before.accepted + 2
    assert after.finished == before.finished + 2


@pytest.mark.promise("Its totals never go down, and are never more than the truth")
def test_totals_never_go_down_and_never_exceed_the_truth(runtime):
    """Looks from one thread while four others submit: each look is behind at worst."""
    seen: list[Stats] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.append(runtime.stats())

    def submit() -> None:
        for _ in range(500):
            runtime.go(asyncio.sleep(0))
            runtime.to_thread(int)

    looker = threading.Thread(target=look)
    looker.start()
    submitters = [threading.Thread(target=submit) for _ in range(4)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    runtime.flush(timeout=8)
    stop.set()
    looker.join()

    for earlier, later in zip(seen, seen[1:], strict=False):
        assert later.accepted >= earlier.accepted
        assert later.finished >= earlier.finished
    assert all(stats.finished <= stats.accepted <= 4_000 for stats in seen)
    assert runtime.stats()[:2] == (4_000, 4_000)


@pytest.mark.promise("It shows that the loop is late while it is late")
def test_a_late_loop_shows_its_lag_while_it_is_late_and_after(runtime):
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(timeout=5)

    runtime.call_soon(block)
    assert blocked.wait(timeout=5)
    first = runtime.stats()
    eventually(lambda: runtime.stats().loop_lag > 0.05)
    go_on.set()
    runtime.flush(timeout=5)

    assert first.loop_lag == 0
    assert runtime.stats().loop_lag > 0.05
    eventually(lambda: runtime.stats().loop_lag < 0.05)


def test_the_time_of_the_drain_is_told_afterwards():
    runtime = Runtime()
    runtime.go(asyncio.sleep(0.5))
    assert runtime.stats().drain_time == 0
    runtime.shutdown(timeout=5)

    # Less what passed between the two calls.
    assert 0.05 < runtime.stats().drain_time < 5


@pytest.mark.promise("It tells how long the drain took, at exit too")
def test_at_exit_a_handler_of_the_program_can_read_how_long_the_drain_took():
    def program():
        atexit.register(lambda: print(stats().drain_time > 0.05, stats().finished))
        import asyncio

        from omniloop import stats

        go(asyncio.sleep(0.5))

    result = run_child(program)

    assert result[:3] == ("True 1\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.promise("In a forked child they begin at 0")
def test_a_forked_child_counts_from_0():
    def program():
        async def value():
            return 1

        run(value())
        pid = os.fork()
        if pid == 0:
            print(stats()[:2])
            run(value())
            run(value())
            print(stats()[:2])
        else:
            assert os.waitpid(pid, 0)[1] == 0
            print(stats()[:2])

    result = run_child(program)

    assert result[:3] == ("(0, 0)\n(2, 2)\n(1, 1)\n", "", 0)


def test_a_look_from_the_loop_itself_does_not_block(runtime):
    async def look() -> Stats:
        return runtime.stats()

    assert runtime.run(look(), timeout=5).accepted == 1
