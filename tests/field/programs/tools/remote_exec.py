# /// script
# requires-python = "==3.14.*"
# dependencies = []
# ///
"""
`sys.remote_exec` and `python -m pdb -p` into a program whose main thread waits in `run`, in `result` and in `flush`.
"""

import subprocess
import sys
import time
from pathlib import Path

from ending import right

source = """
import asyncio, sys, omniloop
gate = asyncio.Event()
async def waits():
    await gate.wait()
    return 7
handle = omniloop.go(waits())
for name, wait in [("run", lambda: omniloop.run(waits())), ("result", lambda: handle.result()), ("flush", omniloop.flush)]:
    gate.clear()
    if name != "run":
        handle = omniloop.go(waits())
    print(name, flush=True)
    wait()
    print(name, "is over", flush=True)
"""
Path("inside.py").write_text(
    "import __main__, omniloop\nopen('told.txt', 'a').write('x')\nomniloop.call_soon(__main__.gate.set)\n",
    encoding="utf-8",
)
program = subprocess.Popen([sys.executable, "-c", source], stdout=-1, stderr=-1, text=True)
try:
    for name in ("run", "result"):
        assert program.stdout.readline() == f"{name}\n"
        time.sleep(1.5)
        sys.remote_exec(program.pid, str(Path("inside.py").resolve()))
        assert program.stdout.readline() == f"{name} is over\n"
    assert program.stdout.readline() == "flush\n"
    time.sleep(1.5)
    debugger = subprocess.run(
        [sys.executable, "-m", "pdb", "-p", str(program.pid)],
        input="import omniloop, __main__\nomniloop.call_soon(__main__.gate.set)\nwhere\ncontinue\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "flush" in debugger.stdout, debugger
    assert program.stdout.readline() == "flush is over\n"
    assert program.wait(30) == 0, program.stderr.read()
finally:
    program.kill()
assert Path("told.txt").read_text() == "xx"
right(
    "A script from outside runs within a second while the main thread waits in `run`, `result` or `flush`; pdb attaches there."
)
