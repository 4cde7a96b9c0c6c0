"""What becomes of accepted work when the program ends, in whichever way it ends. Each test is an interpreter of its own."""

import asyncio
import atexit
import concurrent.futures
import importlib.abc
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import configure, go

# Seconds. What is not waited for would take 25, as long as `exit_timeout` is; and a busy machine takes some to start an interpreter.
IN_TIME = 15


# Work of every kind that needs something which the interpreter takes away while it ends. Each piece starts to need it only
# after the program's last line.
async def uses_a_socket():
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    await asyncio.sleep(0.2)
    theirs.send(b"!")
    await reader.readexactly(1)
    writer.close()
    theirs.close()


async def uses_a_thread():
    await asyncio.sleep(0.2)
    await asyncio.gather(*(asyncio.to_thread(sum, [1]) for _ in range(6)))


async def uses_our_thread():
    await asyncio.sleep(0.2)
    await omniloop.to_thread(sum, [1])


async def looks_up_a_name():
    await asyncio.sleep(0.2)
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


pool = concurrent.futures.ThreadPoolExecutor(1)


async def uses_a_pool_of_the_users_own():
    await asyncio.sleep(0.2)
    await asyncio.get_running_loop().run_in_executor(pool, sum, [1])


async def runs_a_program():
    await asyncio.sleep(0.2)
    child = await asyncio.create_subprocess_exec("true")
    assert await child.wait() == 0


async def spawns(depth=3):
    await asyncio.sleep(0.05)
    if depth:
        go(spawns(depth - 1)) if depth > 1 else go(tell(asyncio.sleep(0.05), "spawned"))


async def runs_for_ever():
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)


async def tell(work, name=None):
    try:
        await work
        print(name or work.__name__, flush=True)
    except asyncio.CancelledError:
        print(name or work.__name__, "cancelled", flush=True)
        raise


def finishing():
    # 3.12 starts no thread once the program ended: its one thread is started now.
    pool.submit(int).result()
    for work in (
        uses_a_socket,
        uses_a_thread,
        uses_our_thread,
        looks_up_a_name,
        uses_a_pool_of_the_users_own,
        runs_a_program,
        spawns,
    ):
        go(tell(work()))
    go(tell(runs_for_ever()), daemon=True)


FINISHED = {
    "uses_a_socket",
    "uses_a_thread",
    "uses_our_thread",
    "looks_up_a_name",
    "uses_a_pool_of_the_users_own",
    "runs_a_program",
    "spawns",
    "spawned",
    "runs_for_ever cancelled",
}


# Work that does not end by itself.
async def late():
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        print("late: cleaned up", flush=True)


async def stubborn():
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        print("stubborn: done all the same", flush=True)


async def deaf():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


def unending():
    configure(exit_timeout=0.1, cancel_timeout=1)
    for work in late, stubborn, deaf:
        go(work())
    # All of them wait.
    omniloop.run(asyncio.sleep(0))


# How a program may end: its last lines.


def ends():
    pass


def calls_sys_exit():
    sys.exit(3)


def raises_an_error():
    raise ValueError("main failed")


def calls_sys_exit_in_a_thread():
    threading.Thread(target=sys.exit).start()


def interrupts_itself():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


def exits_in_a_handler_of_sigterm():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    os.kill(os.getpid(), signal.SIGTERM)


def drains_on_sigterm():
    configure(sigterm="drain")
    os.kill(os.getpid(), signal.SIGTERM)


# With the exit code, and the last line of stderr.
ENDINGS = [
    (ends, 0, ""),
    (calls_sys_exit, 3, ""),
    (raises_an_error, 1, "ValueError: main failed"),
    (calls_sys_exit_in_a_thread, 0, ""),
    (interrupts_itself, -signal.SIGINT, "KeyboardInterrupt"),
    (exits_in_a_handler_of_sigterm, 4, ""),
    (drains_on_sigterm, -signal.SIGTERM, ""),
]


# Nothing of Python's runs then, and so nothing of ours.


