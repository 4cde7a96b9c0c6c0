"""Work in the children of multiprocessing, whose end is not that of a program. Each test is an interpreter of its own."""

import multiprocessing
import signal
import subprocess
import sys

import pytest

from children import child_environment

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here")

# A module, and no `-c`, because spawn and forkserver import it again.
PROGRAM = """
import asyncio, concurrent.futures, multiprocessing, os, sys, time
import omniloop
from omniloop import go, run

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def answer():
    await asyncio.sleep(0)
    return 42

async def forgotten(name):
    await asyncio.sleep(0.1)
    await asyncio.to_thread(int)
    say(name, "done at exit")

def child(name):
    say(name, run(answer()), len(omniloop.tasks()))
    go(forgotten(name))

def works(number):
    go(forgotten(f"job {number}"))
    return run(answer()) + number

async def holds(event):
    await event.wait()
    say("the parent's work is done")

def main(method):
    context = multiprocessing.get_context(method)
    event = asyncio.Event()
    task = go(holds(event))
    run(answer())
    processes = [context.Process(target=child, args=(f"child {number}",)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, process.exitcode
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        print(list(pool.map(works, [1, 2])), flush=True)
    pool = context.Pool(1)
    print(pool.map(works, [3]), flush=True)
    pool.close()
    pool.join()
    omniloop.call_soon(event.set)

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.promise("What a child of multiprocessing forgot is done before it ends, however it was started")
@pytest.mark.timeout(40)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_a_child_forgot_is_done_before_it_ends_however_it_was_started(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", program, method],
        env=child_environment(),
        timeout=35,
        text=True,
        capture_output=True,
        check=False,
    )

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
    program = tmp_path / "program.py"
    program.write_text("""
import asyncio, multiprocessing, os
import omniloop
async def forgotten():
    await asyncio.sleep(0.1)
    os.write(1, b"done")
def child(ready):
    omniloop.go(forgotten())
    ready.set()
    import time; time.sleep(5)
if __name__ == "__main__":
    omniloop.configure(sigterm="drain")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=child, args=(ready,))
    process.start()
    ready.wait()
    process.terminate()
    process.join()
    print(process.exitcode)
""")

    result = subprocess.run(
        [sys.executable, program], env=child_environment(), timeout=9, text=True, capture_output=True, check=False
    )

    assert (result.stdout, result.stderr, result.returncode) == ("done-15\n", "", 0)


POOL = """
import asyncio, multiprocessing, os, signal, sys, time
import omniloop

async def forgotten(number):
    await asyncio.sleep(0.3)
    os.write(1, b"done\\n")

def leave(number):
    omniloop.go(forgotten(number))

def hold(ready, seconds, setting):
    if setting != "default":
        omniloop.configure(sigterm=setting)
    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            os.write(1, b"cancelled\\n")
    if seconds:
        omniloop.go(endless())
    omniloop.run(asyncio.sleep(0))
    ready.set()
    time.sleep(60)
"""


def run_program(tmp_path, source, timeout=20):
    program = tmp_path / "program.py"
    program.write_text(source)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", program]
    return subprocess.run(
        command, env=child_environment(), timeout=timeout, text=True, capture_output=True, check=False
    )


@pytest.mark.promise("The workers of a `with multiprocessing.Pool()`, which ends them by SIGTERM, drain")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_the_workers_of_a_pool_that_its_block_ends_by_sigterm_drain(method, tmp_path):
    """`with Pool()` ends its workers by SIGTERM: 0 of 20 forgotten pieces of work arrived, in silence."""
    result = run_program(
        tmp_path,
        POOL
        + f"""
if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        pool.map(leave, range(20))
""",
    )

    assert (result.stdout, result.stderr, result.returncode) == ("done\n" * 20, "", 0)


@pytest.mark.promise(
    "A child of `multiprocessing` that is terminated dies at once with nothing left, unless it is told not to drain"
)
@pytest.mark.parametrize(
    ("left", "setting", "said"),
    [(False, "default", ""), (True, "default", "cancelled\n"), (True, None, "")],
    ids=["nothing left", "more than its time", "turned off"],
)
def test_a_child_that_is_terminated_drains_for_a_bounded_time_and_dies_at_once_with_nothing_left(
    tmp_path, left, setting, said
):
    result = run_program(
        tmp_path,
        POOL
        + f"""
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    os.environ["OMNILOOP_EXIT_TIMEOUT"] = "1"
    child = context.Process(target=hold, args=(ready, {left}, {setting!r}))
    child.start()
    ready.wait()
    since = time.monotonic()
    child.terminate()
    child.join()
    took = time.monotonic() - since
    # The deadline, as it was in the environment of the child.
    assert took > 0.9 or not {bool(said)}, took
    print(child.exitcode)
""",
    )

    assert (result.stdout, result.returncode) == (f"{said}{-signal.SIGTERM}\n", 0), result
    assert result.stderr.count("unfinished when the time for draining was over") == bool(said)


@pytest.mark.promise("It holds its parent no longer than five seconds")
@pytest.mark.timeout(30)
def test_a_terminated_child_holds_its_parent_no_longer_than_five_seconds(tmp_path):
    result = run_program(
        tmp_path,
        POOL
        + """
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(ready, True, "default"))
    child.start()
    ready.wait()
    since = time.monotonic()
    child.terminate()
    child.join()
    assert 4.5 < time.monotonic() - since < 12
    print(child.exitcode)
""",
    )

    assert (result.stdout, result.returncode) == (f"cancelled\n{-signal.SIGTERM}\n", 0), result


@pytest.mark.promise("A second SIGTERM ends it at once")
def test_a_second_sigterm_ends_a_terminated_child_at_once(tmp_path):
    result = run_program(
        tmp_path,
        POOL
        + """
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(ready, True, "default"))
    child.start()
    ready.wait()
    child.terminate()
    child.join(0.5)
    print(child.exitcode)
    child.terminate()
    child.join()
    print(child.exitcode)
""",
    )

    assert (result.stdout, result.stderr, result.returncode) == (f"None\n{-signal.SIGTERM}\n", "", 0)
