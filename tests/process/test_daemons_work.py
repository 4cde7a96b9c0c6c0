"""What daemons submit is done, and does not hold up the exit."""

import asyncio
import atexit
import contextvars
import logging
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import omniloop
from children import run_child
from omniloop import every, go


@pytest.mark.promise("A daemon that submits without end does not hold up the exit", section="At exit")
@pytest.mark.parametrize(
    "submits",
    ["awaits go", "go", "to_thread", "call_soon", "every", "a context of its own", "a task", "go in each turn"],
)
def test_a_daemon_that_submits_without_end_does_not_hold_up_the_exit(submits):
    """The drain waited for its work, of which there was always more: for all of `exit_timeout`."""

    def program():
        started = threading.Event()

        async def poll():
            while True:
                started.set()
                match submits:
                    case "awaits go":
                        await go(asyncio.sleep(0.05))
                    case "go" | "go in each turn":
                        go(asyncio.sleep(0.05))
                    case "to_thread":
                        await omniloop.to_thread(time.sleep, 0.05)
                    case "call_soon":
                        await omniloop.call_soon(int)
                    case _:
                        await go(asyncio.sleep(0.05), context=contextvars.Context())
                # In each turn of the loop, so also between two drains.
                await asyncio.sleep(0 if submits == "go in each turn" else 0.001)

        def turn():
            started.set()
            go(asyncio.sleep(0.05))

        async def makes_tasks():
            # What goes on when its maker has ended.
            asyncio.create_task(poll())
            await asyncio.Event().wait()

        if submits == "every":
            ticking = every(0.01, turn)
        elif submits == "a task":
            go(makes_tasks(), daemon=True)
        else:
            go(poll(), daemon=True)
        started.wait(5)

    result = run_child(program)

    assert result[:3] == ("", "", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("What a daemon has submitted by the end is done, also what needs a pool of the program's own")
def test_the_jobs_of_a_dispatcher_are_done():
    def program():
        pool = ThreadPoolExecutor(max_workers=1)
        # From 3.12 on no thread of it could start when main has ended.
        pool.submit(int).result(timeout=5)
        started = threading.Event()

        async def job(number):
            await asyncio.sleep(0.2)
            await asyncio.get_running_loop().run_in_executor(pool, print, number)

        async def dispatch():
            for number in range(3):
                go(job(number))
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                go(last())

        async def last():
            await asyncio.sleep(0.1)
            print("the last")

        go(dispatch(), daemon=True)
        started.wait(5)

    result = run_child(program)

    assert (sorted(result.stdout.splitlines()), result.stderr, result.code) == (["0", "1", "2", "the last"], "", 0)


@pytest.mark.promise("`flush()` waits for what daemons have submitted as for any other work")
def test_flush_waits_for_what_daemons_have_submitted(runtime):
    started, done = threading.Event(), []

    async def job():
        await asyncio.sleep(0.05)
        done.append(1)

    async def daemon():
        runtime.go(job())
        started.set()
        await asyncio.Event().wait()

    runtime.go(daemon(), daemon=True)
    assert started.wait(timeout=5)
    runtime.flush(timeout=5)

    assert done == [1]


@pytest.mark.promise("A drain that waits long for a daemon's work does not advise to make it a daemon")
def test_the_advice_is_not_for_what_is_a_daemons():
    def program():
        started = threading.Event()

        async def daemon():
            go(asyncio.sleep(2.5), name="a daemon's job")
            started.set()
            await asyncio.Event().wait()

        go(daemon(), daemon=True)
        started.wait(5)

    result = run_child(program, remarks=True)

    assert "waits for 1 unfinished for" in result.stderr and "a daemon's job." in result.stderr
    assert "daemon=True" not in result.stderr


@pytest.mark.promise("Whatever the end cancels is named or counted, also what came when the list was made")
def test_whatever_the_end_cancels_is_counted():
    """What came between the list of the unfinished and the closing was cancelled without a word, in 10 of 12 runs."""

    def program():
        handles, texts = [], []

        class Counts(logging.Handler):
            def emit(self, record):
                texts.append(record.getMessage())

        logging.getLogger().addHandler(Counts())

        async def work():
            await asyncio.sleep(0.005)

        def submits():
            while True:
                try:
                    handles.append(go(work()))
                except omniloop.ClosedError:
                    return
                time.sleep(0.0003)

        class End:
            # Where imports are lazy, nothing could be imported any more.
            def __del__(self, search=re.search, write=os.write):
                cancelled = sum(handle.cancelled() for handle in handles)
                counted = [search("([0-9]+) unfinished when", text) for text in texts]
                named = sum(int(found[1]) for found in counted if found)
                pending = sum(not handle.done() for handle in handles)
                write(1, f"{cancelled == named} {pending}\n".encode())

        sys.modules["at the end"] = End()
        omniloop.configure(exit_timeout=0.2)
        submitting = threading.Thread(target=submits, daemon=True)
        submitting.start()
        # Before the drain's own, and so called after it: every handle is in the list by then.
        atexit.unregister(omniloop._process.exit.drain_at_exit)
        atexit.register(submitting.join, 5)
        atexit.register(omniloop._process.exit.drain_at_exit)
        time.sleep(0.05)

    for _ in range(5):
        result = run_child(program)

        assert (result.stdout, result.code) == ("True 0\n", 0), result.stderr