def terminates_itself():
    os.kill(os.getpid(), signal.SIGTERM)


def kills_itself():
    # SIGKILL, which has no name on Windows.
    os.kill(os.getpid(), 9)


def calls_os_exit():
    os._exit(5)


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


@pytest.mark.promise(
    "Work that was accepted is done however the program ends: at the end of main, by `sys.exit`, an uncaught error, Ctrl-C, a SIGTERM that is handled; and whatever it needs: a socket, a thread, a name looked up, a pool of the user's own, a program, further work"
)
@pytest.mark.parametrize(("ending", "code", "error"), ENDINGS)
def test_work_that_was_accepted_is_done_however_the_program_ends(ending, code, error):
    result = run_child(finishing, ending)

    assert set(result.stdout.splitlines()) == FINISHED
    assert last_line(result.stderr) == error
    assert result.code == code


@pytest.mark.promise(
    "Work past the deadline is cancelled, its clean-up awaited, and named in the log; so is what does not end when cancelled"
)
@pytest.mark.parametrize(("ending", "code", "error"), ENDINGS)
def test_work_past_the_deadline_is_cancelled_awaited_and_named_however_the_program_ends(ending, code, error):
    result = run_child(unending, ending)

    assert set(result.stdout.splitlines()) == {"late: cleaned up", "stubborn: done all the same"}
    assert "3 unfinished when the time for draining was over, and cancelled" in result.stderr
    for name in "late", "stubborn", "deaf":
        assert f"  {name}, for " in result.stderr
    assert "1 did not end when cancelled, and will not be done:\n  deaf, for " in result.stderr
    assert error in result.stderr
    assert "destroyed" not in result.stderr
    assert result.code == code
    assert result.seconds < IN_TIME


@pytest.mark.promise(
    "Where Python runs no exit hooks (`os._exit`, SIGKILL, a SIGTERM that nobody handles) nothing is done"
)
@pytest.mark.parametrize(
    ("ending", "code"), [(terminates_itself, -signal.SIGTERM), (kills_itself, -9), (calls_os_exit, 5)]
)
def test_nothing_is_done_where_python_runs_no_exit_hooks(ending, code):
    result = run_child(finishing, ending)

    assert result == ("", "", code, result.seconds)


@pytest.mark.promise("A chain of work without end ends at the deadline")
def test_a_chain_of_work_without_end_ends_at_the_deadline():
    def program():
        async def again():
            await asyncio.sleep(0.001)
            omniloop.go(again())

        omniloop.configure(exit_timeout=0.2, cancel_timeout=0.2)
        omniloop.go(again())

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "never awaited" not in result.stderr and "Traceback" not in result.stderr
    assert 0.2 < result.seconds < IN_TIME


@pytest.mark.promise("A callback that blocks the loop does not hold up the exit, and the log says where it is")
def test_exit_takes_no_longer_than_the_deadlines_when_a_callback_blocks_the_loop_and_the_log_says_where():
    def program():
        omniloop.configure(exit_timeout=0.1, cancel_timeout=0.1, slow_callback=None)

        async def innocent():
            await asyncio.Event().wait()

        def blocks_the_loop():
            time.sleep(60)

        omniloop.go(innocent())
        omniloop.call_soon(blocks_the_loop)

    result = run_child(program)

    assert result.code == 0
    assert "did not end, because a callback blocks it here" in result.stderr
    assert "in blocks_the_loop" in result.stderr
    assert "innocent" in result.stderr
    assert "never awaited" not in result.stderr and "Traceback" not in result.stderr
    assert result.seconds < IN_TIME


@pytest.mark.promise("Nor does a worker thread that is blocked")
def test_exit_takes_no_longer_than_the_deadlines_when_a_worker_thread_is_blocked_and_the_log_says_where():
    def program():
        omniloop.configure(exit_timeout=0.1, cancel_timeout=0.1)

        def blocks_a_worker():
            time.sleep(60)

        omniloop.to_thread(blocks_a_worker)

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "did not end; it runs here" in result.stderr
    assert "in blocks_a_worker" in result.stderr
    assert result.seconds < IN_TIME


