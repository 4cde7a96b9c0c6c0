"""`TaskGroup`: what is started in it is done, or cancelled, when its block ends."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import inspect
import itertools
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from functools import partial

import pytest

import omniloop
from children import run_child
from interruptions import interrupted_at_each_line
from omniloop import ClosedError, ForkedError, NotAsyncError, Runtime, TaskGroup, TaskTimeoutError, WouldDeadlockError

who = contextvars.ContextVar("who", default="nobody")

# Every test of the block runs in sync code, on another loop, and on the loop itself.
on_any_loop = pytest.mark.parametrize("run", [asyncio.run, omniloop.run], ids=["another loop", "the loop itself"])


async def value(thing):
    await asyncio.sleep(0)
    return thing


async def fail(error):
    await asyncio.sleep(0)
    raise error


async def forever(ended=None):
    """Wait until cancelled, and take a turn of the loop to clean up."""
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        if ended is not None:
            ended.append(True)


# --- the end of the block ---------------------------------------------------------------------------------------------


@pytest.mark.promise("The end of a block waits for all that was started in it")
def test_the_end_of_a_block_waits_for_all():
    with TaskGroup() as group:
        tasks = [group.go(value(1)), group.create_task(value(2)), group.call_soon(abs, -3), group.to_thread(abs, -4)]

    assert all(task.done() for task in tasks)
    assert [task.result(0) for task in tasks] == [1, 2, 3, 4]


@pytest.mark.promise("So does the end of an `async with` block, on any event loop")
@on_any_loop
def test_the_end_of_an_async_block_waits_for_all(run):
    async def main():
        async with TaskGroup() as group:
            tasks = [
                group.go(value(1)),
                group.create_task(value(2)),
                group.call_soon(abs, -3),
                group.to_thread(abs, -4),
            ]
        return [task.done() for task in tasks], [task.result(0) for task in tasks]

    assert run(main()) == ([True] * 4, [1, 2, 3, 4])


@pytest.mark.promise("What the tasks start in the group meanwhile is waited for too")
def test_what_the_tasks_start_in_the_group_is_waited_for():
    ended = []

    async def branch(group, depth):
        await asyncio.sleep(0)
        if depth:
            group.go(branch(group, depth - 1))
            group.to_thread(lambda: group.go(branch(group, depth - 1)))
        else:
            ended.append(True)

    with TaskGroup() as group:
        group.go(branch(group, 4))

    assert len(ended) == 16


def test_an_empty_block_ends_at_once():
    with TaskGroup(timeout=60):
        pass

    async def main():
        async with TaskGroup(timeout=60):
            pass

    asyncio.run(main())
    omniloop.flush(5)
    assert [task for task in omniloop.tasks() if "_expire" in task.get_name()] == []


def test_tasks_run_in_their_submitters_context_also_when_they_wait_their_turn():
    async def ask():
        return who.get()

    def submit(group, name):
        who.set(name)
        return group.go(ask())

    with TaskGroup(limit=1) as group:
        tasks = [contextvars.copy_context().run(submit, group, name) for name in "abc"]

    assert [task.result(0) for task in tasks] == ["a", "b", "c"]


def test_the_place_of_submission_is_the_line_of_the_call():
    with TaskGroup(limit=1) as group:
        tasks = [group.go(value(1)), group.create_task(value(1)), group.call_soon(abs, 1), group.to_thread(abs, 1)]
        line = inspect.currentframe().f_lineno - 1

    for task in tasks:
        assert f'"{__file__}", line {line}' in repr(task)


@pytest.mark.parametrize("submit", ["go", "to_thread"])
def test_limit_bounds_how_many_run_at_once(submit):
    running, most = 0, 0
    lock = threading.Lock()
    pair = threading.Barrier(2)

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait(5)
        with lock:
            running -= 1

    with TaskGroup(limit=2) as group:
        for _ in range(6):
            if submit == "go":
                group.go(asyncio.to_thread(work))
            else:
                group.to_thread(work)

    assert most == 2


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("The first failure cancels the others and comes out as an exception group")
def test_the_first_failure_cancels_the_others_and_comes_out_as_a_group():
    ended = []

    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        siblings = [group.go(forever(ended)) for _ in range(3)]
        group.go(fail(ValueError("first")))

    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('first')"]
    assert all(sibling.cancelled() for sibling in siblings)
    assert ended == [True] * 3


@pytest.mark.promise("It cancels an `async with` block that still runs, as asyncio's does")
@on_any_loop
def test_a_failure_cancels_an_async_block_that_still_runs(run):
    ended = []

    async def main():
        async with TaskGroup() as group:
            group.go(forever(ended))
            group.go(fail(ValueError("first")))
            await forever(ended)

    async def outer():
        with pytest.raises(ExceptionGroup) as caught:
            await main()
        # The cancellation of the block was taken back: the task goes on, unmarked.
        await asyncio.sleep(0)
        return caught.value, asyncio.current_task().cancelling()

    error, cancelling = run(outer())

    assert [repr(inner) for inner in error.exceptions] == ["ValueError('first')"]
    assert cancelling == 0
    assert ended == [True] * 2


@pytest.mark.promise("A failure is claimed by the group, and not reported as well")
def test_a_failure_is_claimed_by_the_group_and_not_reported():
    reported = []
    with Runtime(on_error=reported.append) as runtime:
        with pytest.raises(ExceptionGroup), TaskGroup(runtime=runtime) as group:
            group.go(fail(ValueError()))
            group.go(fail(OSError()))
        del group
        gc.collect()

    assert reported == []


def test_a_failure_in_a_group_whose_block_never_comes_is_reported():
    reported = []
    with Runtime(on_error=reported.append) as runtime:
        group = TaskGroup(runtime=runtime)
        group.go(fail(ValueError()))
        del group
        runtime.flush(5)

    assert [type(failure.exception) for failure in reported] == [ValueError]


@pytest.mark.promise("A supervised group lets the others go on, and tells all failures at the end")
def test_a_supervised_group_lets_the_others_go_on_and_tells_all_failures():
    with pytest.raises(ExceptionGroup) as caught, TaskGroup(supervised=True) as group:
        group.go(fail(ValueError("one")))
        good = group.go(value("good"))
        group.go(fail(OSError("two")))
        group.to_thread(int, "three")

    assert sorted(type(error).__name__ for error in caught.value.exceptions) == ["OSError", "ValueError", "ValueError"]
    assert good.result(0) == "good"


def test_an_error_that_is_no_exception_makes_it_a_base_exception_group():
    with pytest.raises(BaseExceptionGroup) as caught, TaskGroup() as group:
        group.go(fail(SystemExit(3)))

    assert not isinstance(caught.value, ExceptionGroup)
    assert [repr(error) for error in caught.value.exceptions] == ["SystemExit(3)"]


@pytest.mark.promise("An error in the block cancels the tasks")
def test_an_error_in_the_block_cancels_the_tasks_and_comes_out_with_theirs():
    ended = []

    async def fail_in_clean_up():
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("in the clean-up")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        group.go(forever(ended))
        group.go(fail_in_clean_up())
        omniloop.run(value(1))
        raise ValueError("in the block")

    assert [repr(error) for error in caught.value.exceptions] == [
        "OSError('in the clean-up')",
        "ValueError('in the block')",
    ]
    assert ended == [True]


@on_any_loop
def test_an_error_in_an_async_block_cancels_the_tasks(run):
    ended = []

    async def main():
        async with TaskGroup() as group:
            group.go(forever(ended))
            await omniloop.go(value(1))
            raise ValueError("in the block")

    with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup") as caught:
        run(main())

    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('in the block')"]
    assert ended == [True]


def test_system_exit_in_the_block_comes_out_as_it_is():
    ended = []

    with pytest.raises(SystemExit), TaskGroup() as group:
        group.go(forever(ended))
        omniloop.run(value(1))
        raise SystemExit

    assert ended == [True]


def test_a_task_that_is_cancelled_by_itself_is_no_failure():
    with TaskGroup() as group:
        task = group.go(forever())
        other = group.go(value(1))
        task.cancel()

    assert (task.cancelled(), other.result(0)) == (True, 1)


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("`cancel()` from any thread ends the block without an error")
def test_cancel_from_any_thread_ends_the_block_without_an_error():
    ended = []
    started = threading.Event()

    async def work():
        started.set()
        await forever(ended)

    with TaskGroup() as group:
        task = group.go(work())
        threading.Thread(target=lambda: started.wait(5) and group.cancel()).start()

    assert (task.cancelled(), ended) == (True, [True])


@on_any_loop
def test_cancel_from_any_thread_ends_an_async_block_too(run):
    ended = []

    async def main():
        async with TaskGroup() as group:
            group.go(forever(ended))
            threading.Thread(target=group.cancel).start()
            await forever(ended)
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    assert run(main()) == 0
    assert ended


def test_after_cancel_nothing_more_is_accepted_and_the_coroutine_is_closed():
    group = TaskGroup()
    group.cancel()
    coro = value(1)

    with pytest.raises(ClosedError, match="was cancelled"):
        group.go(coro)

    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_after_the_end_nothing_more_is_accepted():
    with TaskGroup() as group:
        pass
    coro = value(1)

    with pytest.raises(ClosedError, match="has ended"):
        group.go(coro)

    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_being_refused_after_a_failure_ends_the_block_and_is_no_error_of_its_own():
    """The block of sync code can't be cancelled; what stops it is that the group takes no more."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        group.go(fail(ValueError("the cause")))
        while True:
            group.go(value(1)).exception()

    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('the cause')"]


