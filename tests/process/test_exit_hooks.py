"""What the other hooks of a program's end may submit, what is written while it ends, and to whom. Each test is an interpreter of its own."""

import asyncio
import atexit
import gc
import io
import logging
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest

import omniloop
from children import child_environment, run_child
from programs import source_of


def tell(name):
    async def work():
        print(name, "done", flush=True)

    try:
        omniloop.go(work())
    except (omniloop.ClosedError, omniloop.CannotStartError) as error:
        print(name, "refused", flush=True)


# CPython starts no thread any more when main has ended; 3.12.3 and later do.
COLD = "refused" if (3, 12) <= sys.version_info < (3, 12, 3) else "done"


# What is registered before the import gets `tell` by way of this list, because `tell` brings the import with it.
told = []


@pytest.mark.promise("What an exit handler submits is done, or refused in words, wherever the handler was registered")
def test_what_an_exit_handler_submits_is_done_or_refused_wherever_it_was_registered():
    def before_the_import():
        atexit.register(lambda: told[0]("registered before the import"))

    def program():
        # Imported here, also where imports are lazy.
        omniloop.go
        told.append(tell)
        atexit.register(tell, "registered before the start")
        omniloop.run(asyncio.sleep(0))
        atexit.register(tell, "registered after the start")

    result = run_child(before_the_import, program)

    assert result.stdout.splitlines() == [
        "registered after the start done",
        "registered before the start done",
        "registered before the import refused",
    ]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise(
    "A runtime that is first used in an exit handler works, or refuses where Python starts no thread any more"
)
def test_a_runtime_that_is_first_used_in_an_exit_handler_works_or_refuses():
    def program():
        # Imported here, also where imports are lazy.
        omniloop.go
        atexit.register(tell, "first use")

    result = run_child(program)

    assert result == (f"first use {COLD}\n", "", 0, result.seconds)


@pytest.mark.promise("An exit handler may wait for work")
def test_an_exit_handler_may_wait_for_work_and_use_threads():
    def program():
        omniloop.run(asyncio.sleep(0))

        @atexit.register
        def save():
            print(omniloop.run(asyncio.to_thread(sum, [1, 2])))
            print(omniloop.to_thread(sum, [3, 4]).result())
            omniloop.flush()

    result = run_child(program)

    assert result == ("3\n7\n", "", 0, result.seconds)


@pytest.mark.promise("A thread that outlives main may submit and wait")
def test_a_thread_that_outlives_main_may_submit_and_wait():
    def program():
        async def work(text):
            await asyncio.to_thread(int)
            print(text, flush=True)

        def outlives_main():
            threading.main_thread().join()
            omniloop.run(work("waited for"))
            omniloop.go(work("forgotten"))

        omniloop.go(work("of main's"))
        threading.Thread(target=outlives_main).start()

    result = run_child(program)

    assert result == ("of main's\nwaited for\nforgotten\n", "", 0, result.seconds)


@pytest.mark.skipif(COLD == "refused", reason="this Python starts no thread once main has ended")
def test_a_thread_that_outlives_main_may_be_the_first_to_use_the_runtime():
    def program():
        async def work(text):
            await asyncio.to_thread(int)
            print(text, flush=True)

        def outlives_main():
            threading.main_thread().join()
            omniloop.run(work("waited for"))
            omniloop.go(work("forgotten"))

        threading.Thread(target=outlives_main).start()

    result = run_child(program)

    assert result == ("waited for\nforgotten\n", "", 0, result.seconds)


@pytest.mark.promise("One that is first used while main ends does not hold up the exit")
def test_a_runtime_that_is_first_used_while_main_ends_does_not_hold_up_the_exit():
    """The drain waited for a start that another thread tried, and that failed: exit took until the deadline."""

    def program():
        threading.excepthook = lambda args: tell("hook")
        # The hook comes while main ends, or a moment before.
        threading.Thread(target=lambda: 1 / 0).start()

    result = run_child(program)

    assert result.stdout in ("hook done\n", f"hook {COLD}\n")
    assert (result.stderr, result.code) == ("", 0)


class Plain:
    pass


@pytest.mark.promise("Finalisers at the very end are refused in words")
def test_finalisers_at_the_very_end_are_refused_in_words_and_leave_nothing_behind():
    def before_the_import():
        plain = Plain()
        weakref.finalize(plain, lambda: told[0]("weakref.finalize made first"))

    def program():
        told.append(tell)
        omniloop.run(asyncio.sleep(0))
        plain2 = Plain()
        weakref.finalize(plain2, lambda: tell("weakref.finalize made last"))

    result = run_child(before_the_import, program)

    # All finalisers of weakref share one exit handler, registered with the first.
    assert sorted(result.stdout.splitlines()) == [
        "weakref.finalize made first refused",
        "weakref.finalize made last refused",
    ]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 13) and not getattr(sys, "_is_gil_enabled", bool)(),
    reason="3.13 without a GIL keeps modules for ever, once there was a thread, and at the end takes their names away: the finaliser finds None",
)
def test_the_finaliser_of_a_global_at_the_very_end_is_refused_in_words():
    def program():
        class Thing:
            def __del__(self):
                tell("__del__ of a global")

        omniloop.run(asyncio.sleep(0))
        thing = Thing()
        thing.tell, thing.omniloop = tell, omniloop

    result = run_child(program)

    assert result == ("__del__ of a global refused\n", "", 0, result.seconds)


