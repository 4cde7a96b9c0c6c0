"""Awaiting work under trio, and with anyio on both its backends."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import signal
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, TaskGroup, WrongLoopError, queue, to_thread

trio = pytest.importorskip("trio")
anyio = pytest.importorskip("anyio")
sniffio = pytest.importorskip("sniffio")


@pytest.fixture(params=["asyncio", "uvloop"])
def runtime(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(name=request.param, loop_factory=factory) as made:
        yield made


async def double(number):
    await asyncio.sleep(0.001)
    return 2 * number


async def fail():
    await asyncio.sleep(0.001)
    raise LookupError("not there")


class Cleaning:
    """Work that takes its time to clean up."""

    def __init__(self):
        self.started = threading.Event()
        self.cleaned_up = False

    async def __call__(self):
        try:
            self.started.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            self.cleaned_up = True


@pytest.mark.promise("A task can be awaited under trio")
def test_a_task_can_be_awaited_under_trio(runtime):
    async def main():
        task = runtime.go(double(1))
        return [await task, await task, await runtime.call_soon(pow, 3, 2), await runtime.to_thread(pow, 2, 3)]

    assert trio.run(main) == [2, 2, 9, 8]


def test_many_tasks_can_be_awaited_at_once_under_trio(runtime):
    results = []

    async def wait_for(number):
        results.append(await runtime.go(double(number)))

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(wait_for, number)

    trio.run(main)

    assert sorted(results) == [2 * number for number in range(100)]


def test_an_error_comes_out_under_trio(runtime):
    async def main():
        with pytest.raises(LookupError, match="not there"):
            await runtime.go(fail())

    trio.run(main)


def test_one_task_can_be_awaited_from_trio_and_asyncio_and_waited_for_at_once(runtime):
    gate = asyncio.Event()

    async def work():
        await gate.wait()
        return "one"

    task, ready = runtime.go(work()), threading.Barrier(3)

    async def main():
        ready.wait(timeout=5)
        return await task

    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(trio.run, main), pool.submit(lambda: asyncio.run(main()))]
        ready.wait(timeout=5)
        runtime.call_soon(gate.set)
        assert [task.result(timeout=5), *(wait.result(timeout=5) for wait in waits)] == ["one"] * 3


@pytest.mark.promise("A wait that trio cancels cancels the work, and waits for its clean-up")
def test_a_wait_that_trio_cancels_cancels_the_work_and_waits_for_its_clean_up(runtime):
    work = Cleaning()

    async def main():
        task = runtime.go(work())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def cancel():
                    while not work.started.is_set():
                        await trio.sleep(0.001)
                    scope.cancel()

                await task
        assert scope.cancelled_caught
        return work.cleaned_up, task.cancelled()

    assert trio.run(main) == (True, True)


def test_a_timeout_of_trio_ends_the_wait(runtime):
    work = Cleaning()

    async def main():
        task = runtime.go(work())
        while not work.started.is_set():
            await trio.sleep(0.001)
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await task
        return work.cleaned_up

    assert trio.run(main)


@pytest.mark.promise("If the work swallows the cancellation, its result comes out under trio too")
def test_if_the_work_swallows_the_cancellation_its_result_comes_out_under_trio(runtime):
    async def deaf():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "done all the same"

    async def main():
        task = runtime.go(deaf())
        while not task.running():
            await trio.sleep(0.001)
        with trio.move_on_after(0.01):
            return await task
        return "cancelled"

    assert trio.run(main) == "done all the same"


@pytest.mark.promise(
    "A time limit of trio, or of anyio, around an `await` of a function that runs is kept, and nothing spins"
)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_time_limit_around_a_function_that_runs_is_kept(runtime, backend):
    started, may_end = threading.Event(), threading.Event()

    async def main():
        begun = time.thread_time()
        with anyio.move_on_after(0.2) as scope:
            await task
        assert scope.cancelled_caught
        assert not task.done()
        # anyio asks in every turn of the loop until the wait ends.
        return time.thread_time() - begun

    task = runtime.to_thread(lambda: (started.set(), may_end.wait(timeout=10)))
    assert started.wait(timeout=5)
    try:
        # A collection may come; to spin until the function ends takes all of its ten seconds.
        assert anyio.run(main, backend=backend) < 1
    finally:
        may_end.set()


@pytest.mark.promise("`await task.wait(timeout)` leaves the work alone under trio too")
def test_a_wait_leaves_the_work_alone_under_trio(runtime):
    work = Cleaning()

    async def main():
        assert await task.wait(0) is False
        assert await task.wait(0.01) is False
        with trio.move_on_after(0.01) as scope:
            await task.wait()
        assert scope.cancelled_caught
        assert not task._meet().callbacks
        assert not task.done()
        task.cancel()
        assert await task.wait(5) is True
        assert await task.wait() is True

    task = runtime.go(work())
    assert work.started.wait(timeout=5)
    trio.run(main)

    assert task.cancelled()


@pytest.mark.promise("Work that another cancels raises `concurrent.futures.CancelledError` under trio")
def test_work_that_another_cancels_raises_the_errors_of_concurrent_futures_under_trio(runtime):
    """asyncio's own would be a BaseException that trio does not know."""

    async def main():
        task = runtime.go(asyncio.sleep(60))
        task.cancel()
        for _ in range(2):
            with pytest.raises(concurrent.futures.CancelledError):
                await task

    trio.run(main)


