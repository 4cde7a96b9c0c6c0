"""Runtimes of one's own: a loop, a name and settings for each, side by side with the one that the process shares."""

import asyncio
import os
import signal
import sys
import threading
import warnings

import pytest

import omniloop
from children import run_child
from omniloop import AlreadyRunningError, ClosedError, Runtime, SettingError, TaskGroup, WouldDeadlockError, background


async def value(thing):
    await asyncio.sleep(0)
    return thing


async def where():
    return asyncio.get_running_loop(), threading.current_thread().name


@pytest.mark.promise("Each has its loop, and its thread by its name")
def test_each_has_its_loop_and_its_thread_by_its_name():
    with Runtime(name="one") as one, Runtime(name="two") as two:
        places = [one.run(where()), two.run(where()), omniloop.run(where())]

    assert len({loop for loop, _ in places}) == 3
    assert [name for _, name in places] == ["one", "two", "omniloop"]


@pytest.mark.promise("The end of its block drains it, and leaves the others alone")
def test_the_end_of_its_block_drains_it_and_leaves_the_others_alone():
    done = []

    async def work(name, event):
        await event.wait()
        done.append(name)

    async def open_event(event):
        event.set()

    event, others = asyncio.Event(), asyncio.Event()
    other = omniloop.go(work("shared", others))
    with Runtime() as runtime:
        runtime.go(work("own", event))
        runtime.go(open_event(event))

    assert (done, other.done()) == (["own"], False)
    omniloop.run(open_event(others))
    other.result(5)


def test_after_its_end_it_refuses_and_the_shared_one_does_not():
    with Runtime(name="ended") as runtime:
        runtime.run(value(1))

    with pytest.raises(ClosedError, match="'ended' is shut down"):
        runtime.go(value(1))
    assert omniloop.run(value(1)) == 1


def test_an_error_in_its_block_comes_out_after_the_drain():
    done = []
    with pytest.raises(ValueError, match="^mine$"), Runtime() as runtime:
        runtime.call_soon(done.append, 1)
        raise ValueError("mine")

    assert done == [1]


# --- loops ------------------------------------------------------------------------------------------------------------


class MyLoop(asyncio.SelectorEventLoop):
    pass


@pytest.mark.promise("`loop_factory` makes its loop")
def test_loop_factory_makes_the_loop():
    with Runtime(loop_factory=MyLoop) as runtime:
        loop, _ = runtime.run(where())

        assert type(loop) is MyLoop
        assert loop is not omniloop.run(where())[0]
    assert loop.is_closed()


@pytest.mark.promise("uvloop and asyncio work side by side")
def test_uvloop_and_asyncio_work_side_by_side():
    uvloop = pytest.importorskip("uvloop")

    with (
        Runtime(loop_factory=uvloop.new_event_loop) as fast,
        Runtime(loop_factory=asyncio.SelectorEventLoop) as plain,
    ):

        async def across():
            return await plain.go(value(1)) + await fast.go(value(2)) + await omniloop.go(value(3))

        assert isinstance(fast.run(where())[0], uvloop.Loop)
        assert not isinstance(plain.run(where())[0], uvloop.Loop)
        assert [fast.run(across()), plain.run(across()), asyncio.run(across())] == [6, 6, 6]


def test_a_loop_factory_that_makes_no_loop_is_named():
    with (
        Runtime(loop_factory=dict) as runtime,
        pytest.raises(omniloop.OmniloopError, match=r"loop_factory returned \{\}"),
    ):
        runtime.go(value(1))


def test_a_loop_factory_that_can_not_be_called_is_refused():
    with pytest.raises(SettingError, match="loop_factory=5: give a callable"):
        Runtime(loop_factory=5)


def test_the_loop_of_a_running_runtime_can_not_be_changed():
    with Runtime() as runtime:
        runtime.configure(loop_factory=MyLoop)
        assert type(runtime.run(where())[0]) is MyLoop

        with pytest.raises(AlreadyRunningError, match="loop_factory"):
            runtime.configure(loop_factory=asyncio.new_event_loop)


# --- one and another --------------------------------------------------------------------------------------------------


def test_settings_of_one_are_not_the_others():
    reports = []
    with Runtime(on_error=reports.append, max_pending=1, when_full="raise") as strict, Runtime() as free:
        event = asyncio.Event()
        strict.go(event.wait())
        for _ in range(3):
            free.run(value(1))
            assert free.go(value(1)).result(5) == 1
        with pytest.raises(omniloop.FullError):
            strict.go(value(1))
        strict.run(asyncio.sleep(0))
        strict.call_later(0, event.set)

    assert reports == []


@pytest.mark.promise("A worker thread of one may wait for another")
def test_a_worker_of_one_may_wait_for_another():
    with Runtime(max_workers=1) as one, Runtime(max_workers=1) as two:

        def deeper(depth):
            near, far = (one, two) if depth % 2 else (two, one)
            return near.run(value(1)) + (far.to_thread(deeper, depth - 1).result(5) if depth else 0)

        assert one.to_thread(deeper, 6).result(8) == 7


@pytest.mark.promise("Loops that wait for each other in blocking calls are told")
def test_loops_that_wait_for_each_other_are_told():
    with Runtime(name="one") as one, Runtime(name="two") as two:

        async def on_two():
            return one.run(value(1))

        async def on_one():
            return two.run(on_two())

        with pytest.raises(WouldDeadlockError):
            one.run(on_one(), timeout=8)


def test_bridges_take_the_runtime_that_they_are_given():
    with Runtime(name="mine") as runtime:

        @background(runtime=runtime)
        async def call():
            return await where()

        with TaskGroup(runtime=runtime) as group:
            task = group.go(where())

        names = [
            call().result(5)[1],
            task.result(5)[1],
            *omniloop.map(lambda _: threading.current_thread().name, [1], runtime=runtime),
        ]

    assert names == ["mine", "mine", "mine-worker-1"]


# --- ending well ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("At exit all are drained, also for what they hand to each other")
def test_all_are_drained_at_exit_also_for_each_other():
    def program():
        async def relay(hops):
            await asyncio.sleep(0.01)
            if hops:
                runtimes[hops % 3].go(relay(hops - 1))
            else:
                print("arrived")

        runtimes = [omniloop.shared_runtime(), Runtime(name="one"), Runtime(name="two")]
        for runtime in runtimes:
            # 3.12 starts no thread any more when the interpreter ends.
            runtime.run(asyncio.sleep(0))
        runtimes[1].go(relay(10))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("arrived\n", "", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_all_work_in_a_forked_child():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)

        async def value(thing):
            await asyncio.sleep(0)
            return thing

        runtimes = [omniloop.shared_runtime(), Runtime(name="one"), Runtime(name="two")]
        before = [runtime.run(value(number)) for number, runtime in enumerate(runtimes)]
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        print([runtime.run(value(number)) for number, runtime in enumerate(runtimes)], flush=True)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("[0, 1, 2]\n" * 2, "", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_the_block_drains_the_runtime_and_goes_on():
    def program():
        async def work():
            while not in_the_block:
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.1)
            print("done")

        in_the_block = []

        try:
            with Runtime() as runtime:
                runtime.go(work())
                in_the_block.append(True)
                threading.Event().wait(5)
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("done\ninterrupted\n", "", 0)
