# /// script
# requires-python = "==3.14.*"
# dependencies = ["pyinstrument==5.1.3"]
# ///
"""
`Profiler(async_mode="disabled")` around `run`, and a profiler that is started and stopped in a coroutine on omniloop's thread.

Differs: A profiler sees the thread that started it. Around `run` in the main thread it shows the wait; to see the work, start it in the work.
"""

import asyncio
import time

from pyinstrument import Profiler

import omniloop
from ending import right


def compute_for_a_while():
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(1000))


async def profiled():
    with Profiler(interval=0.002) as profiler:
        await asyncio.sleep(0.01)
        compute_for_a_while()
    return profiler.output_text(color=False, unicode=False)


async def work():
    compute_for_a_while()


inside = omniloop.run(profiled(), timeout=30)
assert "compute_for_a_while" in inside, inside

with Profiler(interval=0.002, async_mode="disabled") as profiler:
    omniloop.run(work(), timeout=30)
around = profiler.output_text(color=False, unicode=False)
assert "compute_for_a_while" not in around, around
assert "profiled" not in around
right("The coroutine's own time by function where the profiler runs in it; work and drain go on undisturbed.")
