"""
What is measured: each measure gives, for every contender, a function that takes one sample.

A sample is a list of costs in seconds (or bytes), one per operation, or one for a batch that was divided by its size.
Everything runs as users have it: submit sites, error reports and the pid check are on.
"""

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from floors import BARE, PPE, RCTS, SET, TASK

import omniloop
from peers import Peer, peers

Sample = Callable[[], list[float]]
clock = time.perf_counter

OURS = "omniloop"
# Large enough for the turns of the loop to count, small enough for many rounds.
MANY = 20_000
# Enough for full collections meanwhile.
PENDING = 20_000
# What a caller submits in one go. Less than the interpreter's switch interval, so that the cost is the caller's own.
BURST = 1_000


@dataclass
class Measure:
    """What is timed, and who takes part. *rounds* is relative to that of the others."""

    name: str
    unit: str
    contenders: dict[str, Sample]
    rounds: float = 1
    # Also compare the 99th percentile of all samples.
    tail: bool = False
    # Where the threads are: "apart" (the caller on one core, everything else on another), "together", or "anywhere".
    cores: str = "apart"


async def noop() -> None:
    """Do nothing: what is left is the cost of getting there."""


async def suspend() -> None:
    await asyncio.sleep(0)


def nothing() -> None:
    pass


def everything(make_loop: Callable[[], asyncio.AbstractEventLoop], quick: bool) -> list[Measure]:
    """All measures, in the order of the table."""
    loop = make_loop()
    threading.Thread(target=loop.run_forever, name="stdlib loop", daemon=True).start()
    rivals = peers()
    return [
        Measure("submit", "µs", _forgotten(loop, rivals, BURST, BURST // 5, until_done=False), rounds=3),
        Measure("all done", "µs", _forgotten(loop, rivals, MANY, MANY // 10, until_done=True)),
        Measure("all done, 4 threads", "µs", _threads(loop, 4, MANY, until_done=True)),
        Measure("all done, 16 threads", "µs", _threads(loop, 16, MANY, until_done=True)),
        # Without a GIL the callers run at once, where the kernel lets them.
        *(
            Measure(
                f"submit, {threads} free", "µs", _threads(loop, threads, BURST * threads, False), 0.5, cores="anywhere"
            )
            for threads in (1, 2, 4, 16)
        ),
        *(
            Measure(f"all done, {threads} free", "µs", _threads(loop, threads, MANY // 4, True), 0.5, cores="anywhere")
            for threads in (1, 2, 4, 16)
        ),
        Measure("all done, sleep(0)", "µs", _suspending(loop)),
        Measure("all done, in one loop", "µs", _in_one_loop(loop)),
        Measure("round trip, two cores", "µs", _round_trip(loop, rivals), rounds=3, tail=True),
        Measure("round trip, one core", "µs", _round_trip(loop, rivals), rounds=3, tail=True, cores="together"),
        Measure("call_soon", "µs", _call_soon(loop), rounds=3),
        Measure("to_thread", "µs", _to_thread()),
        Measure("to_process, 200 calls", "µs", _to_process(lambda submit: timed_calls(200, submit))),
        Measure(
            "to_process, one call", "µs", _to_process(lambda submit: one_by_one(50, lambda: submit(abs, -1).result()))
        ),
        Measure("go on the loop's own thread", "µs", _own_thread()),
        *(
            Measure(f"shutdown {what} 100,000 {kind}", "µs", _ending(make_loop, kind), rounds=0.2)
            for what, kind in (("cancels", "sleepers"), ("cancels", "daemons"), ("drops", "unstarted"))
        ),
        *(
            Measure(f"{what} pending", "µs", _pending(loop, what), rounds=0.3, cores="anywhere")
            for what in ("begin", "collect")
        ),
        Measure("memory per pending task", "bytes", _memory(), rounds=0.2),
        Measure("await from another loop, two cores", "µs", _from_another_loop(make_loop, loop), rounds=2),
        Measure(
            "await from another loop, one core", "µs", _from_another_loop(make_loop, loop), rounds=2, cores="together"
        ),
        Measure("import", "ms", _imports(), rounds=1 if quick else 2),
    ]


# --- submitting ---------------------------------------------------------------------------------------------------------


def timed(count: int, submit: Callable[[], Any], finish: Callable[[], Any], until_done: bool) -> list[float]:
    """Submit *count* times, then *finish*; the cost of one, with or without the finishing."""
    gc.collect()
    start = clock()
    for _ in range(count):
        submit()
    submitted = clock()
    finish()
    return [((clock() if until_done else submitted) - start) / count]


def _stdlib_pair(loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> tuple[Callable[[], Any], ...]:
    threadsafe = asyncio.run_coroutine_threadsafe
    # Work that never suspends is done in order: when the last is done, all are.
    return lambda: threadsafe(work(), loop), lambda: threadsafe(work(), loop).result()


def _forgotten(
    loop: asyncio.AbstractEventLoop, rivals: list[Peer], count: int, fewer: int, until_done: bool
) -> dict[str, Sample]:
    go = omniloop.go
    submit, finish = _stdlib_pair(loop, noop)
    contenders: dict[str, Sample] = {
        OURS: lambda: timed(count, lambda: go(noop()), omniloop.flush, until_done),
        RCTS: lambda: timed(count, submit, finish, until_done),
    }
    for rival in rivals:
        if rival.submit is not None:
            # Fewer, because they take their time.
            contenders[rival.name] = lambda it=rival: timed(fewer, it.submit, it.call, until_done)
    return contenders


def _suspending(loop: asyncio.AbstractEventLoop) -> dict[str, Sample]:
    go = omniloop.go
    submit, finish = _stdlib_pair(loop, suspend)
    return {
        OURS: lambda: timed(MANY, lambda: go(suspend()), omniloop.flush, True),
        RCTS: lambda: timed(MANY, submit, finish, True),
    }


def _threads(loop: asyncio.AbstractEventLoop, threads: int, count: int, until_done: bool) -> dict[str, Sample]:
    """The time until all threads have submitted, or until all is done, by the number of calls."""
    go = omniloop.go
    submit, finish = _stdlib_pair(loop, noop)
    each = count // threads

    def sample(submit: Callable[[], Any], finish: Callable[[], Any]) -> list[float]:
        begin = threading.Barrier(threads)
        # By the callers' own clocks: on a busy machine they may begin, or be over, before anybody else comes to look.
        starts: list[float] = []
        ends: list[float] = []

        def caller() -> None:
            begin.wait()
            starts.append(clock())
            for _ in range(each):
                submit()
            if not until_done:
                ends.append(clock())
            finish()
            if until_done:
                ends.append(clock())

        gc.collect()
        callers = [threading.Thread(target=caller) for _ in range(threads)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        return [(max(ends) - min(starts)) / (each * threads)]

    return {
        OURS: lambda: sample(lambda: go(noop()), omniloop.flush),
        RCTS: lambda: sample(submit, finish),
    }


async def _set_idiom(count: int) -> float:
    """What asyncio's documentation asks for, so that tasks are not collected while they run."""
    held: set[asyncio.Task[None]] = set()
    create_task = asyncio.create_task
    last: asyncio.Task[None]
    start = clock()
    for _ in range(count):
        last = create_task(noop())
        held.add(last)
        last.add_done_callback(held.discard)
    await last
    while held:
        await asyncio.sleep(0)
    return (clock() - start) / count


def _in_one_loop(loop: asyncio.AbstractEventLoop) -> dict[str, Sample]:
    go = omniloop.go

    def inside() -> list[float]:
        gc.collect()
        return [asyncio.run_coroutine_threadsafe(_set_idiom(MANY), loop).result()]

    return {OURS: lambda: timed(MANY, lambda: go(noop()), omniloop.flush, True), SET: inside}


def _own_thread() -> dict[str, Sample]:
    async def ours(count: int) -> float:
        go = omniloop.go
        start = clock()
        for _ in range(count):
            last = go(noop())
        await last
        return (clock() - start) / count

    def sample(idiom: Callable[[int], Any]) -> list[float]:
        gc.collect()
        return [omniloop.run(idiom(MANY // 4))]

    # Both on our loop.
    return {OURS: lambda: sample(ours), SET: lambda: sample(_set_idiom)}


def _call_soon(loop: asyncio.AbstractEventLoop) -> dict[str, Sample]:
    call_soon, threadsafe = omniloop.call_soon, loop.call_soon_threadsafe

    def finish() -> None:
        done = threading.Event()
        threadsafe(done.set)
        done.wait()

    return {
        OURS: lambda: timed(BURST, lambda: call_soon(nothing), omniloop.flush, False),
        "loop.call_soon_threadsafe": lambda: timed(BURST, lambda: threadsafe(nothing), finish, False),
    }


def _to_thread() -> dict[str, Sample]:
    pool = ThreadPoolExecutor()

    def sample(submit: Callable[[], Any]) -> list[float]:
        gc.collect()
        start = clock()
        futures = [submit() for _ in range(2_000)]
        wait(futures[-20:])
        for future in futures:
            future.result()
        return [(clock() - start) / 2_000]

    return {
        OURS: lambda: sample(lambda: omniloop.to_thread(nothing)),
        "ThreadPoolExecutor.submit": lambda: sample(lambda: pool.submit(nothing)),
    }


def timed_calls(count: int, submit: Callable[..., Any]) -> list[float]:
    gc.collect()
    start = clock()
    for future in [submit(abs, -1) for _ in range(count)]:
        future.result()
    return [(clock() - start) / count]


def _to_process(sample: Callable[[Callable[..., Any]], list[float]]) -> dict[str, Sample]:
    # Both stay warm from the first sample on: starting a process takes 50 ms.
    ours, stdlib = omniloop.ProcessPool(2), ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    return {OURS: lambda: sample(ours.to_process), PPE: lambda: sample(stdlib.submit)}


# --- waiting ------------------------------------------------------------------------------------------------------------


def one_by_one(count: int, call: Callable[[], Any]) -> list[float]:
    """The cost of each of *count* calls."""
    costs = []
    for _ in range(3):
        # After its pause, while the others had their turn, the loop is cold.
        call()
    for _ in range(count):
        start = clock()
        call()
        costs.append(clock() - start)
    return costs


def _round_trip(loop: asyncio.AbstractEventLoop, rivals: list[Peer]) -> dict[str, Sample]:
    run = omniloop.run
    _, threadsafe = _stdlib_pair(loop, noop)
    contenders: dict[str, Sample] = {
        OURS: lambda: one_by_one(100, lambda: run(noop())),
        RCTS: lambda: one_by_one(100, threadsafe),
    }
    for rival in rivals:
        contenders[rival.name] = lambda it=rival: one_by_one(rival.trips, it.call)
    contenders["(two bare hand-overs)"] = _hand_overs(asyncio_too=None)
    contenders["(bare call on the loop)"] = _hand_overs(asyncio_too=loop)
    return contenders


def _hand_overs(asyncio_too: asyncio.AbstractEventLoop | None) -> Sample:
    """The physical limit: another thread is woken by a lock, or by its loop, and wakes the caller by a lock."""
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()

    def bounce() -> None:
        while True:
            there.acquire()
            back.release()

    def bare() -> None:
        there.release()
        back.acquire()

    def on_loop() -> None:
        assert asyncio_too is not None
        asyncio_too.call_soon_threadsafe(back.release)
        back.acquire()

    if asyncio_too is not None:
        return lambda: one_by_one(100, on_loop)
    threading.Thread(target=bounce, daemon=True).start()
    return lambda: one_by_one(100, bare)


def _from_another_loop(
    make_loop: Callable[[], asyncio.AbstractEventLoop], loop: asyncio.AbstractEventLoop
) -> dict[str, Sample]:
    async def ours() -> list[float]:
        return [await timed_await(lambda: omniloop.go(noop())) for _ in range(100)]

    async def stdlib() -> list[float]:
        threadsafe, wrap = asyncio.run_coroutine_threadsafe, asyncio.wrap_future
        return [await timed_await(lambda: wrap(threadsafe(noop(), loop))) for _ in range(100)]

    async def timed_await(start: Callable[[], Any]) -> float:
        began = clock()
        await start()
        return clock() - began

    mine = make_loop()
    return {
        OURS: lambda: mine.run_until_complete(ours()),
        RCTS: lambda: mine.run_until_complete(stdlib()),
    }


# --- ending -------------------------------------------------------------------------------------------------------------


def _ending(make_loop: Callable[[], asyncio.AbstractEventLoop], kind: str) -> dict[str, Sample]:
    """What the end costs for each of so many that none of them is done in time."""
    count = 100_000
    # What it says of the first twenty is part of what it costs, but not to be read here.
    logging.getLogger("omniloop").addHandler(logging.NullHandler())
    logging.getLogger("omniloop").propagate = False

    async def sleeper() -> None:
        await asyncio.sleep(3600)

    def ours() -> list[float]:
        runtime = omniloop.Runtime(cancel_timeout=0.05, slow_callback=None)
        gate = threading.Event()
        if kind == "unstarted":
            runtime.call_soon(gate.wait)
        tasks = [runtime.go(sleeper(), daemon=kind == "daemons") for _ in range(count)]
        if kind != "unstarted":
            runtime.run(noop())
        gc.collect()
        gate.set()
        start = clock()
        runtime.shutdown(timeout=0)
        took = clock() - start
        assert all(task.cancelled() for task in tasks)
        return [took / count]

    async def cancel_all() -> float:
        tasks = [asyncio.create_task(sleeper()) for _ in range(count)]
        if kind != "unstarted":
            await asyncio.sleep(0)
        gc.collect()
        start = clock()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return clock() - start

    def bare() -> list[float]:
        loop = make_loop()
        try:
            return [loop.run_until_complete(cancel_all()) / count]
        finally:
            loop.close()

    return {OURS: ours, BARE: bare}


# --- in interpreters of their own ---------------------------------------------------------------------------------------

_SLEEPERS = """
import asyncio, gc, os, sys, threading
import omniloop
COUNT = 100_000
async def sleeper(): await asyncio.sleep(3600)
async def noop(): pass
def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if sys.argv[2] == "uvloop":
    import uvloop
    make_loop = uvloop.new_event_loop
    omniloop.configure(loop_factory=make_loop)
else:
    make_loop = asyncio.new_event_loop
if sys.argv[1] == "omniloop":
    submit = omniloop.go
else:
    loop = make_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    def submit(coro): return asyncio.run_coroutine_threadsafe(coro, loop)
submit(noop()).result()
before = resident()
tasks = [submit(sleeper()) for _ in range(COUNT)]
submit(noop()).result()
print((resident() - before - sys.getsizeof(tasks)) / COUNT, flush=True)
os._exit(0)
"""


_BYTECODE = tempfile.TemporaryDirectory()


def child(source: str, *args: str) -> float:
    """What an interpreter prints that runs *source*."""
    # Bytecode is kept, as it is for a user, also where the environment says otherwise.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": _BYTECODE.name}
    command = [sys.executable, "-c", source, *args]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=120)
    return float(done.stdout)


async def _pend(start: Callable[[Any], Any], what: str) -> list[float]:
    """With the garbage collector on: the cost of beginning a task that then waits, or of a full collection for each that waits."""
    gate = asyncio.Event()
    waiting = 0

    async def wait_for_gate() -> None:
        nonlocal waiting
        waiting += 1
        await gate.wait()

    gc.collect()
    # Else what the other measures have left is looked at too.
    gc.freeze()
    ticks = [time.thread_time()]
    tasks = [start(wait_for_gate()) for _ in range(PENDING)]
    while waiting < PENDING:
        await asyncio.sleep(0)
    ticks.append(time.thread_time())
    gc.collect()
    ticks.append(time.thread_time())
    gc.unfreeze()
    gc.disable()
    gate.set()
    for task in tasks:
        await task
    gc.enable()
    began, collected = ((after - before) / PENDING for before, after in zip(ticks, ticks[1:], strict=False))
    return [began if what == "begin" else collected]


def _pending(loop: asyncio.AbstractEventLoop, what: str) -> dict[str, Sample]:
    # Each on a loop of its own: ours holds what `create_task` makes on it.
    return {
        OURS: lambda: omniloop.run(_pend(omniloop.go, what)),
        TASK: lambda: asyncio.run_coroutine_threadsafe(_pend(asyncio.create_task, what), loop).result(),
    }


def _memory() -> dict[str, Sample]:
    loop = os.environ.get("OMNILOOP_LOOP", "asyncio")
    return {name: lambda name=name: [child(_SLEEPERS, name, loop)] for name in (OURS, RCTS)}


def _imports() -> dict[str, Sample]:
    # The process's own time: an import waits for nothing but the disk's cache.
    source = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    return {
        OURS: lambda: [child(source.format("omniloop"))],
        "asyncio, concurrent.futures": lambda: [child(source.format("asyncio, concurrent.futures"))],
    }


def percentile(costs: list[float], share: float) -> float:
    return sorted(costs)[max(0, math.ceil(len(costs) * share) - 1)]


def calm(costs: list[float]) -> float:
    """What the quarter of the rounds that was disturbed least stayed below."""
    return percentile(costs, 0.25)


def median(costs: list[float]) -> float:
    return statistics.median(costs)
