"""Ctrl-C and SIGTERM. Each test is an interpreter of its own, that sends itself the signals at a known moment."""

import asyncio
import atexit
import builtins
import concurrent.futures
import contextlib
import importlib
import inspect
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback

import pytest

import omniloop
from children import run_child
from omniloop import configure, go
from omniloop._process import signals
from omniloop._process.exit import Clock
from programs import source_of

# Seconds. What is not waited for would take 25, as long as `exit_timeout` is; and a busy machine takes some to start an interpreter.
IN_TIME = 15


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


async def quick():
    await asyncio.sleep(0.1)
    print("quick: done", flush=True)


async def late(clean_up=0.01):
    try:
        await asyncio.Event().wait()
    finally:
        print("late: cleans up", flush=True)
        await asyncio.sleep(clean_up)
        print("late: cleaned up", flush=True)


# Calls it in the drain: main has ended, or a SIGTERM drains, and Ctrl-C is for the drain to handle.
async def in_the_drain(call):
    while not omniloop._process.exit.draining():
        await asyncio.sleep(0.001)
    call()


def start():
    # Before the import of omniloop, so that it is called after the last drain.
    atexit.register(lambda: print("later hooks run", flush=True))
    # A shell may have had us ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.promise("Ctrl-C while the program drains ends the waiting; the clean-up of what is cancelled is awaited")
def test_ctrl_c_in_the_drain_ends_the_waiting_and_the_clean_up_is_awaited():
    def program():
        go(late())
        go(in_the_drain(interrupt))

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["late: cleans up", "late: cleaned up", "later hooks run"]
    # The one that sends the signal may be named as well: it is in its last step.
    assert "unfinished when Ctrl-C ended the draining, and cancelled" in result.stderr
    assert "late, for" in result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.code == 0
    assert result.seconds < IN_TIME


@pytest.mark.skipif(
    sys.platform == "win32", reason="two within a second are one there: a wait for a lock can not be interrupted"
)
@pytest.mark.promise("A second Ctrl-C ends the waiting for the clean-up too")
def test_a_second_ctrl_c_in_the_drain_ends_the_waiting_for_the_clean_up_too():
    def program():
        async def cleans_up_long():
            try:
                await asyncio.Event().wait()
            finally:
                # The first has ended the waiting for the work.
                if not again:
                    again.append(True)
                    interrupt()
                await asyncio.sleep(60)
                print("cleaned up")

        again = []
        configure(cancel_timeout=20)
        go(cleans_up_long())
        omniloop.Runtime().go(cleans_up_long())
        go(in_the_drain(interrupt))

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["later hooks run"]
    assert "did not end when cancelled" in result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.code == 0
    assert result.seconds < IN_TIME


@pytest.mark.skipif(sys.platform == "win32", reason="a wait for a lock can not be interrupted there")
@pytest.mark.promise(
    "A Ctrl-C while the threads are ended leaves no handle undone, and the other runtimes are ended too"
)
def test_ctrl_c_while_the_threads_are_ended_leaves_nothing_undone():
    def program():
        def loops():
            return {thread.name for thread in threading.enumerate()} & {"r0", "r1"}

        def interrupt_the_end():
            # The loop's thread of the first has ended: now its worker is waited for.
            while len(loops()) == 2:
                time.sleep(0.001)
            interrupt()

        blocked, tasks = threading.Event(), []
        for number in range(2):
            runtime = omniloop.Runtime(name=f"r{number}", exit_timeout=0.1, cancel_timeout=0.1)
            tasks.append(runtime.to_thread(blocked.wait))
        assert len(loops()) == 2
        # Before those hooks that are registered already, and after the last drain.
        atexit.unregister(omniloop._process.exit.drain_at_exit)
        atexit.register(lambda: print("undone:", sum(not task.done() for task in tasks)))
        atexit.register(omniloop._process.exit.drain_at_exit)
        threading.Thread(target=interrupt_the_end, daemon=True).start()

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["undone: 0", "later hooks run"]
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.code == 0