@pytest.mark.promise("Nothing crashes the interpreter while tasks print without end")
@pytest.mark.alone
@pytest.mark.heavy
@pytest.mark.timeout(60)
def test_nothing_crashes_the_interpreter_while_tasks_print_without_end():
    """A loop thread that still prints at finalisation: "could not acquire lock for <stdout>", exit status -6, in 17 to 20 of 30 runs."""

    def program():
        omniloop.configure(exit_timeout=0.02, cancel_timeout=0.02)

        async def prints(daemon):
            while True:
                print("x" * 200)
                await asyncio.sleep(0)

        async def prints_on():
            while True:
                try:
                    await prints(False)
                except asyncio.CancelledError:
                    pass

        omniloop.go(prints(True), daemon=True)
        omniloop.go(prints(False), name="prints")
        omniloop.go(prints_on())
        omniloop.every(0.001, lambda: print("turn"))

    for _ in range(30):
        result = run_child(program, env={"PYTHONUNBUFFERED": ""})

        assert result.code == 0
        assert "Fatal" not in result.stderr and "Traceback" not in result.stderr
        assert result.stdout.endswith("\n")


@pytest.mark.promise("No output of work is lost")
def test_no_output_of_work_is_lost():
    def program():
        async def writes():
            await asyncio.sleep(0.01)
            for number in range(5000):
                print(number)
                print(number, file=sys.stderr)

        omniloop.go(writes())

    result = run_child(
        program,
        env={"PYTHONUNBUFFERED": ""},
    )

    numbers = [str(number) for number in range(5000)]
    assert result.stdout.split() == numbers
    assert result.stderr.split() == numbers
    assert result.code == 0


@pytest.mark.promise("A failure in the last drain is reported, once")
def test_a_failure_in_the_last_drain_is_reported_once():
    def program():
        async def fails():
            await asyncio.sleep(0.05)
            raise ValueError("too late to tell anyone")

        held = omniloop.go(fails())
        omniloop.go(fails())

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert result.stderr.count("ValueError: too late to tell anyone") == 2
    assert result.stderr.count("Submitted at: File") == 2


@pytest.mark.promise("Work is done with logging shut down")
def test_logging_may_be_shut_down_before_the_drain():
    def program():
        class Handler(logging.StreamHandler):
            pass

        logging.basicConfig(handlers=[Handler(sys.stdout)])

        async def fails():
            await asyncio.sleep(0.05)
            raise ValueError("too late to tell anyone")

        async def works():
            await asyncio.sleep(0.06)
            print("done", flush=True)

        omniloop.go(fails())
        omniloop.go(works())
        logging.shutdown()

    result = run_child(program)

    assert result.stdout.splitlines()[-1] == "done" or "done\n" in result.stdout
    assert "ValueError: too late to tell anyone" in result.stdout
    assert (result.stderr, result.code) == ("", 0)


def test_a_handler_of_logging_that_is_closed_harms_nobody():
    def program():
        stream = io.StringIO()
        logging.basicConfig(stream=stream)
        logging.raiseExceptions = False

        async def fails():
            await asyncio.sleep(0.05)
            raise ValueError

        async def works():
            await asyncio.sleep(0.06)
            print("done", flush=True)

        omniloop.go(fails())
        omniloop.go(works())
        stream.close()

    result = run_child(program)

    assert result == ("done\n", "", 0, result.seconds)


def works_and_fails():
    async def fails():
        await asyncio.sleep(0.05)
        print("a word", flush=True)
        raise ValueError("unheard")

    async def works():
        await asyncio.sleep(0.06)
        os.write(3, b"done")

    async def late():
        await asyncio.Event().wait()

    omniloop.configure(exit_timeout=2, cancel_timeout=0.1)
    omniloop.go(fails())
    omniloop.go(works())
    omniloop.go(late())


def closes_stdout():
    sys.stdout.close()


def closes_stderr():
    sys.stderr.close()


def closes_both():
    sys.stdout.close()
    sys.stderr.close()


def has_none():
    sys.stdout = sys.stderr = None


def closes_the_descriptors():
    os.close(1)
    os.close(2)


@pytest.mark.promise("And with stdout and stderr closed, absent or broken")
@pytest.mark.parametrize("ending", [closes_stdout, closes_stderr, closes_both, has_none, closes_the_descriptors])
def test_work_is_done_with_the_streams_closed(ending):
    reader, writer = os.pipe()

    child = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.dup2({writer}, 3)\n" + source_of(works_and_fails, ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        pass_fds=[writer],
    )
    _, stderr = child.communicate(timeout=40)
    os.close(writer)

    with open(reader, "rb") as pipe:
        assert pipe.read() == b"done"
    # 120: what Python itself says if it can't flush a stream at exit.
    assert child.returncode in (0, 120)
    assert b"Fatal" not in stderr and b"Exception ignored in atexit" not in stderr