@pytest.mark.promise(
    "It is no error of the block's own that it waited for work which a failure in the group has cancelled"
)
def test_waiting_for_work_that_a_failure_cancels_ends_the_block_and_is_no_error_of_its_own():
    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        other = group.go(forever())
        group.go(fail(ValueError("the cause")))
        other.result(timeout=5)

    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('the cause')"]


def test_waiting_for_work_that_was_cancelled_by_itself_is_an_error_of_the_block():
    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        other = group.go(forever())
        other.cancel()
        other.result(timeout=5)

    assert [type(error) for error in caught.value.exceptions] == [concurrent.futures.CancelledError]


@pytest.mark.promise("A component cancels all that it started when it stops")
def test_a_component_cancels_what_it_started_when_it_stops():
    class Component:
        def start(self):
            self.ended = []
            self.group = TaskGroup()
            self.task = self.group.go(forever(self.ended))

        def stop(self):
            with self.group:
                self.group.cancel()

    component = Component()
    component.start()
    omniloop.run(value(1))
    component.stop()

    assert (component.task.cancelled(), component.ended) == (True, [True])


@pytest.mark.promise("A cancellation from outside cancels the group, and goes on")
def test_a_cancellation_from_outside_cancels_the_group_and_goes_on():
    ended = []

    async def main():
        inside = asyncio.Event()

        async def block():
            async with TaskGroup() as group:
                group.go(forever(ended))
                inside.set()

        task = asyncio.create_task(block())
        await inside.wait()
        task.cancel("from outside")
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert asyncio.run(main())


