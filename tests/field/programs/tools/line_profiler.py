# /// script
# requires-python = "==3.14.*"
# dependencies = ["line-profiler==5.1.0"]
# ///
"""
`line_profiler` and the standard library's `cProfile` around coroutines on omniloop's thread and functions of `to_thread`.

Differs: From Python 3.12 on `cProfile` records the calls of all threads, whichever thread enabled it, and in one stack: a function of the loop's thread may be listed as called by one of the main thread, with its time. For programs with threads take pyinstrument, or `profiling.sampling` of 3.15.
"""

import asyncio
import cProfile
import pstats

from line_profiler import LineProfiler

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return sum([number, number])


def worker(number):
    return number + 1


lines = LineProfiler(double, worker)
lines.enable_by_count()
assert omniloop.run(double(4), timeout=20) == 8
lines.disable_by_count()
profiled, threaded = lines(double), lines(worker)
for number in range(10):
    assert omniloop.run(profiled(number), timeout=20) == 2 * number
    assert omniloop.to_thread(threaded, number).result(timeout=20) == number + 1
hits = {key[2]: max(hit for _, hit, _ in timing) for key, timing in lines.get_stats().timings.items()}
assert all(any(name in key and hit >= 10 for key, hit in hits.items()) for name in ("double", "worker")), hits


async def calls_worker(number):
    await asyncio.sleep(0.01)
    return worker(number)


with cProfile.Profile() as profile:
    assert omniloop.run(calls_worker(1), timeout=20) == 2
# Of the loop's thread, though the main thread has enabled it.
assert "worker" in {function for _, _, function in pstats.Stats(profile).stats}
right("Lines of coroutines and of worker threads are counted, by their own number of hits.")
