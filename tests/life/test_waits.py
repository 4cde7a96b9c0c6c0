"""Every wait takes any number of seconds, keeps its own limit, looks up once a second, and goes by the real clock."""

import asyncio
import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, TaskGroup, WaitTimeoutError

# --- any number of seconds --------------------------------------------------------------------------------------------

HUGE = [math.inf, 1e12, 10**300]


async def clean_up(started, ended):
    try:
        started.set()
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.001)
        ended.append(True)


async def work():
    await asyncio.sleep(0.001)
    return "done"


async def items():
    yield await work()


@pytest.mark.promise("Every wait takes any number of seconds, `inf` too", section="Waiting")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("seconds", HUGE)
def test_every_wait_takes_any_number_of_seconds(seconds, loop):
    """A lock, a thread and a timer of uvloop refuse what is more than they can count to."""
    factory = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    runtime = Runtime(name="patient", cancel_timeout=seconds, loop_factory=factory)
    with contextlib.suppress(omniloop.SettingError):
        runtime.configure(exit_timeout=seconds)
    started, ended = threading.Event(), []
    runtime.go(clean_up(started, ended), daemon=True)
    assert started.wait(timeout=5)

    task = runtime.go(work(), timeout=seconds)
    assert task.result(seconds) == "done"
    assert task.exception(seconds) is None
    assert runtime.run(work(), timeout=seconds) == "done"
    assert runtime.run(runtime.go(work()).wait(seconds))
    with TaskGroup(timeout=seconds, runtime=runtime) as group:
        group.go(work())
    with pytest.raises(ExceptionGroup), TaskGroup(runtime=runtime) as group:
        group.go(asyncio.sleep(60))
        raise LookupError
    assert list(omniloop.map(wait_for, [1], timeout=seconds, runtime=runtime)) == [1]
    with omniloop.iterate(items(), runtime=runtime) as found:
        assert list(found) == ["done"]
    queue = omniloop.queue(1, runtime=runtime)
    queue.sync_q.put("item", timeout=seconds)
    runtime.call_later(0.001, queue.sync_q.get)
    queue.sync_q.put("another", timeout=seconds)
    assert queue.sync_q.get(timeout=seconds) == "another"
    with omniloop.resource(work, lambda _: None, runtime=runtime) as kept:
        assert kept.run(wait_for, timeout=seconds) == "done"
        kept.close(seconds)
    runtime.flush(seconds)
    runtime.shutdown(seconds)

    assert ended == [True]


async def wait_for(client):
    return client


@pytest.mark.promise("An endless `cancel_timeout` ends the runtime as any other does")
@pytest.mark.parametrize("seconds", HUGE)
def test_an_endless_cancel_timeout_leaves_nothing_half_shut(seconds):
    """The threads were joined with it: OverflowError, and the runtime stayed half shut."""
    started, ended = threading.Event(), []
    runtime = Runtime(name="patient", cancel_timeout=seconds)
    task = runtime.go(clean_up(started, ended))
    assert started.wait(timeout=5)

    runtime.shutdown(timeout=0)

    assert task.cancelled()
    assert ended == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patient")]


# --- no longer than its own limit -------------------------------------------------------------------------------------


@pytest.mark.promise("`shutdown(timeout)` keeps its limit, whatever another thread's `shutdown` waits for")
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_shutdown_is_not_held_up_by_another_that_has_more_time(timeout):
    """It waited, without end, until that of the other thread was over."""
    runtime = Runtime(name="shut twice")
    started, ended = threading.Event(), []
    task = runtime.go(clean_up(started, ended))
    assert started.wait(timeout=5)
    draining = threading.Event()
    # In the drain, it waits by way of the inbox.
    other = threading.Thread(target=lambda: (draining.set(), runtime.shutdown(None)))
    other.start()
    draining.wait(timeout=5)
    while not runtime._closing._is_owned() and runtime._closing.acquire(blocking=False):
        runtime._closing.release()
        time.sleep(0.001)

    runtime.shutdown(timeout=timeout)

    assert task.cancelled()
    assert ended == [True]
    other.join(timeout=5)
    assert not other.is_alive()


# --- the real clock ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["monkeypatch", "freezegun"])
def frozen(request, monkeypatch):
    """Time stands still, for whoever asks the module `time`."""
    if request.param == "monkeypatch":
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        yield
    else:
        with pytest.importorskip("freezegun").freeze_time("2020-01-01"):
            yield


@pytest.mark.promise("What freezes time in a test freezes no wait, no drain and no timer of omniloop's")
def test_waits_go_by_the_real_clock(frozen):
    """They waited for ever: a deadline that is told by a clock that stands still never comes."""
    runtime = Runtime(name="in frozen time", cancel_timeout=0.05)
    runtime.configure(slow_callback=0.5)
    started, ended = threading.Event(), []
    task = runtime.go(clean_up(started, ended))
    assert started.wait(timeout=5)

    assert runtime.run(work()) == "done"
    with pytest.raises(WaitTimeoutError):
        task.result(1.01)
    with pytest.raises(WaitTimeoutError):
        runtime.flush(0.01)
    with pytest.raises(TimeoutError):
        runtime.run(asyncio.sleep(60), timeout=0.01)
    with pytest.raises(TimeoutError):
        runtime.go(asyncio.sleep(60), timeout=0.01).result(5)
    with pytest.raises(TimeoutError), TaskGroup(timeout=0.01, runtime=runtime) as group:
        group.go(asyncio.sleep(60))
    runtime.call_later(0.01, ended.append, "later").result(timeout=5)
    runtime.shutdown(0.01)

    assert ended == ["later", True]