@pytest.mark.promise(
    "A call in a thread whose waiter has ended holds up the exit for half a second, not for `cancel_timeout`"
)
def test_a_call_in_a_thread_that_a_daemon_waited_for_holds_up_the_exit_for_half_a_second():
    def program():
        omniloop.configure(cancel_timeout=20)
        began = threading.Event()

        def blocks_a_worker():
            began.set()
            threading.Event().wait()

        async def daemon():
            await asyncio.to_thread(blocks_a_worker)

        omniloop.go(daemon(), daemon=True)
        began.wait(5)

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "did not end; it runs here" in result.stderr
    assert result.seconds < IN_TIME


@pytest.mark.promise(
    "What the program itself has asked to end is not asked again by the drain, so that its clean-up is not interrupted"
)
def test_a_clean_up_that_the_program_asked_for_before_its_end_is_not_interrupted():
    """The drain cancelled every daemon, those that were about to end as well: what a `finally` awaited was never done."""

    def program():
        cleaning = threading.Event()

        async def serve():
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await asyncio.sleep(0.3)
                print("server closed")

        async def lines():
            try:
                while True:
                    yield "line"
            finally:
                await asyncio.sleep(0.3)
                print("source closed")

        for line in omniloop.iterate(lines()):
            break
        omniloop.run(asyncio.sleep(0.01))
        server = omniloop.go(serve(), daemon=True)
        omniloop.run(asyncio.sleep(0))
        server.cancel()
        cleaning.wait()

    result = run_child(program)

    assert (sorted(result.stdout.splitlines()), result.stderr, result.code) == (
        ["server closed", "source closed"],
        "",
        0,
    )


@pytest.mark.promise("A daemon or a resource whose clean-up takes longer than `cancel_timeout` is named in the log")
def test_what_is_slower_to_clean_up_than_it_has_time_is_named():
    """Of daemons and resources nothing was said: their clean-up was cut off without a word."""

    def program():
        omniloop.configure(cancel_timeout=0.2)

        async def slow_daemon():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(60)

        class Slow:
            async def aclose(self):
                await asyncio.sleep(60)

        async def use(slow):
            pass

        omniloop.go(slow_daemon(), daemon=True)
        omniloop.resource(Slow).run(use)

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "2 did not end when cancelled, and will not be done:" in result.stderr
    assert "the time for draining was over" not in result.stderr
    assert "slow_daemon" in result.stderr and "resource(Slow)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.promise("The deadlines of several runtimes run at the same time")
def test_the_deadlines_of_several_runtimes_run_at_the_same_time():
    def program():
        async def late():
            await asyncio.Event().wait()

        for number in range(4):
            omniloop.Runtime(name=f"r{number}", exit_timeout=2.5, cancel_timeout=0.1).go(late())

    result = run_child(program)

    assert result.code == 0
    assert result.stderr.count("1 unfinished when the time for draining was over") == 4
    # One after the other they would take ten seconds.
    assert 2.5 < result.seconds < 10


@pytest.mark.promise("The end of main cancels nothing while other threads still work")
def test_the_end_of_main_cancels_nothing_while_other_threads_still_work():
    """Tried first: the early hook closed the runtime, and threads that went on for minutes found it shut."""

    def program():
        omniloop.configure(exit_timeout=0.1, cancel_timeout=0.1)

        async def waits_for(event):
            await event.wait()
            return "done"

        def outlives_main():
            threading.main_thread().join()
            # By now the early hook has waited for as long as it may.
            omniloop.run(asyncio.sleep(0.3))
            omniloop.call_soon(event.set)
            print(task.result(timeout=5))
            print(omniloop.run(waits_for(event)))

        event = asyncio.Event()
        task = go(waits_for(event))
        threading.Thread(target=outlives_main).start()

    result = run_child(program)

    assert result == ("done\ndone\n", "", 0, result.seconds)


