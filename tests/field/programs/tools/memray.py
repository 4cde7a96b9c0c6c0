# /// script
# requires-python = "==3.14.*"
# dependencies = ["memray==1.20.0"]
# ///
"""
`memray.Tracker` around `go`, `run` and `to_thread`: which allocations it has seen, and of which threads; with `trace_python_allocators` and a fork.
"""

import asyncio
import os
from pathlib import Path

import memray

import omniloop
from ending import right


async def allocates_on_the_loop():
    await asyncio.sleep(0.01)
    return bytearray(5_000_000)


def allocates_in_a_thread():
    return bytearray(7_000_000)


kept = []
with memray.Tracker("seen.bin", trace_python_allocators=True):
    kept.append(omniloop.run(allocates_on_the_loop(), timeout=20))
    kept.append(omniloop.to_thread(allocates_in_a_thread).result(timeout=20))
    assert omniloop.run(asyncio.sleep(0, 3), timeout=20) == 3
    pid = os.fork()
    if not pid:
        os._exit(0 if omniloop.run(asyncio.sleep(0, 4), timeout=20) == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with memray.FileReader(Path("seen.bin")) as reader:
    largest = {
        record.size: record for record in reader.get_high_watermark_allocation_records() if record.size > 4_000_000
    }
    functions = {size: [frame[0] for frame in record.stack_trace()] for size, record in largest.items()}
    threads = {record.thread_name for record in largest.values()}
assert sorted(len(of) > 0 for of in functions.values()) == [True, True], functions
assert sorted(name for of in functions.values() for name in of if name.startswith("allocates")) == [
    "allocates_in_a_thread",
    "allocates_on_the_loop",
], functions
right(
    "What is allocated on the loop's thread and in a worker thread is seen with its function; a child of a fork goes on."
)
