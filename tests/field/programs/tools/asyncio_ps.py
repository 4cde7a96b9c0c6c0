# /// script
# requires-python = "==3.15.*"
# dependencies = []
# ///
"""
From outside, with what Python 3.15 brings: `python -m asyncio ps` and `pstree` of a running program, and `python -m profiling.sampling dump --async-aware`.

Differs: On 3.14 `python -m asyncio ps` shows only the loop of the main thread, so nothing of omniloop; there use `python -m omniloop` (see [what is my loop doing?](../how-to/what-is-my-loop-doing.md)).
"""

import subprocess
import sys

from ending import right

source = """
import asyncio, sys, omniloop
async def inner():
    await asyncio.Event().wait()
async def outer():
    async with asyncio.TaskGroup() as group:
        group.create_task(inner(), name="the inner one")
handles = [omniloop.go(outer(), name="the outer one"), omniloop.go(inner(), name="another")]
omniloop.run(asyncio.sleep(0.1))
print("ready", flush=True)
sys.stdin.read()
for handle in handles:
    handle.cancel()
"""
program = subprocess.Popen([sys.executable, "-c", source], stdin=-1, stdout=-1, stderr=-1, text=True)


def look(*command):
    looked = subprocess.run(
        [sys.executable, "-m", *command, str(program.pid)], capture_output=True, text=True, timeout=60
    )
    assert looked.returncode == 0, looked
    return looked.stdout


try:
    assert program.stdout.readline() == "ready\n"
    listed = look("asyncio", "ps")
    assert all(name in listed for name in ("the inner one", "the outer one", "another")), listed
    tree = look("asyncio", "pstree")
    assert tree.index("the outer one") < tree.index("the inner one"), tree
    dumped = look("profiling.sampling", "dump", "--async-aware")
    assert "the outer one" in dumped and "inner" in dumped, dumped
finally:
    program.stdin.close()
    assert program.wait(30) == 0, program.stderr.read()
right(
    "Each task of omniloop's loop by its name, in the tree who waits for whom, and in a dump of the sampling profiler."
)
