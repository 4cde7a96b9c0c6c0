"""Work in the children of multiprocessing, whose end is not that of a program. Each test is an interpreter of its own."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import omniloop
from children import child_environment, without_remarks
from programs import source_of

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or "fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here"
)


def run_program(tmp_path, program, timeout=20):
    """Run the body of *program* as a file, and no `-c`, because spawn and forkserver import it again."""
    path = tmp_path / "program.py"
    path.write_text(source_of(program))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", path]
    result = subprocess.run(
        command, env=child_environment(), timeout=timeout, text=True, capture_output=True, check=False
    )
    result.stderr = without_remarks(result.stderr)
    return result


# --- in the programs --------------------------------------------------------------------------------------------------


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def answer():
    await asyncio.sleep(0)
    return 42


async def forgotten(name):
    await asyncio.sleep(0.1)
    await asyncio.to_thread(int)
    say(name, "done at exit")


def leave(name):
    omniloop.go(forgotten(name))


def answer_and_leave(name):
    say(name, omniloop.run(answer()), len(omniloop.tasks()))
    leave(name)


def leave_and_add(number):
    leave(f"job {number}")
    return omniloop.run(answer()) + number


async def endless():
    try:
        await asyncio.sleep(60)
    finally:
        say("cancelled")


def hold(ready, works, setting):
    if setting != "default":
        omniloop.configure(sigterm=setting)
    if works:
        omniloop.go(endless())
    omniloop.run(asyncio.sleep(0))
    ready.set()
    time.sleep(60)


def start(target, *args):
    """A child by fork, when it is ready."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=target, args=(ready, *args))
    child.start()
    ready.wait()
    return child


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("What a child of multiprocessing forgot is done before it ends, however it was started")
@pytest.mark.timeout(40)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_a_child_forgot_is_done_before_it_ends_however_it_was_started(method, tmp_path):
    def program():
        async def holds(event):
            await event.wait()
            say("the parent's work is done")

        if __name__ == "__main__":
            context = multiprocessing.get_context(method)
            event = asyncio.Event()
            omniloop.go(holds(event))
            omniloop.run(answer())
            processes = [context.Process(target=answer_and_leave, args=(f"child {number}",)) for number in range(2)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                assert process.exitcode == 0, process.exitcode
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                print(list(pool.map(leave_and_add, [1, 2])), flush=True)
            pool = context.Pool(1)
            print(pool.map(leave_and_add, [3]), flush=True)
            pool.close()
            pool.join()
            omniloop.call_soon(event.set)

    result = run_program(tmp_path, program, timeout=35)

    assert sorted(result.stdout.splitlines()) == [
        "[43, 44]",
        "[45]",
        "child 0 42 0",
        "child 0 done at exit",
        "child 1 42 0",
        "child 1 done at exit",
        "job 1 done at exit",
        "job 2 done at exit",
        "job 3 done at exit",
        "the parent's work is done",
    ]
    assert (result.stderr, result.returncode) == ("", 0)


def test_a_child_of_multiprocessing_that_is_terminated_drains_if_sigterm_does(tmp_path):
    def program():
        def child(ready):
            leave("child")
            ready.set()
            time.sleep(5)

        if __name__ == "__main__":
            omniloop.configure(sigterm="drain")
            terminated = start(child)
            terminated.terminate()
            terminated.join()
            print(terminated.exitcode)

    result = run_program(tmp_path, program)

    assert (result.stdout, result.stderr) == (f"child done at exit\n{-signal.SIGTERM}\n", "")
    assert result.returncode == 0


@pytest.mark.promise("The workers of a `with multiprocessing.Pool()`, which ends them by SIGTERM, drain")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_the_workers_of_a_pool_that_its_block_ends_by_sigterm_drain(method, tmp_path):
    """`with Pool()` ends its workers by SIGTERM: 0 of 20 forgotten pieces of work arrived, in silence."""

    def program():
        if __name__ == "__main__":
            with multiprocessing.get_context(method).Pool(2) as pool:
                pool.map(leave, ["job"] * 20)

    result = run_program(tmp_path, program)

    assert (result.stdout, result.stderr, result.returncode) == ("job done at exit\n" * 20, "", 0)


@pytest.mark.promise(
    "A child of `multiprocessing` that is terminated dies at once with nothing left, unless it is told not to drain"
)
@pytest.mark.parametrize(
    ("works", "setting", "said"),
    [(False, "default", ""), (True, "default", "cancelled\n"), (True, None, "")],
    ids=["nothing left", "more than its time", "turned off"],
)
def test_a_child_that_is_terminated_drains_for_a_bounded_time_and_dies_at_once_with_nothing_left(
    tmp_path, works, setting, said
):
    def program():
        if __name__ == "__main__":
            os.environ["OMNILOOP_EXIT_TIMEOUT"] = "1"
            child = start(hold, works, setting)
            since = time.monotonic()
            child.terminate()
            child.join()
            took = time.monotonic() - since
            # The deadline, as it was in the environment of the child.
            assert took > 0.9 or not said, took
            print(child.exitcode)

    result = run_program(tmp_path, program)

    assert (result.stdout, result.returncode) == (f"{said}{-signal.SIGTERM}\n", 0), result
    assert result.stderr.count("unfinished when the time for draining was over") == bool(said)


@pytest.mark.promise("It holds its parent no longer than five seconds")
@pytest.mark.timeout(30)
def test_a_terminated_child_holds_its_parent_no_longer_than_five_seconds(tmp_path):
    def program():
        if __name__ == "__main__":
            child = start(hold, True, "default")
            since = time.monotonic()
            child.terminate()
            child.join()
            # Four for the work, and what is left for the clean-up.
            assert 3.9 < time.monotonic() - since < 12
            print(child.exitcode)

    result = run_program(tmp_path, program)

    assert (result.stdout, result.returncode) == (f"cancelled\n{-signal.SIGTERM}\n", 0), result


@pytest.mark.promise("A second SIGTERM ends it at once")
def test_a_second_sigterm_ends_a_terminated_child_at_once(tmp_path):
    def program():
        if __name__ == "__main__":
            child = start(hold, True, "default")
            child.terminate()
            child.join(0.5)
            print(child.exitcode)
            child.terminate()
            child.join()
            print(child.exitcode)

    result = run_program(tmp_path, program)

    assert (result.stdout, result.stderr, result.returncode) == (f"None\n{-signal.SIGTERM}\n", "", 0)
