"""A `Runtime` of one's own is kept apart from every other: its thread, its loop, its workers, its settings, its end."""

import asyncio
import threading

import pytest

import omniloop
from omniloop import ClosedError, Runtime


async def thread_name():
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_each_has_a_thread_and_a_loop_of_its_own_under_its_name():
    with Runtime(name="one") as one, Runtime(name="two") as two:
        assert one.run(thread_name()) == "one"
        assert two.run(thread_name()) == "two"
        loops = [runtime.call_soon(asyncio.get_running_loop).result(timeout=5) for runtime in (one, two)]
        assert loops[0] is not loops[1]


def test_making_one_starts_nothing_and_the_thread_is_a_daemon():
    before = threading.active_count()
    runtime = Runtime(name="made")
    assert threading.active_count() == before

    assert runtime.call_soon(lambda: threading.current_thread().daemon).result(timeout=5) is True
    runtime.shutdown()


def test_as_a_context_manager_it_drains_at_the_end_and_refuses_afterwards():
    done = []

    async def work():
        await asyncio.sleep(0.01)
        done.append(1)

    with Runtime(name="context") as runtime:
        runtime.go(work())

    assert done == [1]
    with pytest.raises(ClosedError):
        runtime.call_soon(int)


def test_it_drains_when_its_block_is_left_by_an_error():
    done = []

    with pytest.raises(KeyError), Runtime(name="context") as runtime:
        runtime.call_soon(done.append, 1)
        raise KeyError

    assert done == [1]


def test_the_functions_of_the_module_share_one():
    async def first():
        return await omniloop.go(thread_name())

    names = {
        omniloop.run(thread_name()),
        omniloop.go(first()).result(timeout=5),
        omniloop.call_soon(lambda: threading.current_thread().name).result(timeout=5),
        omniloop.call_later(0, thread_name).result(timeout=5),
        omniloop.shared_runtime().run(thread_name()),
    }

    assert names == {"omniloop"}
    omniloop.flush(timeout=5)


def test_a_runtime_that_ends_leaves_no_thread_and_no_open_file():
    import os

    def descriptors():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def use():
        with Runtime(name="ended") as runtime:
            runtime.run(thread_name())
            runtime.to_thread(int).result(timeout=5)

    use()
    threads, files = threading.active_count(), descriptors()
    for _ in range(20):
        use()

    assert threading.active_count() == threads
    assert descriptors() == files


def test_a_loop_that_is_stopped_behind_its_back_is_entered_again():
    def stop():
        loop = asyncio.get_running_loop()
        type(loop).stop(loop)

    with Runtime(name="stopped") as runtime:
        pending = runtime.go(asyncio.sleep(60))
        runtime.call_soon(stop).result(timeout=5)

        assert runtime.run(thread_name(), timeout=5) == "stopped"
        assert not pending.done()
        pending.cancel()
