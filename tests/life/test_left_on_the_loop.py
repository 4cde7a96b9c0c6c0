"""What work leaves on the loop by asyncio's own means, in one process: `flush`, the hold, and what the end takes it for."""

import asyncio
import gc
import threading
import time
import weakref

import anyio
import pytest

from omniloop import Runtime
from omniloop._work.leftovers import awaited


@pytest.fixture
def runtime():
    runtime = Runtime(name="left", leftover_timeout=0.3, cancel_timeout=1)
    yield runtime
    runtime.shutdown()


def leave(runtime, coro):
    """Have a piece of work leave a task for *coro* on the loop, and nobody refer to it."""

    async def work():
        return weakref.ref(asyncio.create_task(coro))

    return runtime.run(work())


@pytest.mark.promise("`flush()` does not wait for it, `flush(leftovers=True)` does", section="At exit")
def test_flush_waits_for_leftovers_only_if_asked(runtime):
    done, go_on = [], threading.Event()

    async def child():
        await asyncio.to_thread(go_on.wait, 5)
        await asyncio.sleep(0.1)
        done.append(1)

    leave(runtime, child())
    runtime.flush(timeout=5)
    assert done == []
    go_on.set()
    runtime.flush(timeout=5, leftovers=True)
    assert done == [1]


def test_flush_does_not_wait_for_a_reader_though_asked(runtime):
    leave(runtime, asyncio.Event().wait())
    start = time.monotonic()
    runtime.flush(timeout=20, leftovers=True)

    assert time.monotonic() - start < 5


@pytest.mark.promise("The loop refers to it until it is done")
@pytest.mark.parametrize("looked_at", [False, True])
def test_it_is_held_until_it_is_done_and_no_longer(runtime, looked_at):
    release = []

    async def child():
        future = asyncio.get_running_loop().create_future()
        release.append(weakref.ref(future))
        await future

    task = leave(runtime, child())
    if looked_at:
        runtime.run(asyncio.sleep(0.1))
    runtime.run(asyncio.sleep(0))
    gc.collect()
    assert task() is not None

    runtime.call_soon(lambda: release[0]().set_result(None))
    runtime.run(asyncio.sleep(0.1))
    gc.collect()
    assert task() is None


@pytest.mark.promise("`leftover_timeout` 0 cancels them at once, without a word")
def test_a_timeout_of_nothing_cancels_at_once(caplog):
    ended = []

    async def child():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    runtime = Runtime(name="left", leftover_timeout=0)
    leave(runtime, child())
    runtime.run(asyncio.sleep(0))
    start = time.monotonic()
    runtime.shutdown()

    assert ended == [1]
    assert caplog.records == []
    # With a timer ahead it would be waited for, for five seconds by default.
    assert time.monotonic() - start < 4


@pytest.mark.promise(
    "What it waits for and is known to come is waited for: a timer, a thread, a handle, another task, a child process"
)
@pytest.mark.parametrize(
    "what",
    [
        "a timer",
        "a thread",
        "a handle",
        "another task",
        "a group",
        "a shield",
        "a process",
        "a process's output",
        "a library's thread",
    ],
)
def test_what_is_known_to_come_is_waited_for(what):
    """Each takes longer than the half second after which what does not move is given up."""
    done = []

    async def child():
        match what:
            case "a timer":
                await asyncio.sleep(0.8)
            case "a thread":
                await asyncio.to_thread(time.sleep, 0.8)
            case "a handle":
                await runtime.go(asyncio.sleep(0.8))
            case "another task":
                await asyncio.gather(asyncio.sleep(0.8), asyncio.wait([asyncio.create_task(asyncio.sleep(0.8))]))
            case "a group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.sleep(0.8))
            case "a shield":
                await asyncio.shield(asyncio.create_task(asyncio.sleep(0.8)))
            case "a library's thread":
                await anyio.to_thread.run_sync(time.sleep, 0.8)
            case _:
                process = await asyncio.create_subprocess_exec("sleep", "0.8", stdout=asyncio.subprocess.PIPE)
                if what == "a process":
                    await process.communicate()
                else:
                    assert [line async for line in process.stdout] == []
                    await process.wait()
        done.append(1)

    runtime = Runtime(name="left", leftover_timeout=20)
    leave(runtime, child())
    runtime.shutdown()

    assert done == [1]


def test_it_is_known_by_what_it_waits_for_where_futures_are_written_in_python():
    """On PyPy the innermost frame was always that of the future, and the timer not seen: the leftover was given up after half a second."""

    class Loop(asyncio.SelectorEventLoop):
        def create_future(self):
            return asyncio.futures._PyFuture(loop=self)

    async def child():
        await asyncio.sleep(0.8)
        done.append(1)

    done = []
    runtime = Runtime(name="left", loop_factory=Loop)
    leave(runtime, child())
    runtime.shutdown()

    assert done == [1]


@pytest.mark.promise("A loop that stands still for a while, as on a busy machine, makes no leftover seem to be still")
def test_a_loop_that_stands_still_makes_no_leftover_seem_to_be_still():
    """The half second was over when the loop went on, and the leftover was given up just before it got what it waited for."""

    async def child():
        came, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.call_later(0.1, time.sleep, 0.8)
        # It is known to nobody. Sooner, while the loop stands still, nothing can come.
        loop.call_later(0.2, loop.call_later, 0.1, came.set)
        await came.wait()
        done.append(1)

    done = []
    runtime = Runtime(name="left", slow_callback=None)
    leave(runtime, child())
    runtime.shutdown()

    assert done == [1]


@pytest.mark.promise("One that waits for a call that is due only after its time is not waited for")
def test_a_call_that_is_not_due_in_time_is_not_waited_for():
    async def child():
        await runtime.call_later(60, int)

    runtime = Runtime(name="left", leftover_timeout=30)
    leave(runtime, child())
    start = time.monotonic()
    runtime.shutdown()

    assert time.monotonic() - start < 15


@pytest.mark.promise("A task factory of the user's, set before or after, is used, and what it makes is held")
def test_a_task_factory_of_the_users_is_used(runtime):
    made = []

    def factory(loop, coro, **options):
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    async def set_factory():
        asyncio.get_running_loop().set_task_factory(factory)

    async def child():
        await asyncio.sleep(0.05)
        done.set()

    done = threading.Event()
    runtime.run(set_factory())
    leave(runtime, child())
    gc.collect()

    assert done.wait(timeout=5)
    assert any(coro.__qualname__.endswith("child") for coro in made)


def test_what_a_task_waits_for_is_not_told_by_names_of_its_own(runtime):
    """An attribute `_tasks` of a user's own was taken for the members of a task group, and what is awaited was left out."""

    async def main():
        closed = asyncio.get_running_loop().create_future()

        class Server:
            async def serve(self):
                self._tasks = {asyncio.create_task(asyncio.sleep(60))}
                await closed

        server = Server()
        task = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        found = awaited(task)
        closed.set_result(None)
        await task
        server._tasks.pop().cancel()
        return found == [closed]

    assert runtime.run(main())