def test_an_enclosing_timeout_ends_the_group():
    async def main():
        async with asyncio.timeout(0.01):
            async with TaskGroup() as group:
                group.go(forever())

    with pytest.raises(TimeoutError):
        asyncio.run(main())


@on_any_loop
@pytest.mark.promise(
    "A time limit around an async block is kept also where a function of the group runs; the function goes on"
)
@pytest.mark.parametrize("where", ["in the block", "at its end"])
@pytest.mark.parametrize("limit", ["asyncio", "anyio"])
def test_a_time_limit_around_a_block_is_kept_where_a_function_runs(run, where, limit):
    """The group waited for the function, and anyio, which asks in every turn of the loop, kept the loop spinning."""
    anyio = pytest.importorskip("anyio") if limit == "anyio" else None

    async def main():
        begun = time.thread_time()
        if limit == "asyncio":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await block()
        else:
            with anyio.move_on_after(0.1) as scope:
                await block()
            assert scope.cancelled_caught
        assert not tasks[0].done()
        assert tasks[1].cancelled()
        return time.thread_time() - begun

    async def block():
        async with TaskGroup() as group:
            tasks.append(group.to_thread(may_end.wait, 10))
            tasks.append(group.go(forever()))
            if where == "in the block":
                await asyncio.sleep(60)

    tasks, may_end = [], threading.Event()
    try:
        # anyio's backend is loaded here, and a collection may come; to spin until the function ends takes all of its ten seconds.
        assert run(main()) < 1
    finally:
        may_end.set()
    assert tasks[0].result(timeout=5) is True