@pytest.mark.promise("In every runtime at once")
def test_ctrl_c_in_the_drain_ends_the_waiting_for_every_runtime():
    def program():
        for number in range(3):
            omniloop.Runtime(name=f"r{number}").go(late())
        go(in_the_drain(interrupt))

    result = run_child(start, program)

    assert result.stdout.count("late: cleaned up") == 3
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.code == 0
    assert result.seconds < IN_TIME


def test_ctrl_c_in_the_last_of_the_drains_ends_the_waiting():
    def program():
        omniloop.run(asyncio.sleep(0))
        # Submitted by an exit handler: only the last drain sees it.
        atexit.register(lambda: (go(late()), go(in_the_drain(interrupt))))

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["late: cleans up", "late: cleaned up", "later hooks run"]
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.code == 0
    assert result.seconds < IN_TIME


@pytest.mark.promise(
    "Ctrl-C ends a wait and leaves the work alone; it ends a `run()` and cancels it, even while that still submits"
)
def test_ctrl_c_ends_a_wait_and_leaves_the_work_alone_and_a_run_and_cancels_it():
    def program():
        async def interrupts(after, work):
            await asyncio.sleep(after)
            interrupt()
            await work

        async def goes_on():
            await seen.wait()
            await quick()

        # More than a busy machine takes for the clean-up.
        configure(cancel_timeout=20)
        seen = asyncio.Event()
        task = go(interrupts(0.2, goes_on()))
        try:
            task.result()
        except KeyboardInterrupt:
            print("the wait ended", flush=True)
        omniloop.call_soon(seen.set)
        task.result()
        try:
            # At once: while run() still submits.
            omniloop.run(interrupts(0, late()))
        except KeyboardInterrupt:
            print("the run ended", flush=True)

    result = run_child(start, program)

    assert result.stdout.splitlines() == [
        "the wait ended",
        "quick: done",
        "late: cleans up",
        "late: cleaned up",
        "the run ended",
        "later hooks run",
    ]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise(
    'With `sigterm="drain"` a SIGTERM drains within the deadline, and the process dies of it as before'
)
def test_sigterm_drains_within_the_deadline_and_the_process_dies_of_it_as_before():
    def program():
        configure(sigterm="drain", exit_timeout=2)
        go(quick())
        go(late())
        omniloop.run(asyncio.sleep(0))
        sys.stdout.write("buffered")
        terminate()
        print("never reached")

    result = run_child(
        start,
        program,
        env={"PYTHONUNBUFFERED": ""},
    )

    assert result.stdout.splitlines() == ["bufferedquick: done", "late: cleans up", "late: cleaned up"]
    assert "1 unfinished when the time for draining was over" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.code == -signal.SIGTERM
    assert result.seconds < IN_TIME


@pytest.mark.promise("Without it, SIGTERM kills at once")
def test_sigterm_kills_at_once_unless_the_drain_is_asked_for():
    def program():
        go(quick())
        terminate()

    result = run_child(start, program)

    assert result == ("", "", -signal.SIGTERM, result.seconds)


@pytest.mark.parametrize("whose", ["shared", "own"])
@pytest.mark.parametrize("how", ["environment", "configure"])
def test_the_drain_on_sigterm_counts_for_the_process_whichever_runtime_starts(how, whose):
    """The start of a runtime of one's own, which did not ask for it, took the handler away."""

    def program():
        if "OMNILOOP_SIGTERM" not in os.environ:
            configure(sigterm="drain")
        if sys.argv[1] == "own":
            omniloop.Runtime().go(quick())
        else:
            go(quick())
        terminate()

    result = run_child(
        f"import sys; sys.argv = ['', {whose!r}]\n" + source_of(start, program),
        env={"OMNILOOP_SIGTERM": "drain"} if how == "environment" else {},
    )

    assert result == ("quick: done\n", "", -signal.SIGTERM, result.seconds)


def test_a_drain_on_sigterm_that_can_not_be_set_up_in_this_thread_is_told_of():
    def program():
        thread = threading.Thread(target=lambda: go(quick()))
        thread.start()
        thread.join()

    result = run_child(
        start,
        program,
        env={"OMNILOOP_SIGTERM": "drain"},
    )

    assert "quick: done" in result.stdout
    assert "main thread" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.code == 0