@pytest.mark.parametrize("broken", ["stdout", "stderr"])
def test_work_is_done_with_a_stream_that_nobody_reads(broken):
    reader, writer = os.pipe()
    nobody, mouth = os.pipe()
    os.close(nobody)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, broken: mouth}

    child = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.dup2({writer}, 3)\n" + source_of(works_and_fails)],
        env=child_environment(),
        pass_fds=[writer],
        **streams,
    )
    _, stderr = child.communicate(timeout=40)
    os.close(writer)
    os.close(mouth)

    with open(reader, "rb") as pipe:
        assert pipe.read() == b"done"
    assert child.returncode in (0, 120)
    assert b"Fatal" not in (stderr or b"")


# --- a handler of logging that hangs ----------------------------------------------------------------------------------


class Hangs(logging.Handler):
    def emit(self, record):
        hanging.set()
        threading.Event().wait()


hanging = threading.Event()


async def fails():
    raise ValueError("nobody asked")


async def fails_otherwise():
    raise LookupError("nobody asked")


async def never_ends():
    await asyncio.Event().wait()


def hang_in_emit():
    logging.getLogger().addHandler(Hangs())
    omniloop.go(fails())


def hang_in_a_full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    logging.getLogger().addHandler(logging.StreamHandler(os.fdopen(writer, "w")))
    omniloop.go(fails())
    hanging.set()


def hang_in_the_lock_of_another_thread():
    handler = Hangs()
    logging.getLogger().addHandler(handler)
    threading.Thread(target=logging.warning, args=["hello"], daemon=True).start()
    hanging.wait()
    omniloop.go(fails())


def hang_in_the_record_of_an_earlier_group():
    class HangsLater(Hangs):
        def emit(self, record):
            if "more like" in record.getMessage() or "'second'" in record.getMessage():
                super().emit(record)

    logging.getLogger().addHandler(HangsLater())

    async def submit():
        # Two of them, in time for one group; and the loop blocks until its second is over, so that the next failure tells of it.
        for name in "first", "second", "third":
            omniloop.go(fails(), name=name) and None
            await asyncio.sleep(0.01)
        time.sleep(1.2)
        omniloop.go(fails_otherwise()) and None
        await asyncio.sleep(0.01)

    omniloop.go(submit())


def hang_in_a_worker():
    logging.getLogger().addHandler(Hangs())
    omniloop.to_thread(logging.warning, "hello")


@pytest.mark.promise("A handler of logging that hangs in one of its threads does not hold up the exit")
@pytest.mark.parametrize(
    "hang",
    [
        hang_in_emit,
        hang_in_a_full_pipe,
        hang_in_the_lock_of_another_thread,
        hang_in_the_record_of_an_earlier_group,
        hang_in_a_worker,
    ],
)
def test_a_logging_handler_that_hangs_does_not_hold_up_the_exit(hang):
    """The main thread waited for its lock, to say that the loop was blocked; and logging itself, at last, to close it."""

    def program():
        omniloop.configure(exit_timeout=0.2, cancel_timeout=0.2, slow_callback=None)

        class Closed(logging.Handler):
            def emit(self, record):
                pass

            def close(self):
                print("another handler is closed", flush=True)

        logging.getLogger("other").addHandler(Closed())
        omniloop.run(asyncio.sleep(0))
        omniloop.go(never_ends(), name="never ends")
        omniloop.run(asyncio.sleep(0))
        hang()
        while not hanging.wait(0.05):
            # PyPy tells of a failure when it has collected the handle.
            gc.collect()

    result = run_child(program, timeout=15)

    assert (result.stdout, result.code) == ("another handler is closed\n", 0)
    assert "of logging hangs in a thread that did not end, and is not closed" in result.stderr
    assert "unfinished when the time for draining was over" in result.stderr and "never ends" in result.stderr
    assert "Traceback" not in result.stderr and "Fatal" not in result.stderr
    # Alone it takes 3 s.
    assert result.seconds < 12


def test_a_logging_handler_that_is_slow_is_waited_for_and_closed():
    def program():
        class Slow(logging.Handler):
            def emit(self, record):
                time.sleep(0.3)
                print(record.getMessage().splitlines()[0], flush=True)

            def close(self):
                print("closed", flush=True)

        logging.getLogger("omniloop").addHandler(Slow())
        omniloop.configure(exit_timeout=0.1, cancel_timeout=0.1)
        omniloop.go(fails())
        omniloop.go(never_ends())
        # Both have begun, though the deadline comes soon.
        omniloop.run(asyncio.sleep(0))

    result = run_child(program)

    assert result.stdout.splitlines() == [
        "Task 'fails' failed, and nobody asked for its outcome",
        "omniloop: 1 unfinished when the time for draining was over, and cancelled:",
        "closed",
    ]
    assert (result.stderr, result.code) == ("", 0)