@pytest.mark.skipif(sys.version_info < (3, 13), reason="as in asyncio.TaskGroup, the cancellation is lost before 3.13")
def test_a_cancellation_from_outside_is_not_lost_behind_a_failure():
    async def main():
        async def fail_in_clean_up():
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError

        inside = asyncio.Event()

        async def block():
            with pytest.raises(ExceptionGroup):
                async with TaskGroup() as group:
                    await omniloop.go(value(1))
                    group.go(fail_in_clean_up())
                    await omniloop.go(value(1))
                    inside.set()
            await asyncio.sleep(0)

        task = asyncio.create_task(block())
        await inside.wait()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(main())


# --- timeouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A timeout cancels all, and raises when the clean-up is done")
def test_a_timeout_cancels_all_and_raises_when_the_clean_up_is_done():
    ended = []

    with pytest.raises(TaskTimeoutError, match=r"1 s"), TaskGroup(timeout=1) as group:
        group.go(forever(ended))

    assert ended == [True]


@pytest.mark.promise("Whichever way a block with a timeout is left, nothing of it stays scheduled")
@pytest.mark.parametrize(
    "how", ["done", "cancelled from outside", "an error that is no exception", "a wait that is refused"]
)
def test_whichever_way_a_block_with_a_timeout_is_left_nothing_of_it_stays_scheduled(runtime, how):
    async def request():
        task = asyncio.current_task()
        async with TaskGroup(timeout=3600, runtime=runtime):
            if how == "cancelled from outside":
                task.cancel()
                await asyncio.Event().wait()
            elif how == "an error that is no exception":
                raise SystemExit(3)

    if how == "a wait that is refused":
        group = TaskGroup(timeout=3600, runtime=runtime)
        group.__enter__()
        group.go(forever())
        with pytest.raises(WouldDeadlockError):
            runtime.call_soon(group.__exit__, None, None, None).result(5)
    else:
        with contextlib.suppress(asyncio.CancelledError, SystemExit):
            asyncio.run(request())

    # A turn of the loop, which takes it out.
    runtime.call_soon(int).result(5)
    assert runtime.stats().scheduled == 0


@pytest.mark.promise("A timeout that comes when the group was cancelled, or has ended, changes nothing")
@pytest.mark.parametrize("before", ["cancelled", "ended"])
def test_a_timeout_that_comes_after_the_end_or_a_cancellation_changes_nothing(before):
    with TaskGroup(timeout=3600) as group:
        task = group.go(forever() if before == "cancelled" else value(1))
        if before == "cancelled":
            group.cancel()
        else:
            task.result(5)
            group._wait(time.monotonic() + 5)
        # As the loop does it when the time is over.
        timer = group._block.timer
        timer._work(*timer._args)


@on_any_loop
def test_a_timeout_cancels_an_async_block_too(run):
    ended = []

    async def main():
        async with TaskGroup(timeout=0.1):
            await forever(ended)

    with pytest.raises(TimeoutError):
        run(main())
    assert ended == [True]


@pytest.mark.promise("A time that is over while an async block begins ends the block as any other does")
def test_a_time_that_is_over_while_an_async_block_begins_ends_it(monkeypatch):
    """The timer and the block's own look both cancelled it: a second cancellation seemed to be from outside, and came out."""

    def call_at(*arguments):
        timer = call(*arguments)
        timer.result(timeout=5)
        return timer

    async def main():
        async with TaskGroup(timeout=0, runtime=runtime):
            await forever()

    with Runtime() as runtime:
        call = runtime._call_at
        monkeypatch.setattr(runtime, "_call_at", call_at)
        with pytest.raises(TaskTimeoutError):
            asyncio.run(main())