@pytest.mark.promise("A handler of SIGTERM that was there is called at once, and the exit hooks drain")
def test_a_handler_of_sigterm_that_was_there_is_called_at_once_and_the_exit_hooks_drain():
    """A drain before it blocked the server whose handler it was: a request in flight of 1 s took 3 s."""

    def program():
        def handler(number, frame):
            print("the former handler", number, flush=True)
            go(quick())
            sys.exit(7)

        signal.signal(signal.SIGTERM, handler)
        configure(sigterm="drain")
        go(quick())
        terminate()
        print("never reached")

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["the former handler 15", "quick: done", "quick: done", "later hooks run"]
    assert (result.stderr, result.code) == ("", 7)


def test_a_handler_of_sigterm_that_goes_on_leaves_the_runtime_working():
    def program():
        signal.signal(signal.SIGTERM, lambda *_: print("noted", flush=True))
        configure(sigterm="drain")
        terminate()
        omniloop.run(quick())
        configure(sigterm=None)
        terminate()

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["noted", "quick: done", "noted", "later hooks run"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("One that calls the handler before it is called once")
def test_a_handler_of_sigterm_that_calls_the_one_before_it_is_called_once():
    """The start of the runtime put the drain before it once more, and the two called each other until the recursion ended it."""

    def program():
        configure(sigterm="drain")
        former = signal.getsignal(signal.SIGTERM)

        def handler(number, frame):
            print("the program's own", flush=True)
            former(number, frame)

        signal.signal(signal.SIGTERM, handler)
        go(quick())
        terminate()
        print("never reached")

    result = run_child(start, program)

    assert result == ("the program's own\nquick: done\n", "", -signal.SIGTERM, result.seconds)


@pytest.mark.promise("A SIGTERM that was ignored stays ignored")
def test_sigterm_stays_ignored_where_it_was_ignored():
    def program():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        configure(sigterm="drain")
        terminate()
        omniloop.run(quick())

    result = run_child(start, program)

    assert result == ("quick: done\nlater hooks run\n", "", 0, result.seconds)


@pytest.mark.promise("A second SIGTERM ends the drain")
def test_a_second_sigterm_ends_the_drain():
    def program():
        configure(sigterm="drain")
        go(late())
        go(in_the_drain(terminate))
        omniloop.run(asyncio.sleep(0))
        terminate()

    result = run_child(start, program)

    assert result == ("", "", -signal.SIGTERM, result.seconds)
    assert result.seconds < IN_TIME


def test_ctrl_c_in_a_drain_on_sigterm_ends_the_waiting():
    def program():
        configure(sigterm="drain")
        go(late())
        go(in_the_drain(interrupt))
        omniloop.run(asyncio.sleep(0))
        terminate()

    result = run_child(start, program)

    assert result.stdout.splitlines() == ["late: cleans up", "late: cleaned up"]
    assert "Traceback" not in result.stderr
    assert result.code == -signal.SIGTERM
    assert result.seconds < IN_TIME


@pytest.mark.promise("SIGTERM may come in the middle of a wait, a shutdown or the last drain")
@pytest.mark.parametrize("where", ["a shutdown", "a flush", "a wait", "the drain", "the drain and an exit handler"])
def test_sigterm_in_the_middle_of_a_shutdown_a_wait_or_the_last_drain_drains_and_dies_of_it(where):
    def program():
        async def terminates():
            # Most likely main is where it is to be by then; wherever it is, the outcome is the same.
            await asyncio.sleep(0.2)
            terminate()

        configure(sigterm="drain", exit_timeout=0.5)
        task = go(late())
        go(terminates())
        omniloop.run(asyncio.sleep(0))
        if where == "a shutdown":
            omniloop.shutdown()
        elif where == "a flush":
            omniloop.flush()
        elif where == "a wait":
            # Before it waits the drain goes on in a thread, and the wait ends.
            with contextlib.suppress(concurrent.futures.CancelledError, omniloop.ClosedError):
                task.result()
        elif where == "the drain and an exit handler":
            atexit.register(lambda: go(late()))

    result = run_child(start, program)

    assert "late: cleaned up" in result.stdout
    assert "Traceback" not in result.stderr
    assert result.code == -signal.SIGTERM
    assert result.seconds < IN_TIME


@pytest.mark.promise("Or of a submission")
def test_sigterm_in_the_middle_of_a_submission_drains_and_dies_of_it():
    """The submission was about to wake the loop, and the drain, which relied on that, waited until the deadline."""

    def program():
        configure(sigterm="drain", exit_timeout=None)
        go(quick())
        omniloop.run(asyncio.sleep(0))

        def before_the_wake_up(frame, event, argument):
            if frame.f_code is omniloop._life.life.Life._wake.__code__:
                sys.settrace(None)
                terminate()
                time.sleep(0)

        sys.settrace(before_the_wake_up)
        go(quick())

    result = run_child(start, program)

    assert result == ("quick: done\nquick: done\n", "", -signal.SIGTERM, result.seconds)


def terminate_and_see_it():
    # As the interpreter does it. When a signal of the system's comes is not known, in a sandbox.
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, sys._getframe())


