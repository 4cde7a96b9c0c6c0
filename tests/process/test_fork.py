"""What a fork does to the runtime, in the parent and in the child. Each test is an interpreter of its own."""

import asyncio
import atexit
import concurrent.futures
import ctypes
import gc
import importlib.abc
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import time

import pytest

try:
    import resource
except ImportError:
    # Not on Windows.
    resource = None

import omniloop
from children import run_child
from omniloop import go, run
from omniloop._life import life
from omniloop._process import exit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")

# Where a test forks with work pending, CPython is right to warn: threads are there.
# And in development mode, of what the test programs themselves leave open.
QUIET = ["-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]

from_3_15 = pytest.mark.skipif(sys.version_info < (3, 15), reason="imports can be lazy from 3.15 on")


def fork(child):
    """Fork; call *child* there and end as a program does. Returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(30)
    child()
    sys.exit(0)


def wait(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        print("the child ended with", code, flush=True)


async def answer(value=42):
    await asyncio.sleep(0)
    return value


def say(*words):
    # One system call, so that lines of parent and child do not mix.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def holds(name, event=None):
    """Waits, and tells where its clean-up runs."""
    pid = os.getpid()
    try:
        await (event or asyncio.Event()).wait()
        say(name, "done", "here" if os.getpid() == pid else "IN THE CHILD")
    finally:
        say(name, "cleaned up", "here" if os.getpid() == pid else "IN THE CHILD")


def start():
    # A child of a fork that hangs is ended by this.
    signal.alarm(30)


@pytest.mark.promise(
    "After a fork the runtime works at once in the child, which starts with nothing, and goes on in the parent"
)
def test_the_runtime_works_at_once_in_a_child_and_goes_on_in_the_parent():
    def program():
        run(answer())

        def child():
            assert omniloop.tasks() == []
            say("child", run(answer()), omniloop.to_thread(sum, [1, 2]).result())

            async def forgotten():
                await asyncio.sleep(0.05)
                say("child: done at exit")

            go(forgotten())

        wait(fork(child))
        say("parent", run(answer()), omniloop.to_thread(sum, [1, 2]).result())

    result = run_child(
        start,
        program,
        # CPython drops the warning if it is made an error.
        flags=["-W", "always::DeprecationWarning"],
    )

    assert result == ("child 42 3\nchild: done at exit\nparent 42 3\n", "", 0, result.seconds)


@pytest.mark.promise("A thread that a callback keeps past a fork leaves later, and the next one serves the loop")
@pytest.mark.parametrize("ended_first", [True, False])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_thread_that_a_callback_keeps_past_a_fork_is_followed_by_another(loop, ended_first):
    """The fork waited for the thread, in vain, and forgot it: the next one found the loop taken, and `run` on the loop's thread hung."""

    def program():
        start()
        run(answer())
        # A wait would wake the loop once a second, and heal what is lost.
        omniloop._life.waits.LOOK_UP = 60
        thread = omniloop._shared.shared_runtime()._life.thread
        loop, post = thread.loop, thread.post
        began, asked, forked = threading.Event(), threading.Event(), threading.Event()

        def before_the_fork():
            began.set()
            asked.wait(20)
            # In the same turn as the word to leave, and after it.
            loop.call_soon(forked.wait, 20)

        def post_and_tell(fn, *args):
            post(fn, *args)
            asked.set()

        async def waits_on_the_loops_thread():
            try:
                run(answer())
            except omniloop.WouldDeadlockError:
                return "told"

        loop.call_soon_threadsafe(before_the_fork)
        began.wait()
        thread.post = post_and_tell
        pid = fork(lambda: say("child", run(answer())))
        if ended_first:
            forked.set()
        task = go(waits_on_the_loops_thread())
        forked.set()
        say("parent", task.result(timeout=10), run(answer()))
        wait(pid)
        omniloop.shutdown()
        say([thread.name for thread in threading.enumerate()])

    if loop != "asyncio":
        pytest.importorskip(loop)
    result = run_child(program, flags=QUIET, env={"OMNILOOP_LOOP": loop})

    assert sorted(result.stdout.splitlines()) == ["['MainThread']", "child 42", "parent told 42"]
    assert result == (result.stdout, "", 0, result.seconds)


def test_a_fork_of_a_fork_works():
    def program():
        run(answer())

        def grandchild():
            say("grandchild", run(answer()))

        def child():
            say("child", run(answer()))
            wait(fork(grandchild))
            say("child", run(answer()))

        wait(fork(child))
        say("parent", run(answer()))

    result = run_child(
        start,
        program,
        # CPython drops the warning if it is made an error.
        flags=["-W", "always::DeprecationWarning"],
    )

    assert result == ("child 42\ngrandchild 42\nchild 42\nparent 42\n", "", 0, result.seconds)


@pytest.mark.promise("Nothing of the parent's runs or is cleaned up in the child, not even when the child ends")
def test_nothing_of_the_parents_runs_or_is_cleaned_up_in_the_child_not_even_when_the_child_ends():
    """A module global does not outlive finalisation: the `finally` blocks of the parent's work ran in the child."""

    def program():
        event = asyncio.Event()
        task = go(holds("work", event))
        daemon = go(holds("daemon"), daemon=True)

        async def generator():
            try:
                yield 1
                yield 2
            finally:
                say("generator cleaned up", os.getpid() == parent)

        parent = os.getpid()
        agen = generator()

        async def first():
            return await anext(agen)

        run(first())
        timer = omniloop.call_later(0.1, say, "timer")
        gone = go(holds("nobody holds its handle", event))
        omniloop.call_soon(gone.add_done_callback, lambda _: say("callback", os.getpid() == parent)).result()
        del gone

        def child():
            nonlocal task, daemon, agen, timer, event
            say("child", run(answer()))
            omniloop.run(asyncio.sleep(0.2))
            del task, daemon, agen, timer, event
            gc.collect()

        wait(fork(child))
        timer.result()
        omniloop.call_soon(event.set)

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert "CHILD" not in result.stdout and "False" not in result.stdout
    assert sorted(result.stdout.splitlines()) == [
        "callback True",
        "child 42",
        "daemon cleaned up here",
        "generator cleaned up True",
        "nobody holds its handle cleaned up here",
        "nobody holds its handle done here",
        "timer",
        "work cleaned up here",
        "work done here",
    ]
    assert (result.stderr, result.code) == ("", 0)


def ends():
    pass


def shuts_down():
    omniloop.shutdown()


def calls_os_exit():
    os._exit(0)


def deletes_and_collects():
    del omniloop.go
    gc.collect()


@pytest.mark.promise("The hook of a fork starts no thread in the child: that comes with its first use, or at its end")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("uses", [True, False])
def test_the_hook_of_a_fork_starts_no_thread_in_the_child(uses):
    """Where CPython's `Py_IncRef` is not to be had, one was started that holds what is inherited; PyPy crashes there."""

    def program():
        sys.modules["_ctypes"] = None
        event = asyncio.Event()
        go(holds("work", event))
        run(answer())
        parent = os.getpid()

        def child():
            say("threads", len(os.listdir("/proc/self/task")))
            if uses:
                say("child", run(answer()))
            gc.collect()

        wait(fork(child))
        omniloop.call_soon(event.set)

    result = run_child(start, program, flags=QUIET)

    assert "CHILD" not in result.stdout and "False" not in result.stdout
    expected = ["threads 1", *(["child 42"] if uses else [])]
    assert result.stdout.splitlines()[: len(expected)] == expected
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A child that does not use the runtime ends at once, and clean")
@pytest.mark.parametrize("ending", [ends, shuts_down, calls_os_exit, deletes_and_collects])
def test_a_child_that_does_not_use_the_runtime_ends_at_once_and_clean(ending):
    def program():
        task = go(holds("work"))
        daemon = go(holds("daemon"), daemon=True)
        run(answer())
        started = time.monotonic()
        wait(fork(ending))
        # `exit_timeout` is 25 s.
        print(time.monotonic() - started < 15)
        task.cancel()

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert "CHILD" not in result.stdout
    assert result.stdout.splitlines()[0] == "True"
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A handle of the parent's raises `ForkedError` in the child, at once, unless its work is done")
def test_a_handle_of_the_parents_raises_in_the_child_at_once_unless_it_is_done():
    def program():
        event = asyncio.Event()
        task = go(holds("work", event))

        async def fails():
            raise ValueError("of the parent's")

        done, failed = go(answer(7)), go(fails())
        concurrent.futures.wait([done, failed])

        async def awaits():
            await task

        def child():
            for wait_for_it in (
                lambda: task.result(),
                lambda: task.result(timeout=1),
                lambda: task.result(timeout=0),
                lambda: task.exception(),
                lambda: task.cancel(),
                lambda: task.add_done_callback(print),
                lambda: concurrent.futures.wait([task]),
                lambda: asyncio.run(awaits()),
                lambda: run(awaits()),
            ):
                try:
                    wait_for_it()
                except omniloop.ForkedError as error:
                    pass
                else:
                    say("no error")
            say(task.done(), done.result(), repr(failed.exception()))

        wait(fork(child))
        omniloop.call_soon(event.set)
        failed.exception()

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result.stdout.splitlines() == [
        'False 7 ValueError("of the parent\'s")',
        "work done here",
        "work cleaned up here",
    ]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A fork with no work pending warns of no threads")
def test_a_fork_with_no_work_pending_warns_of_no_threads():
    """CPython 3.12 and later warn of threads around a fork: ours end before it, and come back when they are used."""

    def program():
        def child():
            run(answer())

        pids = []
        run(answer())
        omniloop.to_thread(sum, [1]).result()
        idents = set()
        for _ in range(20):
            pids.append(fork(child))
            idents.add(omniloop.call_soon(threading.get_ident).result())
            omniloop.to_thread(sum, [1]).result()
        for pid in pids:
            wait(pid)
        print(run(answer()))

    result = run_child(
        start,
        program,
        # CPython drops the warning if it is made an error.
        flags=["-W", "always::DeprecationWarning"],
    )

    assert result == ("42\n", "", 0, result.seconds)


@pytest.mark.promise("A fork with work pending leaves the loop's thread the same")
def test_a_fork_with_work_pending_leaves_the_loops_thread_the_same():
    """sqlite3 connections and `threading.local` belong to it."""

    def program():
        task = go(holds("work"))
        before = omniloop.call_soon(threading.get_native_id).result()
        wait(fork(lambda: None))
        print(omniloop.call_soon(threading.get_native_id).result() == before)
        task.cancel()

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("True\nwork cleaned up here\n", "", 0, result.seconds)


@pytest.mark.promise("A call of `to_thread` that is left behind after a fork is made before the program ends")
def test_a_call_in_a_thread_that_is_left_after_a_fork_is_made():
    """On 3.12 it was lost: it started a worker but no loop, and when main has ended no thread can be started."""

    def program():
        run(answer())
        wait(fork(lambda: None))
        # It is under way when main ends.
        omniloop.to_thread(lambda: (time.sleep(0.5), say("made")))

    result = run_child(start, program, flags=QUIET)

    assert result == ("made\n", "", 0, result.seconds)


@pytest.mark.promise("Sockets and timers that were made without the runtime outlast a fork")
def test_sockets_and_timers_made_without_the_runtime_outlast_a_fork():
    def program():
        async def serve():
            async def echo(reader, writer):
                writer.write(await reader.readexactly(2))
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            asyncio.get_running_loop().call_later(0.1, fired.set)
            return server.sockets[0].getsockname()

        import socket

        fired = threading.Event()
        address = run(serve())
        wait(fork(lambda: None))
        with socket.create_connection(address) as client:
            client.sendall(b"hi")
            print(client.recv(2), fired.wait(20))

    result = run_child(
        start,
        program,
        flags=QUIET,
        # uvloop crashes at the end of a child that was forked with a server open, without us as well.
        env={"OMNILOOP_LOOP": "asyncio"},
    )

    assert result == ("b'hi' True\n", "", 0, result.seconds)


@pytest.mark.promise("An async generator that is open at a fork is closed at exit")
def test_an_async_generator_that_is_open_at_a_fork_is_closed_at_exit():
    """The thread had ended for the fork, and nothing brought it back."""

    def program():
        parent = os.getpid()

        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                say("closed", os.getpid() == parent)

        held = numbers()

        async def first():
            return await anext(held)

        run(first())
        wait(fork(lambda: None))

    result = run_child(
        start,
        program,
        flags=QUIET,
        # uvloop does not show what generators are open.
        env={"OMNILOOP_LOOP": "asyncio"},
    )

    assert result == ("closed True\n", "", 0, result.seconds)


@pytest.mark.promise("The child leaves the parent's sockets and loop alone")
def test_the_child_leaves_the_parents_sockets_and_loop_alone():
    """Closing the loop in the child breaks the parent's, whose epoll and wake-up pipe are the same ones."""

    def program():
        ours, theirs = socket.socketpair()

        async def receives():
            reader, writer = await asyncio.open_connection(sock=ours)
            data = await reader.readexactly(3)
            writer.close()
            return data

        task = go(receives())
        run(answer())

        def child():
            run(answer())
            omniloop.shutdown()
            gc.collect()

        wait(fork(child))
        theirs.sendall(b"abc")
        print(task.result(timeout=20), run(answer(), timeout=20))

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("b'abc' 42\n", "", 0, result.seconds)


@pytest.mark.promise("A blocked loop delays a fork by no more than a second")
def test_a_blocked_loop_delays_a_fork_by_no_more_than_a_second():
    def program():
        blocking, go_on = threading.Event(), threading.Event()

        def block():
            blocking.set()
            go_on.wait()

        omniloop.configure(slow_callback=None)
        task = omniloop.call_soon(block)
        blocking.wait()
        started = time.monotonic()
        pid = fork(lambda: say("child", run(answer())))
        took = time.monotonic() - started
        wait(pid)
        print(0.9 < took < 5)
        go_on.set()
        task.result()
        print("parent", run(answer()))
        wait(fork(lambda: say("child", run(answer()))))
        print("parent", run(answer()))

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert sorted(result.stdout.splitlines()) == ["True", "child 42", "child 42", "parent 42", "parent 42"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A fork while eight threads submit loses nothing")
@pytest.mark.alone
@pytest.mark.heavy
def test_a_fork_while_eight_threads_submit_loses_nothing_and_leaves_every_child_working():
    def program():
        stop = threading.Event()
        counts = [0] * 8
        finished = [0]

        async def work():
            finished[0] += 1

        def submits(number):
            while not stop.is_set():
                # Without a GIL eight threads submit more than one loop can do.
                if sum(counts) - finished[0] < 10_000:
                    for _ in range(20):
                        go(work())
                    counts[number] += 20
                time.sleep(0.0005)

        # Where imports are lazy, the threads would import it, and a child wait for an import that the fork has interrupted.
        go.__name__
        threads = [threading.Thread(target=submits, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            wait(fork(lambda: run(answer(), timeout=20)))
        stop.set()
        for thread in threads:
            thread.join()
        omniloop.flush()
        print(sum(counts) == finished[0], omniloop.tasks())

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("True []\n", "", 0, result.seconds)


def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def forks_under_load(times):
    stop = threading.Event()
    count, finished = 0, [0]

    async def work():
        await asyncio.sleep(0)
        finished[0] += 1

    def submits():
        nonlocal count
        while not stop.is_set():
            for _ in range(10):
                go(work())
            count += 10
            time.sleep(0.001)

    run(asyncio.sleep(0))
    omniloop.to_thread(sum, [1]).result()
    wait(fork(lambda: None))
    threads, files = threading.active_count(), descriptors()
    thread = threading.Thread(target=submits)
    thread.start()
    for number in range(times):
        pid = os.fork()
        if not pid:
            if number % 10 == 0:
                signal.alarm(30)
                run(answer(), timeout=20)
            os._exit(0)
        wait(pid)
    stop.set()
    thread.join()
    omniloop.flush()
    print(count == finished[0], omniloop.tasks(), descriptors() - files)
    wait(fork(lambda: None))
    print(threading.active_count() <= threads)


@pytest.mark.alone
@pytest.mark.heavy
def test_many_forks_under_load_lose_no_task_and_leak_no_descriptor_and_no_thread():
    def program():
        forks_under_load(times=150)

    result = run_child(start, program, flags=QUIET)

    assert result == ("True [] 0\nTrue\n", "", 0, result.seconds)


@pytest.mark.promise("A thousand forks under load lose no task and leak no descriptor and no thread")
@pytest.mark.soak
@pytest.mark.timeout(120)
def test_a_thousand_forks_under_load_lose_no_task_and_leak_no_descriptor_and_no_thread():
    def program():
        signal.alarm(100)
        forks_under_load(times=1000)

    result = run_child(program, flags=QUIET, timeout=110)

    assert result == ("True [] 0\nTrue\n", "", 0, result.seconds)


@pytest.mark.promise("A child forked while logging is busy can log")
def test_a_fork_with_the_lock_of_logging_busy_leaves_the_child_able_to_log():
    def program():
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        stop = threading.Event()

        class Slow(logging.Handler):
            def emit(self, record):
                time.sleep(0.002)

        busy = logging.getLogger("busy")
        busy.addHandler(Slow())
        busy.propagate = False

        def logs():
            while not stop.is_set():
                busy.warning("x")

        async def logs_too():
            while True:
                busy.warning("y")
                await asyncio.sleep(0)

        thread = threading.Thread(target=logs)
        thread.start()
        task = go(logs_too(), daemon=True)

        async def fails():
            raise ValueError("in the child")

        def child():
            go(fails())
            omniloop.flush()
            busy.warning("z")

        for _ in range(10):
            wait(fork(child))
        stop.set()
        thread.join()

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result.stdout.count("ValueError: in the child") == 10
    assert (result.stderr, result.code) == ("", 0)


# --- forking on the loop's thread -------------------------------------------------------------------------------------


@pytest.mark.promise(
    "A fork inside a task gives the child a runtime of its own, and none of the parent's work, whether the child ends there or comes back from the task"
)
@pytest.mark.parametrize("way", ["exits", "returns"])
def test_a_fork_inside_a_task_gives_the_child_a_runtime_of_its_own_and_none_of_the_parents_work(way):
    def program():
        event = asyncio.Event()
        others = [go(holds(f"other {number}", event)) for number in range(3)]
        started = []

        def starts():
            started.append(os.getpid())
            if os.getpid() != parent:
                say("started IN THE CHILD")

        async def starts_late(number):
            await gate.wait()
            starts()

        gate = asyncio.Event()

        async def forks(way):
            await gate.wait()
            # A few that are queued behind the fork, in the loop and in the inbox: they are the parent's alone.
            for number in range(5):
                go(starts_late(number))
                asyncio.get_running_loop().call_soon(starts)
            pid = os.fork()
            if pid:
                return pid
            signal.alarm(30)
            say("child", asyncio.run(answer(2)), omniloop.go(answer(3)).result())

            async def forgotten():
                await asyncio.sleep(0.05)
                say("child: done at exit")

            omniloop.go(forgotten())
            if way == "exits":
                os._exit(0)

        parent = os.getpid()
        task = go(forks(way))
        # Woken in the same turn of the loop, right behind it.
        behind = [go(starts_late(number)) for number in range(3)]
        task.add_done_callback(lambda _: print("callback", os.getpid() == parent, flush=True))
        omniloop.call_soon(gate.set)
        wait(task.result())
        omniloop.call_soon(event.set)
        omniloop.flush()
        print(len(started), set(started) == {parent}, run(answer()))

    result = run_child(start, program, flags=QUIET, env={"OMNILOOP_LOOP": "asyncio"})

    assert "CHILD" not in result.stdout and "callback False" not in result.stdout
    lines = result.stdout.splitlines()
    assert lines.count("child 2 3") == 1
    assert ("child: done at exit" in lines) is (way == "returns")
    assert lines[-1] == "13 True 42"
    assert (result.stderr, result.code) == ("", 0)


def test_a_task_that_comes_back_in_the_child_after_an_eager_start_starts_nothing_of_the_parents():
    """The emptying of the inbox went on in the child, and started what was the parent's."""

    def program():
        parent = os.getpid()
        started = []

        async def forks():
            pid = os.fork()
            if pid:
                return pid
            signal.alarm(30)

        async def later():
            started.append(0)
            say("started", os.getpid() == parent)

        gate = threading.Event()
        omniloop.call_soon(gate.wait)
        task = go(forks())
        others = [go(later()) for _ in range(3)]
        omniloop.call_soon(say, "called")
        gate.set()
        wait(task.result())
        omniloop.flush()
        print(len(started), run(answer()))

    result = run_child(
        start,
        program,
        flags=QUIET,
        env={"OMNILOOP_LOOP": "asyncio"},
    )

    assert result.stdout.splitlines().count("started True") == 3
    assert "started False" not in result.stdout
    assert result.stdout.splitlines().count("called") == 1
    assert result.stdout.splitlines()[-1] == "3 42"
    assert (result.stderr, result.code) == ("", 0)


def test_a_fork_inside_a_call_soon_or_a_worker_thread_works():
    def program():
        def forks():
            return fork_and_use()

        def fork_and_use():
            pid = os.fork()
            if not pid:
                signal.alarm(30)
                say("child", run(answer()))
                os._exit(0)
            return pid

        wait(omniloop.call_soon(forks).result())
        wait(omniloop.to_thread(forks).result())
        print(run(answer()))

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("child 42\nchild 42\n42\n", "", 0, result.seconds)


@pytest.mark.promise("A child that comes back from the worker thread it was forked in does what it forgot, and ends")
@pytest.mark.parametrize("worker", ["of omniloop", "of asyncio"])
@pytest.mark.parametrize("end", ["returns", "exits"])
def test_a_child_that_comes_back_from_the_worker_that_it_was_forked_in_ends(worker, end):
    """It waited for the next call, for ever."""

    def program():
        def forks():
            pid = os.fork()
            if pid:
                return pid
            signal.alarm(30)

            async def forgotten():
                await asyncio.sleep(0.05)
                say("child: done at exit", run_pid != os.getpid())

            go(forgotten())
            if end == "exits":
                sys.exit(3)
            return 0

        run_pid = os.getpid()
        task = omniloop.to_thread(forks) if worker == "of omniloop" else go(asyncio.to_thread(forks))
        wait(task.result())
        print(run(answer()))

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("child: done at exit True\n42\n", "", 0, result.seconds)


# --- other libraries' fork hooks --------------------------------------------------------------------------------------


# What the hooks of another library call, in a program.
hooks = []


def hooks_are_registered_before_ours():
    # Registers a hook of its own, which has to run first. Imported here, also where imports are lazy.
    import threading

    threading.Thread
    os.register_at_fork(
        before=lambda: [hook("before") for hook in hooks],
        after_in_child=lambda: [hook("in the child") for hook in hooks],
    )


@pytest.mark.promise("A loop that a fork has given up waiting for goes on, whenever its callback returns")
def test_a_loop_that_a_fork_has_given_up_waiting_for_goes_on():
    """It ended its thread in the middle of the fork, with nobody to join it, and the next start found the loop taken."""

    def program():
        blocking, go_on, turned = threading.Event(), threading.Event(), threading.Event()

        def block():
            blocking.set()
            go_on.wait()

        def hook(when):
            hooks.clear()
            # The fork waits no more, and is not over.
            go_on.set()
            loop.call_soon_threadsafe(loop.call_soon, turned.set)
            say("goes on", turned.wait(20))

        omniloop.configure(slow_callback=None)
        loop = run(running_loop())
        omniloop.flush()
        # Not by omniloop, so that no work is pending.
        loop.call_soon_threadsafe(block)
        blocking.wait()
        hooks.append(hook)
        wait(fork(lambda: say("child", run(answer()))))
        print("parent", run(answer(), timeout=20))

    async def running_loop():
        return asyncio.get_running_loop()

    result = run_child(hooks_are_registered_before_ours, start, program, flags=QUIET)

    assert result.stdout.splitlines() == ["goes on True", "child 42", "parent 42"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A fork on the loop's thread and one in another thread do not wait for each other")
@pytest.mark.parametrize("imports", ["normal", pytest.param("all", marks=from_3_15)])
@pytest.mark.parametrize("first", ["the loop's", "the other"])
def test_a_fork_in_a_callback_and_one_in_another_thread_do_not_wait_for_each_other(first, imports):
    """
    The thread waited for the callback, and the callback for a lock that the thread held: a second each time, as when a uvloop starts a
    process while another thread forks. Where imports are lazy, for the lock of a hook of the standard library that came before ours.
    """

    def program():
        # A uvloop in its very first turn would lose a wake-up to the child: see the page on platforms.
        run(answer())
        # So that none goes on because it has waited long enough.
        life._PAUSE_TIMEOUT = 60
        forking, begun, blocking = threading.Event(), threading.Event(), threading.Event()
        main = threading.get_ident()
        # Before a fork this comes before ours.
        os.register_at_fork(before=lambda: threading.get_ident() == main and forking.set())

        def main_waits():
            frame = sys._current_frames()[main]
            while frame is not None and frame.f_code.co_name != "hold_or_leave":
                frame = frame.f_back
            return frame is not None

        def main_has_passed():
            # It is in `os.fork` itself, where it waits for locks of the standard library, or further.
            return forking.is_set() and sys._current_frames()[main].f_code.co_name in ("fork", "wait")

        def hook(when):
            # Before a fork this comes after ours.
            if when == "before" and threading.get_ident() != main:
                begun.set()
                until = time.monotonic() + 20
                while not main_has_passed() and time.monotonic() < until:
                    time.sleep(0.001)
                say("the other goes on", main_has_passed())

        def forks():
            blocking.set()
            while first == "the other" and not main_waits():
                time.sleep(0.001)
            wait(fork(lambda: say("child", run(answer()))))

        omniloop.configure(slow_callback=None)
        hooks.append(hook)
        task = omniloop.call_soon(forks)
        (begun if first == "the loop's" else blocking).wait()
        wait(fork(lambda: say("child", run(answer()))))
        task.result(timeout=20)
        print("parent", run(answer(), timeout=20))

    flags = [*QUIET, "-X", f"lazy_imports={imports}"]
    result = run_child(hooks_are_registered_before_ours, start, program, flags=flags)

    assert sorted(result.stdout.splitlines()) == ["child 42", "child 42", "parent 42", "the other goes on True"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("In a fork hook a wait is an error, and what is submitted is done afterwards")
@pytest.mark.parametrize("pending", [True, False])
def test_waiting_in_a_fork_hook_is_an_error_and_submitting_there_is_accepted(pending):
    def program():
        run(answer())
        if pending:
            omniloop.configure(exit_timeout=0.1)
            go(holds("work"))
            run(answer())
        submitted = []

        def hook(when):
            hooks.clear()
            submitted.append(go(answer(1)))
            for wait_for_it in (submitted[0].result, lambda: run(answer()), omniloop.flush, omniloop.shutdown):
                try:
                    wait_for_it()
                except omniloop.WouldDeadlockError:
                    continue
                say("no error")

        hooks.append(hook)
        wait(fork(lambda: say("child", run(answer()))))
        print(submitted[0].result(), run(answer()))
        if pending:
            omniloop.tasks()[0].cancel()

    # The hooks before a fork run last in, first out: when this one runs, ours has.
    result = run_child(hooks_are_registered_before_ours, start, program, flags=QUIET)

    assert result.stdout.splitlines()[:2] == ["child 42", "1 42"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A fork waits, for a second at the most, for a start in another thread, which may be importing")
def test_a_fork_waits_for_a_start_in_another_thread_which_may_be_importing():
    """Of a module that a thread was importing at the fork, the child waits for ever for the lock: of uvloop, for one."""

    def program():
        importing = threading.Event()

        class Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                return importlib.util.spec_from_loader(name, self) if name == "slow" else None

            def exec_module(self, module):
                importing.set()
                time.sleep(0.2)

        sys.meta_path.append(Slow())

        def new_loop():
            import slow  # noqa: F401

            return asyncio.new_event_loop()

        omniloop.configure(loop_factory=new_loop)
        thread = threading.Thread(target=lambda: run(answer()))
        thread.start()
        importing.wait()
        wait(fork(lambda: say("child", run(answer()))))
        thread.join()
        print("parent", run(answer()))

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert result == ("child 42\nparent 42\n", "", 0, result.seconds)


@pytest.mark.promise("Nor does a fork find a start half done that has only just begun")
def test_a_fork_in_the_first_moments_of_a_start_leaves_the_child_working():
    """The runtime was not among those that are told of forks yet: in the child it waited for the start that another thread had begun."""

    def program():
        importing = threading.Event()

        class Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                return importlib.util.spec_from_loader(name, self) if name == "_ctypes" else None

            def exec_module(self, module):
                importing.set()
                time.sleep(0.2)

        # What the first start imports.
        sys.modules.pop("_ctypes", None)
        sys.meta_path.insert(0, Slow())
        thread = threading.Thread(target=lambda: run(answer()))
        thread.start()
        importing.wait()
        wait(fork(lambda: say("child", run(answer(), timeout=20))))
        thread.join()
        print("parent", run(answer()))

    result = run_child(start, program, flags=QUIET)

    assert result == ("child 42\nparent 42\n", "", 0, result.seconds)


# --- a process in a tight place ---------------------------------------------------------------------------------------


@pytest.mark.promise("An import in the middle of a fork, by a hook or another thread, leaves parent and child working")
def test_an_import_between_the_hooks_of_a_fork_leaves_parent_and_child_working():
    """The parent's hook looked for what the other one had noted, and printed a KeyError."""

    def program():
        # What registers hooks of its own is loaded before. In a function, where no import is lazy.
        def load_others():
            import asyncio  # noqa: F401
            import concurrent.futures.thread  # noqa: F401

        def load():
            import omniloop  # noqa: F401

        load_others()
        os.register_at_fork(before=load)
        pid = os.fork()

        import omniloop

        print(omniloop.run(asyncio.sleep(0, "parent" if pid else "child"), timeout=5), flush=True)
        if pid:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    result = run_child(program)

    assert sorted(result.stdout.split()) == ["child", "parent"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A fork while another thread is importing leaves the child working")
def test_a_fork_while_another_thread_is_importing_ctypes_leaves_the_child_working():
    """The hook imported it too, to keep what is inherited for ever: the child waited for a lock that nobody would give back."""

    def program():
        importing, go_on = threading.Event(), threading.Event()

        class Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                return importlib.util.spec_from_loader(name, self) if name in ("ctypes", "_ctypes") else None

            def exec_module(self, module):
                importing.set()
                go_on.wait()

        run(answer())
        for name in "ctypes", "_ctypes":
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, Slow())
        for name in "ctypes", "_ctypes":
            importing.clear()
            threading.Thread(target=__import__, args=[name]).start()
            importing.wait()
        task = go(holds("work"))
        wait(fork(lambda: say("child", run(answer()))))
        go_on.set()
        task.cancel()

    result = run_child(start, program, flags=QUIET)

    assert result == ("child 42\nwork cleaned up here\n", "", 0, result.seconds)


@pytest.mark.promise("A fork with no descriptor left leaves every runtime fresh in the child")
def test_a_fork_with_no_descriptor_left_leaves_every_runtime_fresh_in_the_child():
    """Of two runtimes one stayed the parent's: its `run` waited for a thread that is not there, and the exit for 30 seconds."""

    def program():
        runtimes = [omniloop.Runtime(name=f"r{number}") for number in range(3)]
        for runtime in runtimes:
            runtime.run(answer())
        tasks = [runtime.go(holds("work")) for runtime in runtimes]
        for runtime in runtimes:
            runtime.run(answer())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))

        def child():
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            say("child", [runtime.run(answer(), timeout=20) for runtime in runtimes])

        pid = fork(child)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait(pid)
        for task in tasks:
            task.cancel()

    result = run_child(start, program, flags=QUIET)

    assert result.stdout.splitlines() == ["child [42, 42, 42]", *["work cleaned up here"] * 3]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A part of the fork hook that fails leaves the others done")
@pytest.mark.parametrize("count", [1, 8])
def test_a_part_of_the_fork_hook_that_fails_leaves_the_others_done(count):
    """It left what came after it undone, and so a runtime with the parent's thread, which is not here."""

    def program():
        class Fails:
            # One of those that are told, in no particular order.
            def _held_by_fork(self):
                raise ValueError("before")

            def _after_fork_in_parent(self):
                raise ValueError("in the parent")

            def _after_fork_in_child(self):
                raise ValueError("in the child")

        runtimes = [omniloop.Runtime(name=f"r{number}") for number in range(count)]
        for runtime in runtimes:
            runtime.run(answer())
        fails = Fails()
        exit.watch(fails)

        def child():
            exit.unwatch(fails)
            say("child", [runtime.run(answer(), timeout=20) for runtime in runtimes])

        pid = fork(child)
        exit.unwatch(fails)
        wait(pid)
        say("parent", [runtime.run(answer(), timeout=20) for runtime in runtimes])

    result = run_child(start, program, flags=QUIET)

    assert result.stdout.splitlines() == [f"child {[42] * count}", f"parent {[42] * count}"]
    # CPython writes them, in parent and child at once.
    assert all(where in result.stderr for where in ("before", "in the child", "in the parent"))
    assert result.code == 0


# --- forks that call no hook ------------------------------------------------------------------------------------------


# From 3.13 on threads that wait for a lock are entries of CPython's "parking lot", and these are on the stacks of threads that are not there
# in the child: it crashes in `dequeue_all`, in 4 of 60 children here on 3.13.0, and more often without a GIL. CPython's hook would see to it.
before_the_parking_lot = pytest.mark.skipif(
    sys.version_info >= (3, 13),
    reason="from 3.13 on a child of a fork in C may crash by itself, unless PyOS_AfterFork_Child is called",
)


def fork_in_c(child):
    # PyDLL keeps the interpreter's lock; with CDLL the child hangs by itself.
    # PyPy has only that, and lets go of its lock in neither.
    pid = getattr(ctypes, "PyDLL", ctypes.CDLL)(None).fork()
    if pid:
        return pid
    signal.alarm(30)
    child()
    sys.stdout.flush()
    os._exit(0)


@pytest.mark.promise("A fork in C, which calls no hooks, is noticed on the next use")
@pytest.mark.parametrize("pending", [True, False])
@before_the_parking_lot
def test_a_fork_in_c_is_noticed_on_the_next_use(pending):
    """uWSGI forks so; of the thread that is not there, everything says that it runs. Only the process's id tells."""

    def program():
        event = asyncio.Event()
        task = go(holds("work", event)) if pending else go(answer())
        run(answer())

        def child():
            say("child", run(answer(), timeout=20), omniloop.tasks())
            for wait_for_it in task.result, lambda: task.result(1), task.cancel:
                try:
                    wait_for_it()
                except omniloop.ForkedError:
                    continue
                say("no error" if not task.done() else "done")
            omniloop.shutdown()

        for _ in range(3):
            wait(fork_in_c(child))
        print(run(answer()))
        omniloop.call_soon(event.set)

    result = run_child(start, program)

    lines = result.stdout.splitlines()
    assert lines.count("child 42 []") == 3
    # Of a signal, say.
    assert "the child ended" not in result.stdout
    assert "no error" not in lines and "IN THE CHILD" not in result.stdout
    assert "42" in lines
    assert (result.stderr, result.code) == ("", 0)


@before_the_parking_lot
def test_a_handle_of_the_parents_is_noticed_in_a_child_forked_in_c_before_anything_else_is():
    def program():
        event = asyncio.Event()
        task = go(holds("work", event))
        run(answer())

        def child():
            try:
                task.result()
            except omniloop.ForkedError:
                say("refused")

        wait(fork_in_c(child))
        omniloop.call_soon(event.set)

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["refused", "work done here", "work cleaned up here"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("Such a child drains nothing of the parent's when it ends")
@before_the_parking_lot
def test_a_child_forked_in_c_that_runs_the_exit_hooks_drains_nothing_of_the_parents():
    def program():
        event = asyncio.Event()
        task = go(holds("work", event))
        run(answer())

        def child():
            started = time.monotonic()
            atexit._run_exitfuncs()
            say("ended", time.monotonic() - started < 15)

        wait(fork_in_c(child))
        print(run(answer()))
        omniloop.call_soon(event.set)

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["ended True", "42", "work done here", "work cleaned up here"]
    assert (result.stderr, result.code) == ("", 0)


@before_the_parking_lot
def test_threads_that_notice_a_fork_in_c_at_once_agree_on_the_life_that_begins():
    """The second went on with the parent's loop, which no thread runs here, while the first was still catching up."""

    def program():
        class Slow:
            # One of those that catch up, in no particular order.
            def _after_fork_in_child(self):
                catching_up.set()
                submitted.wait(0.5)

        catching_up, submitted = threading.Event(), threading.Event()
        runtimes = [omniloop.Runtime(name=f"r{number}") for number in range(8)]

        def submit():
            return [runtime.go(answer()) for runtime in runtimes]

        for task in submit():
            task.result()

        def child():
            tasks = []

            def first():
                tasks.extend(submit())

            def second():
                catching_up.wait()
                tasks.extend(submit())
                submitted.set()

            users = [threading.Thread(target=use) for use in (first, second)]
            for user in users:
                user.start()
            for user in users:
                user.join()
            say("child", [task.result(timeout=20) for task in tasks] == [42] * 16)

        slow = Slow()
        exit.watch(slow)
        pid = fork_in_c(child)
        exit.unwatch(slow)
        wait(pid)

    result = run_child(
        start,
        program,
        flags=QUIET,
    )

    assert (result.stdout.splitlines(), result.stderr, result.code) == (["child True"], "", 0)


def test_what_the_fork_hook_of_another_library_submits_in_the_child_is_run_there():
    """A hook that was registered before the package's own runs first, and begins the life that the child goes on with."""

    def program():
        early = []
        run(answer())

        def submits(when):
            if when == "in the child":
                early.append(go(answer()))

        def child():
            say("child", early[0].result(timeout=20), early[0] in omniloop.tasks() or early[0].done())
            say(omniloop.stats().accepted)

        hooks.append(submits)
        wait(fork(child))

    result = run_child(hooks_are_registered_before_ours, start, program, flags=QUIET)

    assert (result.stdout.splitlines(), result.stderr, result.code) == (["child 42 True", "1"], "", 0)


@pytest.mark.timeout(40)
@pytest.mark.promise(
    "A wait in a child that could never end, because of an import that the fork interrupted, names the module"
)
@pytest.mark.promise("A fork waits also for a first use that has begun while it waited for others")
def test_a_fork_waits_for_a_start_that_has_begun_while_it_waited_for_others():
    """The child hung in an import that the parent's thread was in the middle of."""

    def program():
        from omniloop._process.fork import hold_at_fork

        importing, forked = threading.Event(), threading.Event()

        class Slow(importlib.abc.MetaPathFinder):
            """Imports the watchdog, which a start loads, when the fork is over, if that does not wait."""

            def find_spec(self, name, path, target=None):
                if name == "omniloop._seen.watchdog":
                    importing.set()
                    forked.wait(0.3)

        class Other:
            def hold_still(self):
                threading.Thread(target=run, args=(answer(),)).start()
                importing.wait()

            def go_on(self): ...

        def child():
            print(run(answer()), flush=True)

        omniloop.configure(slow_callback=60)
        os.register_at_fork(after_in_parent=forked.set)
        sys.meta_path.insert(0, Slow())
        other = Other()
        hold_at_fork(other)
        wait(fork(child))

    result = run_child(program, flags=QUIET, timeout=50)

    assert result == ("42\n", "", 0, result.seconds)


def test_a_wait_for_an_import_that_the_fork_interrupted_names_the_module():
    """CPython leaves the module's lock taken in the child: the wait timed out there, or had no end."""

    def program():
        import tempfile
        from pathlib import Path

        folder = tempfile.mkdtemp()
        sys.path.insert(0, folder)
        go_on = Path(folder, "go_on")
        Path(folder, "slow_module.py").write_text(
            f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\nX = 1\n"
        )
        began = threading.Event()

        async def use(client):
            return client

        def factory():
            began.set()
            import slow_module

            return slow_module

        async def close(client):
            pass

        client = omniloop.resource(factory, close)
        opening = client.go(use)
        began.wait()
        child = os.fork()
        if not child:
            try:
                client.run(use, timeout=20)
            except omniloop.WouldDeadlockError as error:
                print(error, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        go_on.touch()
        print(opening.result().X)

    result = run_child(program, flags=["-W", "ignore::DeprecationWarning"], timeout=35)

    refused, imported = result.stdout.splitlines()
    assert refused == (
        "Waiting for 'use' would never end: it imports 'slow_module', which another thread was in the middle of importing when this "
        "process was forked, and which so can never be imported here. Import it before the fork, at the top of the program."
    )
    assert imported == "1"
    assert result.code == 0