def test_a_task_that_will_not_end_does_not_hold_up_a_timeout_for_ever():
    release = threading.Event()

    def block():
        return release.wait(5)

    with Runtime(cancel_timeout=0.01) as runtime:
        with pytest.raises(TaskTimeoutError, match="1 are not done"), TaskGroup(timeout=1, runtime=runtime) as group:
            task = group.to_thread(block)
        release.set()
        assert task.result(5)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_task_that_will_not_end_does_not_hold_up_nested_async_blocks_for_ever(depth):
    """Where the time of an outer block was over while an inner one waited for the clean-up, that waited without a limit."""
    released = threading.Event()

    async def stuck():
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def block(depth):
        async with TaskGroup(timeout=1, runtime=runtime) as group:
            if depth > 1:
                await block(depth - 1)
            else:
                tasks.append(group.go(stuck()))

    tasks = []
    with Runtime(cancel_timeout=0.05) as runtime:
        with pytest.raises(TaskTimeoutError):
            asyncio.run(block(depth))
        assert not tasks[0].done()
        released.set()
        tasks[0].result(timeout=5)


def test_failures_come_out_together_with_the_timeout():
    with pytest.raises(ExceptionGroup) as caught, TaskGroup(timeout=1, supervised=True) as group:
        group.go(fail(ValueError()))
        group.go(forever())

    assert [type(error) for error in caught.value.exceptions] == [ValueError, TaskTimeoutError]


# --- bad input, and waits that can't end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": "2"}, ValueError),
        ({"timeout": "soon"}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"runtime": 5}, TypeError),
    ],
    ids=str,
)
def test_an_option_of_a_wrong_kind_is_named(options, error):
    (name, value), *_ = options.items()

    with pytest.raises(error, match=f"^{name}={value!r}: give "):
        TaskGroup(**options)


@pytest.mark.parametrize("limit", [None, 1])
def test_what_cannot_run_is_refused_and_harms_nothing(limit):
    with TaskGroup(limit=limit) as group:
        with pytest.raises(NotAsyncError, match="coroutine function"):
            group.go(value)
        with pytest.raises(NotAsyncError, match="is async"):
            group.to_thread(value, 1)
        with pytest.raises(NotAsyncError, match="is async"):
            group.call_soon(value, 1)
        task = group.go(value(1))

    assert task.result(0) == 1


def test_a_group_has_one_block():
    with TaskGroup() as group:
        pass

    with pytest.raises(ClosedError, match="entered before"), group:
        pass


@pytest.mark.promise("A `with` block on the loop's own thread is refused instead of hanging")
def test_a_sync_block_on_the_loops_own_thread_is_refused():
    async def main():
        with pytest.raises(WouldDeadlockError, match="async with"), TaskGroup():
            pass

    omniloop.run(main(), timeout=5)


@pytest.mark.promise("Worker threads that wait in blocks do not starve the pool")
def test_worker_threads_that_wait_in_blocks_do_not_starve_the_pool():
    def block(depth):
        with TaskGroup(runtime=runtime) as group:
            if depth:
                group.to_thread(block, depth - 1)

    with Runtime(max_workers=1) as runtime:
        runtime.to_thread(block, 5).result(5)


def test_two_runtimes_whose_blocks_wait_for_each_other_are_told():
    with Runtime(name="one") as one, Runtime(name="two") as two:

        async def on_two():
            with TaskGroup(runtime=one) as group:
                group.go(value(1))

        async def on_one():
            with TaskGroup(runtime=two) as group:
                group.go(on_two())

        # Of the two waits, the later one is told.
        with pytest.raises((ExceptionGroup, WouldDeadlockError), match="TaskGroup|would never end"):
            one.run(on_one(), timeout=8)


# --- ending well ------------------------------------------------------------------------------------------------------