@pytest.mark.promise(
    "Or of the first use, of an import or of a log record: what it has interrupted goes on, and the work is done without a wait for the deadline"
)
@pytest.mark.parametrize(
    "interrupted", ["the first use", "a start after shutdown", "an import", "a log record", "another start"]
)
def test_a_drain_on_sigterm_waits_for_nothing_that_what_it_interrupted_holds(interrupted, tmp_path):
    """It drained in the handler, on top of the start that the work needed, and waited for the deadline."""
    (tmp_path / "slow_to_import.py").write_text("terminate()\n")
    path = str(tmp_path)

    def program():
        def factory():
            if interrupted in ("the first use", "a start after shutdown") and armed:
                terminate_and_see_it()
            return asyncio.new_event_loop()

        class Handler(logging.Handler):
            def emit(self, record):
                if armed and threading.current_thread() is threading.main_thread():
                    armed.clear()
                    terminate_and_see_it()

        async def work():
            if interrupted == "an import":
                import slow_to_import  # noqa: F401
            elif interrupted == "a log record":
                logging.getLogger().error("from the work")
            os.write(1, b"done\n")

        armed = [] if interrupted == "a start after shutdown" else [True]
        configure(sigterm="drain", exit_timeout=None, loop_factory=factory)
        if interrupted == "a start after shutdown":
            omniloop.run(asyncio.sleep(0))
            omniloop.shutdown()
            armed.append(True)
        if interrupted == "an import":
            builtins.terminate = lambda: (go(work()), terminate_and_see_it())
            sys.path.insert(0, path)
            import slow_to_import

            # Where imports are lazy, it is imported here.
            slow_to_import.__name__
        elif interrupted == "a log record":
            logging.getLogger().addHandler(Handler())
            go(work())
            logging.getLogger().error("from main")
        elif interrupted == "another start":
            other = omniloop.Runtime(loop_factory=lambda: terminate_and_see_it() or asyncio.new_event_loop())
            go(work())
            other.go(work())
        else:
            go(work())
        threading.Event().wait()

    result = run_child(start, program, timeout=20)

    times = 2 if interrupted == "another start" else 1
    assert (result.stdout, result.code) == ("done\n" * times, -signal.SIGTERM)
    assert "Traceback" not in result.stderr


