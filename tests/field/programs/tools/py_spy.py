# /// script
# requires-python = "==3.14.*"
# dependencies = ["py-spy==0.4.3"]
# ///
"""
`py-spy dump` of a running program, from outside.

Differs: It shows threads, not tasks: a suspended task is on no stack. For those, `python -m omniloop` (see [what is my loop doing?](../how-to/what-is-my-loop-doing.md)).
"""

import json
import subprocess
import sys

from ending import right

source = """
import sys, threading, omniloop
blocked = threading.Event()
async def blocks_the_loop():
    print("ready", flush=True)
    blocked.wait(60)
omniloop.go(blocks_the_loop())
sys.stdin.read()
blocked.set()
"""
program = subprocess.Popen([sys.executable, "-c", source], stdin=-1, stdout=-1, stderr=-1, text=True)
try:
    assert program.stdout.readline() == "ready\n"
    dumped = subprocess.run(
        ["py-spy", "dump", "--json", "--nonblocking", "--pid", str(program.pid)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert dumped.returncode == 0, dumped
    threads = {
        thread["thread_name"]: [frame["name"] for frame in thread["frames"]] for thread in json.loads(dumped.stdout)
    }
    at = [name for name, frames in threads.items() if "blocks_the_loop" in frames]
    assert len(at) == 1, threads
finally:
    program.stdin.close()
    assert program.wait(30) == 0, program.stderr.read()
right(f"The loop's thread by its name, `{at[0]}`, and in it the coroutine that blocks.")