def main_waits():
    """Whether the main thread waits for work, and no longer for the start of the loop."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and (frame.f_globals["__name__"], frame.f_code.co_name) != ("omniloop._life.waits", "wait"):
        frame = frame.f_back
    return frame is not None


async def interrupt_the_wait():
    while not main_waits():
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.promise("Ctrl-C in the wait cancels the group, and its clean-up runs")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_the_wait_cancels_the_group():
    def program():
        async def work():
            try:
                await interrupt_the_wait()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                print("cleaned up")

        try:
            with TaskGroup() as group:
                task = group.go(work())
        except KeyboardInterrupt:
            print("interrupted", task.cancelled())

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("cleaned up\ninterrupted True\n", "", 0)


def test_ctrl_c_in_an_async_block_cancels_the_group():
    def program():
        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                print("cleaned up")

        async def main():
            async with TaskGroup() as group:
                group.go(work())
                asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("cleaned up\ninterrupted\n", "", 0)


def test_ctrl_c_at_any_line_of_a_submission_leaves_no_block_waiting_for_ever():
    def attempt(interrupted):
        coros = [value(1), value(1)]
        # With a limit, so that its code is interrupted too.
        for coro, limit in zip(coros, (None, 1), strict=True):
            with contextlib.suppress(KeyboardInterrupt), TaskGroup(limit=limit) as group, interrupted():
                group.go(coro)
            # Nothing that the block would have waited for, for `cancel_timeout` at the most.
            assert not group._unfinished
        omniloop.flush(5)
        for coro in coros:
            coro.close()

    files = "_bridges/groups.py", "omniloop/_starting.py"
    assert interrupted_at_each_line(attempt, *files, through=("_work/task.py",)) > 8


@pytest.mark.promise("Ctrl-C at any line of a group's submission lets no task out of the group")
@pytest.mark.parametrize(
    ("submit", "options"),
    [
        (TaskGroup.go, {}),
        (TaskGroup.go, {"limit": 1}),
        (partial(TaskGroup.go, timeout=60), {}),
        (partial(TaskGroup.go, daemon=True), {}),
    ],
    ids=["go", "with a limit", "with a timeout", "a daemon"],
)
def test_ctrl_c_at_any_line_of_a_submission_lets_no_task_out_of_the_group(runtime, submit, options):
    """Where the loop had the task already, and nobody got its handle, it went on."""

    def attempt(interrupted, submit, options):
        coro = forever()
        with contextlib.suppress(KeyboardInterrupt), TaskGroup(runtime=runtime, **options) as group:
            with interrupted():
                submit(group, coro)
            group.cancel()
        # Cancelled by then, by the submission or the block: ended in a turn or two of the loop.
        tasks = runtime.tasks()
        left = concurrent.futures.wait(tasks, timeout=2).not_done
        for task in left:
            task.cancel()
        assert not left
        coro.close()

    # The group's lines, where it may have the task already; and those of the submission below it.
    files = "_bridges/groups.py", "omniloop/_starting.py", "omniloop/_runtime.py", "_work/inbox.py"
    assert interrupted_at_each_line(partial(attempt, submit=submit, options=options), *files) > 20


def test_at_exit_the_drain_finishes_a_group_that_another_thread_waits_for():
    def program():
        async def child():
            await asyncio.sleep(0.02)
            print("child")

        async def work(group):
            await asyncio.sleep(0.02)
            group.go(child())

        def component():
            with TaskGroup(limit=1) as group:
                group.go(work(group))
                ready.set()
            print("component")

        ready = threading.Event()
        threading.Thread(target=component).start()
        ready.wait()

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("child\ncomponent\n", "", 0)


@pytest.mark.promise("A group that is never ended is drained at exit")
def test_a_group_that_is_never_ended_is_drained_at_exit():
    def program():
        async def work():
            await asyncio.sleep(0.02)
            print("done")

        group = TaskGroup()
        group.go(work())

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("done\n", "", 0)


@pytest.mark.promise("A forked child does not wait for the parent's tasks")
def test_a_forked_child_does_not_wait_for_the_parents_tasks():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)

        async def work(pipe):
            await asyncio.get_running_loop().run_in_executor(None, os.read, pipe, 1)
            print("parent's work")

        def fork_in_a_block(end):
            read, write = os.pipe()
            try:
                with TaskGroup() as group:
                    group.go(work(read))
                    pid = os.fork()
                    if pid == 0:
                        end()
                    else:
                        _, status = os.waitpid(pid, 0)
                        os.write(write, b".")
            except ForkedError:
                print("child may not wait", flush=True)
                os._exit(1)
            return os.waitstatus_to_exitcode(status)

        print(fork_in_a_block(lambda: sys.exit(7)), flush=True)
        print(fork_in_a_block(lambda: None))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == (
        "parent's work\n7\nchild may not wait\nparent's work\n1\n",
        "",
        0,
    )


@pytest.mark.promise("Of many threads that submit while the group ends, each task is waited for or refused")
def test_many_threads_may_submit_while_the_group_ends_and_each_task_is_waited_for_or_refused():
    for _ in range(30):
        accepted, go_on = [], threading.Barrier(4)

        def submit():
            go_on.wait(5)
            while True:
                try:
                    accepted.append(group.go(value(1)))
                except ClosedError:
                    return

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        with TaskGroup() as group:
            go_on.wait(5)
            group.cancel()
        for thread in threads:
            thread.join(5)

        assert all(task.done() for task in accepted)


def test_a_daemon_of_a_group_is_waited_for_by_the_group(runtime):
    with TaskGroup(runtime=runtime) as group:
        task = group.go(asyncio.sleep(0.01, "done"), daemon=True)

    assert task.result(timeout=0) == "done"


@pytest.mark.promise("A supervised group reports each failure as it happens, and keeps a bounded number of them")
def test_a_supervised_group_reports_each_failure_and_keeps_a_bounded_number(runtime, failures):
    """A component's group, which ends with the program, kept every failure with its frames, and said nothing of any."""

    async def fail(number):
        raise LookupError(number)

    group = TaskGroup(supervised=True, runtime=runtime)
    refs = []
    for number in range(150):
        task = group.go(fail(number))
        refs.append(weakref.ref(task))
        del task
    runtime.flush(5)

    assert [failure.exception.args[0] for failure in failures] == list(range(150))
    failures.clear()
    gc.collect()
    assert sum(ref() is not None for ref in refs) == 100
    words = "unhandled errors in a TaskGroup: the first 100, and 50 more that were reported"
    with pytest.raises(ExceptionGroup, match=words) as caught, group:
        group.cancel()
    assert [error.args[0] for error in caught.value.exceptions] == list(range(100))
    assert failures == []