@pytest.mark.promise(
    "So it is where no thread can be had for the drain: the process dies of the signal when the start is over"
)
@pytest.mark.parametrize("interrupted", ["the first use", "a shutdown", "the last drain"])
def test_where_no_thread_can_be_had_the_process_dies_of_sigterm_when_what_was_interrupted_is_over(interrupted):
    def program():
        def no_more_threads(thread):
            raise RuntimeError("can't start new thread")

        def factory():
            if interrupted == "the first use":
                start_thread, threading.Thread.start = threading.Thread.start, no_more_threads
                terminate_and_see_it()
                threading.Thread.start = start_thread
            return asyncio.new_event_loop()

        async def work():
            await asyncio.sleep(0.01)
            os.write(1, b"done\n")

        async def terminates():
            threading.Thread.start = no_more_threads
            terminate()
            await asyncio.sleep(0.3)

        configure(sigterm="drain", exit_timeout=None, loop_factory=factory)
        go(work())
        if interrupted != "the first use":
            go(in_the_drain_do(terminates))
        if interrupted == "a shutdown":
            omniloop.shutdown()
        if interrupted != "the last drain":
            os.write(1, b"not to be seen\n")

    async def in_the_drain_do(call):
        main = threading.main_thread()
        while "drain" not in {frame.name for frame in traceback.extract_stack(sys._current_frames()[main.ident])}:
            await asyncio.sleep(0.001)
        await call()

    result = run_child(start, program, timeout=20)

    assert result == ("done\n", "", -signal.SIGTERM, result.seconds)


@pytest.mark.promise(
    "A handler of the program's own may call `shutdown()`: on top of a first use it returns at once, and a thread goes on with it"
)
@pytest.mark.parametrize("call", ["go", "run", "to_thread", "call_soon"])
def test_a_handler_that_shuts_down_in_the_first_use_returns_at_once(call):
    """It hung, or raised a bare AssertionError."""

    def program():
        def handler(number, frame):
            omniloop.shutdown()
            os.write(1, b"returned\n")

        def factory():
            if armed:
                armed.clear()
                terminate_and_see_it()
            return asyncio.new_event_loop()

        async def work():
            os.write(1, b"done\n")

        def plainly():
            os.write(1, b"done\n")

        armed = [True]
        signal.signal(signal.SIGTERM, handler)
        configure(exit_timeout=None, loop_factory=factory)
        getattr(omniloop, call)(work() if call in ("go", "run") else plainly)
        for thread in threading.enumerate():
            if thread.name == "omniloop-shutdown":
                thread.join(10)

    result = run_child(program, timeout=20)

    assert result == ("returned\ndone\n", "", 0, result.seconds)


def test_what_is_known_to_wait_only_is_named_as_it_is():
    for module, function in signals._WAITING:
        names = set()
        for thing in vars(importlib.import_module(module)).values():
            names |= {getattr(thing, "__name__", None), *getattr(thing, "__dict__", ())}
        assert function in names, f"{function} of {module}"


def test_a_drain_that_is_to_be_brief_is_so_with_its_clean_up():
    """It took 5 s for the work, and as long as ever for the clean-up."""
    clock = Clock()
    clock.start()
    clock.end_within(5)

    now = time.monotonic()
    assert clock.deadline(25) <= now + 5
    assert clock.deadline(25) + clock.clean_up(2) <= now + 5
    assert clock.clean_up(2) > 0.5
    assert Clock().clean_up(2) == 2


@pytest.mark.promise("A daemon thread in a `shutdown()` without end does not hold up the exit")
def test_exit_is_not_held_up_by_a_daemon_thread_in_a_shutdown_without_end():
    def program():
        configure(exit_timeout=0.2)
        go(late())
        omniloop.run(asyncio.sleep(0))
        threading.Thread(target=omniloop.shutdown, args=(None,), daemon=True).start()

    result = run_child(start, program)

    assert "late: cleaned up" in result.stdout
    assert "Traceback" not in result.stderr
    assert result.code == 0
    assert result.seconds < IN_TIME


@pytest.mark.promise("A signal handler may submit work")
def test_a_signal_handler_may_submit_work():
    def program():
        signal.signal(signal.SIGTERM, lambda *_: go(quick()))
        terminate()

    result = run_child(start, program)

    assert result == ("quick: done\nlater hooks run\n", "", 0, result.seconds)


def test_the_functions_that_only_wait_are_where_a_signal_handler_looks_for_them():
    """They are told by their names: one that was renamed would have a handler drain beside them for no reason."""
    for module, function in signals._WAITING:
        source = inspect.getsource(importlib.import_module(module))
        assert re.search(rf"def {function}\(", source), f"{module} has no {function}"
