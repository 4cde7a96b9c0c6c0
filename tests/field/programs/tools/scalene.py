# /// script
# requires-python = "==3.14.*"
# dependencies = ["scalene==2.4.0"]
# ///
"""
`scalene run --cpu-only` over a program that keeps the loop busy, calls `run` and `to_thread`, and forgets work.
"""

import json
import subprocess
import sys
from pathlib import Path

from ending import right

Path("program.py").write_text(
    """\
import asyncio, time, omniloop
async def busy_on_the_loop():
    until = time.perf_counter() + 2
    number = 0
    while time.perf_counter() < until:
        number += 1
    return number
async def late():
    await asyncio.sleep(0.3)
    with open("late.txt", "w") as file:
        file.write("done")
assert omniloop.run(busy_on_the_loop()) > 0
assert omniloop.to_thread(int, 5).result() == 5
omniloop.go(late())
""",
    encoding="utf-8",
)
ran = subprocess.run(
    [sys.executable, "-m", "scalene", "run", "--cpu-only", "-o", "profile.json", "program.py"],
    capture_output=True,
    text=True,
    timeout=100,
)
assert ran.returncode == 0, ran
assert Path("late.txt").read_text() == "done", ran
profile = json.loads(Path("profile.json").read_text())
lines = next(file["lines"] for name, file in profile["files"].items() if name.endswith("program.py"))
busy = {line["lineno"]: line["n_cpu_percent_python"] + line["n_cpu_percent_c"] for line in lines}
assert max(busy[5], busy[6]) > 5, busy
right("The lines that keep the loop busy, though the main thread only waits; forgotten work is done at the end.")