def test_the_last_task_may_end_at_any_line_of_the_wait():
    """A signal handler that cancelled the group between the look at its tasks and the making of the handle left the block waiting for ever."""
    release, lines, reached = threading.Event(), itertools.count(1), True

    def attempt(line):
        nonlocal reached
        group, left = TaskGroup(runtime=runtime), line

        def trace(frame, event, arg):
            nonlocal left
            if frame.f_code is not TaskGroup._waits.__code__:
                return None
            left -= event == "line"
            if not left:
                sys.settrace(None)
                group.cancel()
            return trace

        with group:
            # Is queued behind another call, and so ends in the thread that cancels it.
            group.to_thread(print)
            sys.settrace(trace)
        sys.settrace(None)
        reached = left == 0

    with Runtime(max_workers=1) as runtime:
        runtime.to_thread(release.wait, 60)
        try:
            while reached:
                thread = threading.Thread(target=attempt, args=[line := next(lines)], daemon=True)
                # Before the last line, the group is cancelled from here.
                timer = threading.Timer(
                    0.3, lambda: [task.cancel() for task in runtime.tasks() if "print" in task.get_name()]
                )
                timer.start()
                thread.start()
                thread.join(3)
                assert not thread.is_alive()
                timer.cancel()
        finally:
            release.set()
    assert line > 5


def test_a_block_that_is_left_because_of_its_time_limit_has_cancelled_its_tasks():
    """When the wait was over before the timer had come, the error said that the group was cancelled, and nothing was."""
    with Runtime(cancel_timeout=0.0) as runtime:
        group = TaskGroup(timeout=0.3, runtime=runtime)
        with pytest.raises(TaskTimeoutError, match="and was cancelled"), group:
            task = group.go(asyncio.sleep(30))
            # The loop comes to the timer only after the block's wait is over.
            runtime.run(asyncio.sleep(0))
            runtime.call_soon(time.sleep, 1)

        with pytest.raises(ClosedError, match=r"was cancelled after 0.3 s"):
            group.go(value(1))
        with pytest.raises(concurrent.futures.CancelledError):
            task.result(5)


def test_the_end_of_the_runtime_waits_no_longer_for_a_group_of_daemons_than_for_daemons():
    """A bare task at the end of a group was taken for one that waits for work: the end waited five seconds for it."""
    runtime = Runtime()

    async def service():
        async with TaskGroup(runtime=runtime) as group:
            group.go(forever(), daemon=True)

    async def begin():
        task = asyncio.create_task(service())
        await asyncio.sleep(0.01)
        return task

    task = runtime.run(begin())
    began = time.monotonic()
    runtime.shutdown()

    assert task.done()
    assert time.monotonic() - began < 3
