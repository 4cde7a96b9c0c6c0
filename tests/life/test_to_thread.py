"""`to_thread` runs blocking functions in worker threads, which are not starved by their own waits."""

import asyncio
import concurrent.futures
import errno
import importlib
import importlib.util
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

try:
    import resource
except ImportError:
    # Not on Windows.
    resource = None

import omniloop
from children import run_child
from omniloop import CannotStartError, Runtime, WouldDeadlockError, _hooks
from omniloop._life.workers import Workers


def test_a_function_runs_in_a_thread_that_is_not_the_loops(runtime):
    def where(*args, **kwargs):
        return threading.get_ident(), args, kwargs

    ident, args, kwargs = runtime.to_thread(where, 1, key=2).result(timeout=5)

    assert (args, kwargs) == ((1,), {"key": 2})
    assert ident not in (threading.get_ident(), runtime.call_soon(threading.get_ident).result(timeout=5))


def test_functions_run_at_the_same_time(runtime):
    barrier = threading.Barrier(4)

    tasks = [runtime.to_thread(barrier.wait, 5) for _ in range(4)]

    assert sorted(task.result(timeout=5) for task in tasks) == [0, 1, 2, 3]


def test_no_more_threads_run_than_max_workers_and_all_is_done():
    running, most, lock = 0, 0, threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return number

    with Runtime(name="small", max_workers=3) as small:
        tasks = [small.to_thread(work, number) for number in range(60)]
        assert [task.result(timeout=5) for task in tasks] == list(range(60))
    assert most <= 3


@pytest.mark.promise("There is a worker thread for every call while there is room")
def test_there_is_a_thread_for_every_call_while_there_is_room(runtime):
    """A worker that was taken for idle, because it was just about to take another job, held a call back for as long as it worked."""
    for _ in range(100):
        first, second = threading.Event(), threading.Event()

        def ping(first=first, second=second):
            first.set()
            return second.wait(timeout=4)

        def pong(first=first, second=second):
            second.set()
            return first.wait(timeout=4)

        tasks = [runtime.to_thread(ping), runtime.to_thread(pong)]
        assert [task.result(timeout=5) for task in tasks] == [True, True]


def test_it_can_be_cancelled_until_it_starts():
    with Runtime(name="small", max_workers=1) as small:
        started, go_on = threading.Event(), threading.Event()

        def block():
            started.set()
            return go_on.wait(timeout=5)

        ran = []
        runs = small.to_thread(block)
        assert started.wait(timeout=5)
        waits = small.to_thread(ran.append, 1)
        assert runs.running()
        assert not waits.running()

        assert runs.cancel() is False
        assert waits.cancel("too early") is True
        assert waits.cancelled()
        with pytest.raises(concurrent.futures.CancelledError, match="too early"):
            waits.result(timeout=0)

        go_on.set()
        assert runs.result(timeout=5) is True
    assert ran == []


def test_cancelling_races_with_the_start_and_either_wins(runtime):
    for _ in range(300):
        ran = []
        task = runtime.to_thread(ran.append, 1)
        if task.cancel():
            assert task.cancelled()
            assert ran == []
        else:
            assert task.result(timeout=5) is None
            assert ran == [1]


@pytest.mark.promise("A worker that waits for the runtime does not count against the pool")
def test_a_worker_that_waits_for_the_runtime_does_not_count_against_the_pool():
    """Blocking workers filled the pool, and the look-ups that they waited for never ran."""

    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    with Runtime(name="small", max_workers=2) as small:
        tasks = [small.to_thread(lambda: small.run(look_up(), timeout=5)) for _ in range(8)]
        for task in tasks:
            assert task.result(timeout=9)


def test_waits_may_be_nested_deeper_than_the_pool_is_wide():
    def nest(depth):
        return small.to_thread(nest, depth - 1).result(timeout=9) + 1 if depth else 0

    with Runtime(name="small", max_workers=1) as small:
        assert small.to_thread(nest, 20).result(timeout=9) == 20


def test_the_first_use_of_two_threads_at_once_may_be_a_call_in_a_thread():
    """The one that came second was told that the runtime was being started by the frame that it had interrupted."""

    def use():
        barrier.wait(timeout=5)
        results.append(runtime.to_thread(int, "7").result(timeout=5))

    for _ in range(20):
        results, barrier = [], threading.Barrier(3)
        with Runtime(name="first") as runtime:
            threads = [threading.Thread(target=use) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=5)
        assert results == [7, 7, 7]


