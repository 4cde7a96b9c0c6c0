"""
Everything at once, at random: eight threads submit, cancel, wait, time out, fork and shut down. Afterwards the books balance.

`OMNILOOP_SOAK_SECONDS` says for how long in all (5 by default); `OMNILOOP_SOAK_SEED` repeats a run.
"""

import asyncio
import concurrent.futures
import faulthandler
import gc
import itertools
import os
import random
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import go, run

SECONDS = float(os.environ.get("OMNILOOP_SOAK_SECONDS", "5"))


@pytest.mark.promise(
    "After eight threads did everything at once, what was accepted is what ended, and nothing is left: no thread, descriptor or reference"
)
@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("loop", ["asyncio", "asyncio in debug mode", "uvloop"])
def test_the_books_balance_after_everything_at_once(loop):
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    seed = os.environ.get("OMNILOOP_SOAK_SEED") or str(random.randrange(10**9))
    print(f"OMNILOOP_SOAK_SEED={seed}")

    seconds = SECONDS / 3

    def program():

        THREADS = 8
        faulthandler.dump_traceback_later(seconds + 25, exit=True)

        class Wrong(Exception):
            pass

        # Counted where it happens; `next` on a count is atomic.
        started, ended = itertools.count(), itertools.count()

        async def work(kind, rng):
            next(started)
            try:
                match kind:
                    case "sleeps":
                        await asyncio.sleep(rng.random() / 500)
                    case "yields":
                        for _ in range(rng.randrange(5)):
                            await asyncio.sleep(0)
                    case "fails":
                        await asyncio.sleep(0)
                        raise Wrong
                    case "poisons":
                        raise SystemExit(kind)
                    case "cancels itself":
                        asyncio.current_task().cancel()
                        await asyncio.sleep(0)
                    case "spawns":
                        handles.append(go(work("yields", rng)))
                    case "uses a thread":
                        await asyncio.to_thread(int)
                    case "waits for ever":
                        await asyncio.Event().wait()
            finally:
                # A second cancellation may interrupt the clean-up.
                try:
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
                finally:
                    next(ended)
            return kind

        KINDS = ["at once"] * 6 + [
            "sleeps",
            "yields",
            "fails",
            "poisons",
            "cancels itself",
            "spawns",
            "uses a thread",
            "waits for ever",
        ]

        def function(kind):
            next(started)
            next(ended)
            if kind == "fails":
                raise Wrong
            return kind

        # list.append is atomic. All handles, of all threads.
        handles = []
        problems = []

        def acts(number):
            rng = random.Random(f"{seed}/{number}")
            mine = []

            def submit():
                kind = rng.choice(KINDS)
                how = rng.random()
                if how < 0.7:
                    task = go(work(kind, rng), daemon=kind == "waits for ever")
                elif how < 0.8:
                    task = omniloop.call_soon(function, kind)
                elif how < 0.9:
                    task = omniloop.to_thread(function, kind)
                else:
                    task = omniloop.call_later(rng.random() / 500, function, kind)
                handles.append(task)
                mine.append(task)

            def wait(task, timeout):
                try:
                    task.result(timeout)
                except (
                    Wrong,
                    SystemExit,
                    concurrent.futures.CancelledError,
                    omniloop.WaitTimeoutError,
                    omniloop.ClosedError,
                ):
                    pass

            def fork():
                pid = os.fork()
                if not pid:
                    code = 1
                    try:
                        code = (
                            0 if run(work("yields", rng), timeout=10) == "yields" and len(omniloop.tasks()) == 0 else 2
                        )
                    finally:
                        os._exit(code)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code:
                    problems.append(f"a child ended with {code}")

            while time.monotonic() < until:
                what = rng.random()
                if what < 0.75:
                    for _ in range(rng.randrange(20)):
                        submit()
                elif what < 0.85 and mine:
                    rng.choice(mine[-50:]).cancel()
                elif what < 0.93 and mine:
                    wait(rng.choice(mine[-50:]), rng.choice([0, 0.001, 0.01]))
                elif what < 0.96 and mine:
                    concurrent.futures.wait(rng.choices(mine, k=5), timeout=0.01)
                elif what < 0.97:
                    try:
                        omniloop.flush(0.05)
                    except omniloop.WaitTimeoutError:
                        pass
                elif what < 0.98:
                    try:
                        run(asyncio.sleep(0.001), timeout=1)
                    except (omniloop.ClosedError, omniloop.TaskTimeoutError, concurrent.futures.CancelledError):
                        pass
                elif what < 0.99:
                    omniloop.stats()
                    omniloop.tasks()
                    gc.collect() if rng.random() < 0.05 else None
                elif what < 0.997 and hasattr(os, "fork"):
                    fork()
                elif number == 0 and what > 0.998:
                    omniloop.shutdown(rng.choice([0, 0.01]))
                del mine[:-100]
                # In debug mode eight threads submit faster than the loop works; what is piled up would be cut off by the deadlines.
                while time.monotonic() < until and sum(not task.done() and task._kind == "work" for task in mine) > 50:
                    time.sleep(0.001)

        def guarded(number):
            try:
                acts(number)
            except BaseException as error:
                problems.append(repr(error))
                raise

        def descriptors():
            return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

        omniloop.configure(on_error=lambda failure: None, cancel_timeout=5, slow_callback=None)
        run(asyncio.sleep(0))
        omniloop.shutdown()
        files = descriptors()
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        omniloop.shutdown(timeout=10)

        counts = {"succeeded": 0, "failed": 0, "cancelled": 0, "refused": 0, "lost": 0}
        for task in handles:
            if not task.done():
                counts["lost"] += 1
            elif task.cancelled():
                counts["cancelled"] += 1
            elif isinstance(error := task.exception(), (omniloop.ClosedError, omniloop.LoopDiedError)):
                counts["refused"] += 1
            else:
                counts["failed" if error else "succeeded"] += 1
        print(counts, file=sys.stderr)
        assert not problems, problems
        assert counts["lost"] == 0, counts
        assert sum(counts.values()) == len(handles)
        # Each that ended by itself ran, and none ran twice; those that were cancelled or refused may have run.
        ran = next(started)
        assert counts["succeeded"] + counts["failed"] <= ran <= len(handles) + 1000, (ran, counts)
        assert next(ended) == ran, "the clean-up of some work did not run"

        task = error = threads = None
        handles.clear()
        gc.collect()
        left = [thing for thing in gc.get_objects() if isinstance(thing, (omniloop.Task, asyncio.Task))]
        assert not left, left[:5]
        assert threading.active_count() == 1, threading.enumerate()
        assert descriptors() == files, (descriptors(), files)
        print("balanced")

    result = run_child(
        program,
        env={
            "OMNILOOP_LOOP": "uvloop" if loop == "uvloop" else "asyncio",
            "PYTHONASYNCIODEBUG": "1" if "debug" in loop else "",
        },
        flags=["-W", "ignore::DeprecationWarning"],
        timeout=SECONDS + 50,
    )

    assert (result.stdout, result.code) == ("balanced\n", 0), f"OMNILOOP_SOAK_SEED={seed}\n{result.stderr}"