def test_where_time_is_frozen_when_omniloop_is_imported_its_clock_goes_on():
    def program():
        time.monotonic = lambda: 42.0
        from omniloop import TaskTimeoutError, go

        try:
            go(asyncio.sleep(60), timeout=0.01).result(5)
        except TaskTimeoutError:
            print("in time")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("in time\n", "", 0)


# --- it looks up ------------------------------------------------------------------------------------------------------


def look_up_more_often():
    """Not once a second: a test waits until a wait is past its first look."""
    from omniloop import _threads
    from omniloop._bridges import queue
    from omniloop._life import waits
    from omniloop._seen import progress

    for module in (_threads, queue, progress, waits):
        module.LOOK_UP = 0.05


def doors():
    """Each way to wait without end, as a function that does."""

    def block():
        threading.Event().wait(60)

    async def forever():
        await asyncio.Event().wait()

    async def forever_with(item):
        await asyncio.Event().wait()

    async def never():
        await asyncio.Event().wait()
        yield

    def in_group():
        with omniloop.TaskGroup() as group:
            group.go(forever())

    def full():
        queue = omniloop.queue(1)
        queue.sync_q.put(1)
        queue.sync_q.put(2)

    def unfinished():
        queue = omniloop.queue(1)
        queue.sync_q.put(1)
        queue.sync_q.join()

    def in_another_runtime(wait):
        runtime = omniloop.Runtime(exit_timeout=0, cancel_timeout=0.1)
        runtime.go(forever())
        return lambda: wait(runtime)

    return {
        "run": lambda: omniloop.run(forever()),
        "run(timeout)": lambda: omniloop.run(forever(), timeout=60),
        "result": lambda: omniloop.go(forever(), daemon=True).result(),
        "result(timeout)": lambda: omniloop.go(forever(), daemon=True).result(timeout=60),
        "exception": lambda: omniloop.go(forever(), daemon=True).exception(),
        "flush": in_another_runtime(lambda runtime: runtime.flush()),
        "shutdown": in_another_runtime(lambda runtime: runtime.shutdown(None)),
        "TaskGroup": in_group,
        "map": lambda: list(omniloop.map(forever_with, [1])),
        "iterate": lambda: list(omniloop.iterate(never())),
        "blocking": lambda: omniloop.blocking(forever)(),
        "twin": lambda: list(omniloop.blocking(never)()),
        "queue.get": lambda: omniloop.queue().sync_q.get(),
        "queue.put": full,
        "queue.join": unfinished,
    }


@pytest.mark.promise(
    "Ctrl-C ends a wait also where the wait for a lock can't be interrupted: every wait looks up once a second"
)
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="how the wait is made one that can't be interrupted")
def test_ctrl_c_comes_through_where_the_wait_for_a_lock_can_not_be_interrupted():
    def program():
        look_up_more_often()
        import omniloop

        omniloop.configure(cancel_timeout=0.1)
        # Started: its threads take the signal, which so does not come into the wait of this one.
        omniloop.run(asyncio.sleep(0))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        for name, wait in doors().items():
            timer = None
            try:
                # When it is past its first look; in here, as a busy machine may come to it sooner.
                timer = omniloop.call_later(0.15, os.kill, os.getpid(), signal.SIGINT)
                wait()
            except KeyboardInterrupt:
                continue
            finally:
                if timer is not None:
                    timer.cancel()
            # By which Ctrl-C ends the waiting, not the shutdown.
            if name != "shutdown":
                print(name, "ended by itself")
        print("all", flush=True)
        os._exit(0)

    result = run_child(program)

    assert (result.stdout, result.code) == ("all\n", 0), result.stderr


@pytest.mark.promise(
    "An exception that another thread has set (dramatiq's time limits) comes into a wait of any length"
)
def test_an_exception_that_another_thread_has_set_comes_into_a_wait():
    """It came when the wait was over: after 12 s, where a time limit of 2 s was set."""

    def program():
        look_up_more_often()
        import omniloop

        class LimitError(Exception):
            pass

        def wait_in_thread(name, wait):
            begun.release()
            try:
                wait()
            except LimitError:
                ended.append(name)

        omniloop.configure(cancel_timeout=0.1)
        omniloop.run(asyncio.sleep(0))
        begun, ended, threads = threading.Semaphore(0), [], []
        for name, wait in doors().items():
            thread = threading.Thread(target=wait_in_thread, args=(name, wait), daemon=True)
            thread.start()
            assert begun.acquire(timeout=10)
            threads.append(thread)
        # All are past their first look.
        time.sleep(0.2)
        for thread in threads:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(LimitError))
        for thread in threads:
            thread.join(timeout=10)
        print("not ended:", sorted(doors().keys() - set(ended)), flush=True)
        os._exit(0)

    result = run_child(program)

    assert (result.stdout, result.code) == ("not ended: []\n", 0), result.stderr


@pytest.mark.promise("`pdb -p` and `sys.remote_exec` come into a wait of any length")
@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in 3.14")
def test_remote_exec_comes_into_a_wait(tmp_path):
    def program():
        look_up_more_often()
        import builtins

        import omniloop

        async def work():
            builtins.came = threading.Event()
            await asyncio.sleep(0.15)
            try:
                await asyncio.to_thread(sys.remote_exec, os.getpid(), os.environ["SCRIPT"])
            except PermissionError as error:
                return f"not allowed here: {error}"
            return await asyncio.to_thread(builtins.came.wait, 10)

        print(omniloop.run(work()))

    script = tmp_path / "script.py"
    script.write_text("import builtins\nbuiltins.came.set()\n")
    result = run_child(program, env={"SCRIPT": str(script)})
    if result.stdout.startswith("not allowed"):
        pytest.skip(result.stdout)

    assert (result.stdout, result.stderr, result.code) == ("True\n", "", 0)