@pytest.mark.promise("A call in a thread does not wait for another thread's start of the runtime")
def test_a_call_in_a_thread_does_not_wait_for_a_slow_start():
    def factory():
        starting.set()
        assert made.wait(timeout=9)
        return asyncio.new_event_loop()

    starting, made = threading.Event(), threading.Event()
    with Runtime(name="slow", loop_factory=factory) as runtime:
        first = threading.Thread(target=runtime.call_soon, args=(int,))
        first.start()
        assert starting.wait(timeout=5)
        assert runtime.to_thread(int, "7").result(timeout=9) == 7
        made.set()
        first.join(timeout=5)


@pytest.mark.promise("A call in a thread is made even where another thread's start of the runtime has failed")
def test_a_call_in_a_thread_is_made_where_another_start_has_failed():
    def factory():
        made.append(1)
        if len(made) == 1:
            starting.set()
            assert waits.wait(timeout=5)
            raise OSError("not this time")
        return asyncio.new_event_loop()

    def begin():
        with pytest.raises(CannotStartError, match="not this time"):
            runtime.call_soon(int)
        refused.set()

    made, starting, waits, refused = [], threading.Event(), threading.Event(), threading.Event()
    with Runtime(name="second", loop_factory=factory) as runtime:
        first = threading.Thread(target=begin)
        first.start()
        assert starting.wait(timeout=5)
        # Whether the call comes while the other waits, or after, the value is the same.
        threading.Timer(0.05, waits.set).start()
        assert runtime.to_thread(int, "7").result(timeout=9) == 7
        assert refused.wait(timeout=5)
        assert runtime.call_soon(int, "8").result(timeout=9) == 8


@pytest.mark.promise("So it is in the frame that the start has interrupted")
def test_in_the_frame_that_the_start_interrupted_it_is_made():
    """It was refused, because there was no pool yet."""
    tasks = []

    def factory():
        tasks.append(runtime.to_thread(int, "7"))
        return asyncio.new_event_loop()

    with Runtime(name="first", loop_factory=factory) as runtime:
        assert runtime.call_soon(int).result(timeout=5) == 0
        assert tasks[0].result(timeout=5) == 7


