"""All of the suite runs on uvloop with OMNILOOP_LOOP=uvloop; here is what must work on it in every run."""

import asyncio
import socket
import threading

import pytest

from children import run_child
from omniloop import OmniloopError, Runtime, WouldDeadlockError, go

uvloop = pytest.importorskip("uvloop")


@pytest.fixture
def runtime():
    with Runtime(name="uv", loop_factory=uvloop.new_event_loop) as runtime:
        yield runtime


async def work(value="done"):
    await asyncio.sleep(0.001)
    return value


def test_the_loop_is_one_of_uvloop(runtime):
    assert isinstance(runtime.call_soon(asyncio.get_running_loop).result(timeout=5), uvloop.Loop)


@pytest.mark.promise(
    "On uvloop with asyncio's eager task factory work is done where uvloop can start tasks by it, and else fails by its handle; nothing hangs",
    section="Other worlds",
)
@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="new in 3.12")
def test_with_an_eager_task_factory_work_is_done_or_fails_by_its_handle():
    """uvloop 0.23 starts nothing eagerly on 3.14 and 3.15, and on 3.13 each `create_task` is a TypeError."""

    def eager():
        loop = uvloop.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    async def creates():
        return await asyncio.get_running_loop().create_task(work())

    def outcome_of(call, *args):
        try:
            return call(*args)
        except TypeError as error:
            return str(error)

    loop, coro = eager(), work()
    expected = outcome_of(lambda: loop.run_until_complete(loop.create_task(coro)))
    coro.close()
    loop.close()
    with Runtime(name="eager", loop_factory=eager, on_error=lambda _: None) as runtime:
        assert outcome_of(runtime.go(creates()).result, 5) == expected
        assert outcome_of(runtime.run, creates()) == expected
        assert runtime.to_thread(int, "7").result(timeout=5) == 7
        runtime.flush(timeout=5)


def test_every_kind_of_submission_works(runtime):
    assert runtime.go(work()).result(timeout=5) == "done"
    assert runtime.run(work()) == "done"
    assert runtime.call_soon(int, "7").result(timeout=5) == 7
    assert runtime.call_later(0.001, work, 7).result(timeout=5) == 7
    assert runtime.to_thread(int, "7").result(timeout=5) == 7
    ticks = threading.Semaphore(0)
    runtime.every(0.001, ticks.release)
    assert all(ticks.acquire(timeout=5) for _ in range(3))
    runtime.flush(timeout=5)


def test_it_can_be_awaited_from_asyncio_and_from_another_uvloop(runtime):
    async def main():
        return await runtime.go(work())

    assert asyncio.run(main()) == "done"
    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(main()) == "done"
    loop.close()


def test_poison_does_not_stop_it_and_nor_does_stop(runtime):
    async def poison(error):
        await asyncio.sleep(0)
        raise error

    async def stops():
        asyncio.get_running_loop().stop()

    for error in (SystemExit, KeyboardInterrupt):
        with pytest.raises(error):
            runtime.go(poison(error)).result(timeout=5)
    with pytest.raises(OmniloopError, match=r"shutdown\(\)"):
        runtime.go(stops()).result(timeout=5)
    assert runtime.run(work()) == "done"


def test_waiting_on_its_own_thread_is_refused(runtime):
    with pytest.raises(WouldDeadlockError):
        runtime.call_soon(lambda: runtime.run(work())).result(timeout=5)


def test_the_pool_is_the_loops_executor_and_looks_up_names(runtime):
    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    async def in_a_thread():
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert runtime.run(look_up(), timeout=5)
    assert runtime.run(in_a_thread(), timeout=5).startswith("uv-worker-")


def test_the_environment_chooses_it_and_forgotten_work_is_done_at_exit():
    def program():
        async def work():
            await asyncio.sleep(0.01)
            await asyncio.to_thread(int)
            print(type(asyncio.get_running_loop()).__module__, flush=True)

        go(work())

    result = run_child(
        program,
        env={"OMNILOOP_LOOP": "uvloop"},
    )

    assert (result.stdout, result.stderr, result.code) == ("uvloop\n", "", 0)
