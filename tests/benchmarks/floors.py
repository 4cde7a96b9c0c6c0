"""The one table of what `--check` holds: by how much omniloop must beat each rival, and what is aimed at on 3.13."""

import sys
from typing import NamedTuple


class Floor(NamedTuple):
    """How many times cheaper than *against*, at the least; and the goal, if there is one."""

    measure: str
    against: str
    floor: float
    goal: float | None = None


# The name of what the standard library offers for the same.
RCTS = "run_coroutine_threadsafe"
SET = "create_task + set"
TASK = "create_task"
PPE = "ProcessPoolExecutor.submit"
# A loop of its own whose tasks are all cancelled, and waited for.
BARE = "a bare asyncio loop"
# The cheapest of the libraries that a user would pick instead.
BEST_PEER = "best of the peers"

FLOORS = [
    Floor("submit", RCTS, 8, 12),
    Floor("all done", RCTS, 7.5, 10),
    Floor("all done, 4 threads", RCTS, 8, 10),
    Floor("all done, 16 threads", RCTS, 7, 10),
    Floor("all done, sleep(0)", RCTS, 2, 3),
    Floor("all done, in one loop", SET, 1.5),
    Floor("round trip, two cores", RCTS, 1.2),
    Floor("round trip, two cores", BEST_PEER, 1.3),
    Floor("round trip, one core", RCTS, 1.2),
    Floor("round trip, one core", BEST_PEER, 1.3),
    Floor("round trip, one core, p99", RCTS, 1.2),
    Floor("round trip, one core, p99", BEST_PEER, 1.3),
    Floor("call_soon", "loop.call_soon_threadsafe", 6),
    Floor("to_thread", "ThreadPoolExecutor.submit", 1),
    Floor("to_process, 200 calls", PPE, 1),
    Floor("to_process, one call", PPE, 1),
    Floor("go on the loop's own thread", SET, 0.9),
    Floor("shutdown cancels 100,000 sleepers", BARE, 0.5),
    Floor("shutdown cancels 100,000 daemons", BARE, 0.5),
    Floor("shutdown drops 100,000 unstarted", BARE, 0.5),
    Floor("begin pending", TASK, 1 / 1.5, 1 / 1.3),
    Floor("collect pending", TASK, 1 / 2, 1 / 1.3),
    Floor("memory per pending task", RCTS, 1 / 0.7),
    Floor("await from another loop, two cores", RCTS, 1.2),
    Floor("await from another loop, one core", RCTS, 1.2),
    Floor("import", "asyncio, concurrent.futures", 1 / 1.1),
]

# Where a floor can't be had, what is held instead; README.md says why, and shows the limit.
EXCEPTIONS: dict[tuple[str, str], float] = {
    # Less would be less than making the handle costs.
    ("call_soon", "loop.call_soon_threadsafe"): 3,
    # Two cores have to be woken, for both alike.
    ("await from another loop, two cores", RCTS): 1,
    # The 99th percentile is what the kernel and the interpreter do.
    ("round trip, one core, p99", RCTS): 0.9,
    ("round trip, one core, p99", BEST_PEER): 0.9,
    # crochet, which runs no asyncio.
    ("round trip, one core", BEST_PEER): 1.15,
    ("round trip, two cores", BEST_PEER): 1.15,
    ("import", "asyncio, concurrent.futures"): 0.75,
}
if sys.version_info >= (3, 14):
    # Its `create_task` is faster.
    EXCEPTIONS |= {("all done, in one loop", SET): 1.1}
    # Its collector looks at a C task once; at a handle, whose class is written in Python, it takes longer.
    EXCEPTIONS |= {("collect pending", TASK): 1 / 4}
if sys.version_info < (3, 12):
    # No eager start: three turns of the loop for each coroutine, as many as the standard library takes.
    EXCEPTIONS |= {
        ("begin pending", TASK): 1 / 1.8,
        ("all done", RCTS): 3,
        ("all done, 4 threads", RCTS): 3.5,
        ("all done, 16 threads", RCTS): 5,
        ("all done, in one loop", SET): 1,
        ("round trip, two cores", RCTS): 0.9,
        ("round trip, two cores", BEST_PEER): 0.9,
        ("round trip, one core", RCTS): 0.9,
        ("round trip, one core", BEST_PEER): 0.75,
        ("round trip, one core, p99", RCTS): 0.5,
        ("round trip, one core, p99", BEST_PEER): 0.5,
        ("await from another loop, two cores", RCTS): 0.9,
        ("await from another loop, one core", RCTS): 1,
    }

# uvloop wakes its loop in 0.2 µs, and makes no system call for each submission either: less is left to save.
ON_UVLOOP: dict[tuple[str, str], float] = {
    ("submit", RCTS): 1.8,
    ("all done", RCTS): 5.5 if sys.version_info >= (3, 12) else 2.5,
    ("all done, in one loop", SET): 0.8 if sys.version_info >= (3, 12) else 0.5,
    ("round trip, two cores", RCTS): 1.05,
    ("round trip, one core", RCTS): 1.1,
    ("call_soon", "loop.call_soon_threadsafe"): 0.15,
}


def held(floor: Floor, loop: str = "asyncio") -> float:
    """The floor on this Python and *loop*."""
    key = floor.measure, floor.against
    least = EXCEPTIONS.get(key, floor.floor)
    return min(least, ON_UVLOOP.get(key, least)) if loop == "uvloop" else least
