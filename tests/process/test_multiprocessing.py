"""Work in the children of multiprocessing, whose end is not that of a program. Each test is an interpreter of its own."""

import multiprocessing
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