def without_room_for_a_thread():
    # No room for its stack.
    size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    threading.stack_size(512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
    for call in (omniloop.to_thread, omniloop.call_soon):
        try:
            call(int)
        except CannotStartError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    threading.stack_size(0)
    print(omniloop.to_thread(int, "7").result(timeout=5))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads are not bounded by the address space")
@pytest.mark.promise("So it is where no thread is to be had")
def test_no_thread_to_be_had_is_an_error_that_says_so_and_the_next_use_works():
    result = run_child(without_room_for_a_thread)

    line = "omniloop can't start its thread here: can't start new thread.\n"
    assert (result.stdout, result.stderr, result.code) == (f"{line}{line}7\n", "", 0)


def where_there_are_no_threads():
    def no_threads(thread):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = no_threads
    make_loop, made = asyncio.new_event_loop, []

    def new_event_loop():
        # On Pyodide a new loop takes the place of the page's, and is closed with its maker.
        made.append(make_loop())
        asyncio._set_running_loop(made[-1])
        return made[-1]

    async def work():
        return 7

    async def page():
        here = asyncio.get_running_loop()
        asyncio.new_event_loop = new_event_loop
        for call, what in [
            *((call, work) for call in (omniloop.go, omniloop.run, omniloop.try_go)),
            *((call, int) for call in (omniloop.call_soon, omniloop.to_thread)),
            (lambda fn: omniloop.call_later(0, fn), int),
            (lambda fn: omniloop.every(1, fn), int),
        ]:
            try:
                call(what() if what is work else what)
            except CannotStartError as error:
                print(error)
        asyncio.new_event_loop = make_loop
        print(made, asyncio.get_running_loop() is here, await asyncio.create_task(work()))

    asyncio.run(page())


@pytest.mark.promise("And it leaves a loop alone that runs in the caller: it comes before a loop is made")
def test_where_there_are_no_threads_the_refusal_comes_before_a_loop_is_made():
    """On Pyodide the page's own coroutine broke: its loop was replaced, and closed."""
    result = run_child(where_there_are_no_threads)

    line = "omniloop can't start its thread here: can't start new thread.\n"
    assert result == (f"{line * 7}[] True 7\n", "", 0, result.seconds)


def test_a_loop_that_can_not_be_made_leaves_no_worker_behind():
    def factory():
        raise OSError("no loop today")

    with Runtime(name="loopless", loop_factory=factory) as runtime:
        with pytest.raises(CannotStartError, match="no loop today"):
            runtime.go(asyncio.sleep(0))
        for thread in threading.enumerate():
            if thread.name.startswith("loopless"):
                thread.join(5)
                assert not thread.is_alive()


def without_room_for_another_worker():
    with Runtime(max_workers=1) as runtime:
        runtime.to_thread(int).result(timeout=5)
        # As they do before a fork.
        runtime._life.workers.park(5)
        threading.stack_size(512 << 20)
        size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
        try:
            runtime.to_thread(int)
        except CannotStartError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        threading.stack_size(0)
        print(runtime.to_thread(int, "7").result(timeout=5))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads are not bounded by the address space")
def test_no_worker_to_be_had_is_an_error_that_says_so_and_the_next_use_works():
    """It was a bare RuntimeError."""
    result = run_child(without_room_for_another_worker)

    line = "omniloop can't start a worker thread here: can't start new thread.\n"
    assert (result.stdout, result.stderr, result.code) == (f"{line}7\n", "", 0)


def without_descriptors():
    # An import finds nothing where no file can be opened. This one is done here, also where imports are lazy.
    omniloop.run
    if importlib.util.find_spec("uvloop"):
        importlib.import_module("uvloop")
        importlib.import_module("omniloop._guests.uvloop")
    for room in (0, 1, 2, 5):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + room, hard))
        for call in (
            lambda: omniloop.call_soon(int),
            lambda: omniloop.run(asyncio.sleep(0)),
            lambda: omniloop.to_thread(int),
        ):
            try:
                call()
            except CannotStartError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(omniloop.run(asyncio.sleep(0, "up"), timeout=5))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.promise(
    "With no descriptors left at the first use it is a `CannotStartError`, and the next use works once there is room"
)
def test_no_descriptors_at_the_first_use_is_an_error_that_says_so_and_the_next_use_works(loop):
    """It was a bare OSError, with asyncio's complaint of its half-made loop; uvloop aborted the process."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")

    result = run_child(without_descriptors, env={"OMNILOOP_LOOP": loop}, flags=["-X", "dev"])

    # In the words of the C library: musl has others than glibc.
    line = f"omniloop can't start its thread here: [Errno 24] {os.strerror(errno.EMFILE)}.\n"
    assert (result.stdout, result.stderr, result.code) == (f"{line * 12}up\n", "", 0)


def test_the_loops_own_executor_is_the_same_pool(runtime):
    async def thread_name():
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert runtime.go(thread_name()).result(timeout=5).startswith("tested-worker-")
    assert runtime.to_thread(lambda: threading.current_thread().name).result(timeout=5).startswith("tested-worker-")


@pytest.mark.promise(
    "`StopIteration` from `asyncio.to_thread` in work is a `RuntimeError`, as from `to_thread`, and hangs nobody"
)
def test_stop_iteration_from_asyncios_to_thread_comes_out(runtime):
    """On 3.11 and 3.12 it can't be set on a future of asyncio's, and the work waited for ever."""

    async def work():
        await asyncio.to_thread(next, iter([]))

    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        runtime.run(work(), timeout=5)
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_call_that_found_no_thread_is_not_made_when_there_is_one(monkeypatch):
    """`asyncio.to_thread` raised, and the call was made by the worker that the next one started."""

    def no_room(thread):
        raise RuntimeError("can't start new thread")

    called = []
    pool = Workers("tight")
    monkeypatch.setattr(threading.Thread, "start", no_room)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(called.append, "refused")
    monkeypatch.undo()
    pool.submit(called.append, "made").result(timeout=5)
    pool.stop(5)

    assert called == ["made"]


# --- bounds -----------------------------------------------------------------------------------------------------------


def workers_of(name):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-worker")]


@pytest.mark.promise(
    "`max_workers` bounds the threads that run calls, `max_waiting_workers` those that wait for the runtime meanwhile"
)
def test_workers_that_wait_are_replaced_up_to_a_bound_and_all_is_done():
    """Each was replaced: 1,000 calls that waited for the runtime were 1,007 threads."""
    with Runtime(name="small", max_workers=2, max_waiting_workers=3) as small:
        gate = small.call_soon(asyncio.Event).result(timeout=5)
        calls = [small.to_thread(lambda: small.run(gate.wait())) for _ in range(50)]
        most = 0
        # As many as can wait do so: two that run calls, and what replaced three that wait.
        while len(small._life.workers._blocked) < 5:
            most = max(most, len(workers_of("small")))
        assert len(workers_of("small")) == 5
        small.call_soon(gate.set)
        for call in calls:
            assert call.result(timeout=9) is True
            most = max(most, len(workers_of("small")))

    assert most <= 5


def test_a_wait_at_the_bound_simply_waits_where_the_loop_ends_it():
    """An error at the bound would fail most of what a pool without replacements gets done."""
    with Runtime(max_workers=1, max_waiting_workers=1) as small:
        # Longer than a wait that looks whether it can end.
        calls = [small.to_thread(small.run, asyncio.sleep(1.2, number)) for number in range(6)]

        assert [call.result(timeout=20) for call in calls] == list(range(6))


@pytest.mark.promise(
    "What the loop asks of its executor, a look-up for one, is served while all workers are busy or wait"
)
def test_what_the_loop_asks_is_served_while_all_workers_are_busy():
    with Runtime(name="small", max_workers=1, max_waiting_workers=1) as small:
        busy, go_on = threading.Event(), threading.Event()
        blocks = small.to_thread(lambda: (busy.set(), go_on.wait(9)))
        assert busy.wait(5)

        for _ in range(3):
            assert small.run(asyncio.to_thread(sum, [40, 2]), timeout=5) == 42
        go_on.set()
        blocks.result(timeout=5)

        # Nobody is kept for longer than that.
        until = time.monotonic() + 5
        while len(workers_of("small")) > 1:
            assert time.monotonic() < until
            time.sleep(0.001)


def test_what_the_loop_asks_is_served_while_all_workers_wait_for_it():
    async def look_up():
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        # Waits itself, and is replaced within the bound.
        return await asyncio.to_thread(lambda: small.run(asyncio.sleep(0, 42)))

    with Runtime(max_workers=1, max_waiting_workers=1) as small:
        calls = [small.to_thread(lambda: small.run(look_up())) for _ in range(20)]

        assert [call.result(timeout=9) for call in calls] == [42] * 20


@pytest.mark.promise("Workers that wait for each other in a circle are told so within a second or two")
@pytest.mark.parametrize("how", ["handles", "the loop's executor", "gathered", "in a group"])
def test_workers_that_all_wait_for_what_stands_behind_them_are_told(how):
    async def asks(depth):
        if how == "gathered":
            await asyncio.gather(asyncio.to_thread(nest, depth), asyncio.sleep(0))
        elif how == "in a group":
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.to_thread(nest, depth))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        else:
            await asyncio.to_thread(nest, depth)

    def nest(depth):
        if depth and how == "handles":
            small.to_thread(nest, depth - 1).result()
        elif depth:
            small.run(asks(depth - 1))

    with Runtime(max_workers=1, max_waiting_workers=2, on_error=lambda failure: None) as small:
        call = small.to_thread(nest, 5)
        # What is somebody's else does not hide it.
        small.go(asyncio.sleep(60), daemon=True)

        with pytest.raises(
            WouldDeadlockError, match="worker threads of 'omniloop' wait, for work that waits for a worker"
        ):
            call.result(timeout=15)


@pytest.mark.promise("Calls that come while another thread starts the runtime get a worker each, too")
def test_calls_that_come_while_the_runtime_starts_get_a_worker_each(monkeypatch):
    """The pool had room for one until then, and nobody looked again: calls that wait for each other stood still."""
    starting, others_put, host = threading.Event(), threading.Event(), _hooks.host

    class SlowHost:
        guest = host.guest

        def __call__(self):
            starting.set()
            assert others_put.wait(5)
            return host()

    monkeypatch.setattr(_hooks, "host", SlowHost())
    meet = threading.Barrier(4)
    # Where a loop is asked for, no host is.
    with Runtime(max_workers=4, loop_factory=None) as runtime:
        first = threading.Thread(target=runtime.call_soon, args=(int,))
        first.start()
        assert starting.wait(5)
        tasks = [runtime.to_thread(meet.wait, 5) for _ in range(4)]
        others_put.set()
        first.join(5)

        assert sorted(task.result(timeout=10) for task in tasks) == [0, 1, 2, 3]


@pytest.mark.promise(
    "A look-up is served while a worker whose place was taken makes a long call beside the one that took it"
)
def test_a_look_up_is_served_while_one_worker_more_than_the_bound_is_busy():
    """The worker too many was taken for the one that serves the loop."""
    over, both = threading.Event(), threading.Event()

    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)

    with Runtime(max_workers=1) as runtime:

        def first():
            runtime.run(asyncio.sleep(0.2))
            over.set()
            assert both.wait(10)

        def second():
            assert both.wait(10)

        tasks = [runtime.to_thread(first)]
        tasks.append(runtime.to_thread(second))
        assert over.wait(5)

        assert runtime.run(look_up(), timeout=5)
        both.set()
        for task in tasks:
            task.result(timeout=5)


@pytest.mark.promise("A start that is interrupted when the loop has its workers leaves them to the next")
def test_a_start_that_is_interrupted_late_leaves_the_workers_to_the_next():
    """The loop that was closed had shut the pool, and every look-up failed from then on."""

    class Interrupted(asyncio.SelectorEventLoop):
        interrupted = False

        def get_debug(self):
            if not Interrupted.interrupted and sys._getframe(1).f_code.co_name == "_make":
                Interrupted.interrupted = True
                raise KeyboardInterrupt
            return super().get_debug()

    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)

    with Runtime(loop_factory=Interrupted) as runtime:
        with pytest.raises(KeyboardInterrupt):
            runtime.call_soon(int)

        assert runtime.run(look_up(), timeout=5)