@pytest.mark.promise(
    "What is submitted while a daemon thread is starting the runtime is finished too, though main ends before that start"
)
def test_what_is_left_to_a_daemon_threads_start_is_not_lost_when_main_ends():
    """Until that start had imported what it needs, nothing at the exit knew of the runtime: the work was lost without a word."""

    def program():
        importing = threading.Event()

        class Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                return importlib.util.spec_from_loader(name, self) if name == "_ctypes" else None

            def exec_module(self, module):
                importing.set()
                time.sleep(0.3)

        async def work():
            await asyncio.sleep(0.01)
            print("work done")

        # What the first start imports.
        sys.modules.pop("_ctypes", None)
        sys.meta_path.insert(0, Slow())
        threading.Thread(target=go, args=[asyncio.sleep(0)], daemon=True).start()
        importing.wait()
        go(work())

    result = run_child(program)

    assert result.code == 0
    if sys.version_info[:2] == (3, 12) and not result.stdout:
        # There up to 3.12.2 no thread can be started any more; then it is said what is lost.
        assert "work, submitted at" in result.stderr
    else:
        assert (result.stdout, result.stderr) == ("work done\n", "")


@pytest.mark.promise("The deadline counts the time of all drains together")
def test_the_deadline_counts_the_time_of_both_hooks_together():
    def program():
        end_of_main = 0
        # Registered before the import: called after the last drain.
        atexit.register(lambda: print(time.monotonic() - end_of_main))
        import omniloop

        omniloop.configure(exit_timeout=4, cancel_timeout=0.1)

        async def late():
            await asyncio.Event().wait()

        omniloop.go(late())
        end_of_main = time.monotonic()

    result = run_child(program)

    # Twice would be eight seconds.
    assert 4 <= float(result.stdout) < 7.5


@pytest.mark.parametrize("blocks_for", [1.2, 1.5, 2.5])
def test_a_callback_that_blocks_the_loop_past_every_deadline_and_comes_back_breaks_nothing(blocks_for):
    """The end had given up, when the loop came to what it had asked for: the inbox was opened again, and the thread started."""

    def program():
        omniloop.configure(exit_timeout=0.4, cancel_timeout=0.3)

        async def blocks():
            await asyncio.sleep(0.1)
            time.sleep(blocks_for)

        async def waits():
            await asyncio.sleep(50)

        omniloop.go(waits())
        omniloop.go(blocks())
        omniloop.call_later(50, print, "never due")

    result = run_child(program)

    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert "never awaited" not in result.stderr and "'print' failed" not in result.stderr
    # A callback that comes back in time ends by itself.
    assert re.search("[12] unfinished when the time for draining was over", result.stderr)
    assert "in waits" in result.stderr
    assert (result.stdout, result.code) == ("", 0)


@pytest.mark.promise("A thread that submits without end does not hold up the exit: it is refused")
def test_a_thread_that_submits_without_end_does_not_hold_up_the_exit():
    """It took 94 s, and wrote a traceback for each of 1.1 million tasks that were not started any more."""

    def program():
        omniloop.configure(exit_timeout=0.5, cancel_timeout=0.3)
        done = threading.Event()

        async def nothing():
            pass

        def submits():
            while True:
                try:
                    for _ in range(100):
                        go(nothing())
                except omniloop.ClosedError:
                    done.set()
                    return
                # Others have the machine as well.
                time.sleep(0.001)

        def tell():
            print("refused", done.wait(3), flush=True)

        # Registered before the drain's own, and so called after it.
        atexit.register(tell)
        atexit.unregister(omniloop._process.exit.drain_at_exit)
        atexit.register(omniloop._process.exit.drain_at_exit)
        threading.Thread(target=submits, daemon=True).start()
        time.sleep(0.1)

    result = run_child(program, timeout=30)

    assert (result.stdout, result.code) == ("refused True\n", 0)
    assert "Traceback" not in result.stderr and "never awaited" not in result.stderr
    assert len(result.stderr.splitlines()) < 60
    # Alone it takes 2 s.
    assert result.seconds < 20