def test_what_is_awaited_without_any_loop_says_what_to_do(runtime):
    task = runtime.go(asyncio.sleep(60))

    with pytest.raises(RuntimeError, match=r"use result\(\)"):
        task.__await__().send(None)
    task.cancel()


@pytest.mark.promise("Trio in guest mode on an asyncio loop is told from that loop")
def test_guest_mode_of_trio_on_an_asyncio_loop_is_seen(runtime):
    async def under_trio():
        return await runtime.go(double(4))

    async def host():
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            under_trio, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        return (await done).unwrap(), await runtime.go(double(5))

    assert asyncio.run(host()) == (8, 10)


def test_the_context_goes_along_from_trio(runtime):
    variable = contextvars.ContextVar("variable")

    async def read():
        return variable.get()

    async def main():
        variable.set("of a trio task")
        return await runtime.go(read())

    assert trio.run(main) == "of a trio task"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
class TestAnyio:
    @pytest.mark.promise("With anyio a task can be awaited on both backends")
    def test_a_task_can_be_awaited(self, runtime, backend):
        async def main():
            return await runtime.go(double(1))

        assert anyio.run(main, backend=backend) == 2

    @pytest.mark.promise("Work that uses anyio runs on its asyncio backend, wherever it was started from")
    def test_the_work_itself_runs_on_asyncio_and_may_use_anyio(self, runtime, backend):
        """anyio keeps the name of the backend in the context, which goes along: the work took itself for trio's."""

        async def work():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.001)
            return sniffio.current_async_library()

        async def main():
            return await runtime.go(work())

        assert anyio.run(main, backend=backend) == "asyncio"

    @pytest.mark.promise("A cancelled scope of anyio asks the work to end once, and waits for its clean-up")
    def test_a_cancelled_scope_cancels_the_work_and_waits_for_its_clean_up(self, runtime, backend):
        """anyio asks again in every turn of its loop, which interrupted the clean-up."""
        work = Cleaning()

        async def main():
            task = runtime.go(work())
            while not work.started.is_set():
                await anyio.sleep(0.001)
            with anyio.move_on_after(0.01) as scope:
                await task
            assert scope.cancelled_caught
            return work.cleaned_up

        assert anyio.run(main, backend=backend)

    def test_a_worker_thread_can_be_awaited(self, backend):
        async def main():
            return await to_thread(pow, 2, 3)

        assert anyio.run(main, backend=backend) == 8


@pytest.mark.promise("Trio is not imported for those who do not use it")
def test_trio_is_not_imported_for_those_who_do_not_use_it():
    def program():
        async def main():
            await omniloop.go(asyncio.sleep(0))

        asyncio.run(main())
        print("trio" in sys.modules, "sniffio" in sys.modules)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("False False\n", "", 0)


@pytest.mark.promise("Work that was started under trio is finished at exit")
def test_work_that_was_started_under_trio_is_finished_at_exit():
    def program():
        async def work():
            await asyncio.sleep(0.1)
            print("done")

        async def main():
            omniloop.go(work())

        trio.run(main)
        print("trio ended")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("trio ended\ndone\n", "", 0)


@pytest.mark.promise("Ctrl-C under trio cancels the work that is waited for")
def test_ctrl_c_under_trio_cancels_the_work():
    def program():
        started = threading.Event()

        async def work():
            try:
                started.set()
                await asyncio.sleep(60)
            finally:
                print("cleaned up")

        async def main():
            task = omniloop.go(work())
            started.wait()
            # Runs when this task waits.
            trio.lowlevel.current_trio_token().run_sync_soon(os.kill, os.getpid(), signal.SIGINT)
            await task

        try:
            trio.run(main)
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("cleaned up\ninterrupted\n", "", 0)


def test_what_trio_can_not_use_says_so(runtime):
    async def main():
        with pytest.raises(WrongLoopError, match=r"go\(q.async_q.get\(\)\)"):
            await queue(runtime=runtime).async_q.get()
        with pytest.raises(RuntimeError, match="needs to run in an asyncio task"):
            async with TaskGroup(runtime=runtime):
                pass

    trio.run(main)
