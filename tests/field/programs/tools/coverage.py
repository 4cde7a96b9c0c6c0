# /// script
# requires-python = "==3.14.*"
# dependencies = ["coverage==7.17.5"]
# ///
"""
`coverage run` with each of its three cores (`ctrace`, `pytrace`, `sysmon`) over a program that forgets work: which lines are seen.

Differs: `coverage run` stops looking when the script's last line has run: lines that forgotten work runs at exit are not seen, as those of a thread that is joined then are not. End the script with `flush()` where they count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from ending import right

program = """\
import asyncio
import omniloop
async def work():
    await asyncio.sleep(0.05)
    print("worked")
    return 1
omniloop.go(work())
omniloop.to_thread(print, "in a thread")
"""


def missing(core, source):
    Path("program.py").write_text(source, encoding="utf-8")
    surroundings = {**os.environ, "COVERAGE_CORE": core, "COVERAGE_FILE": f".coverage-{core}"}
    ran = subprocess.run(
        [sys.executable, "-m", "coverage", "run", "--include=program.py", "program.py"],
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (sorted(ran.stdout.splitlines()), ran.stderr, ran.returncode) == (["in a thread", "worked"], "", 0), (
        core,
        ran,
    )
    subprocess.run(
        [sys.executable, "-m", "coverage", "json", "-q", "-o", "report.json"], env=surroundings, check=True, timeout=60
    )
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))["files"]["program.py"]
    return report["missing_lines"]


for core in ("ctrace", "pytrace", "sysmon"):
    assert missing(core, program + "omniloop.flush()\n") == [], core
    assert missing(core, program) == [5, 6], core
right(
    "The work is done with each core, and every line of it is seen that runs before the script's last one has: on the loop's thread and in worker threads."
)
