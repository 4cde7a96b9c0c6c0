# /// script
# requires-python = "==3.14.*"
# dependencies = ["huey==3.5.4"]
# ///
"""
A `SqliteHuey` and its consumer in a process of its own: tasks that call `run` and `go`, thread workers, ended by SIGINT.

Differs: At SIGTERM thread workers drop the running task and the exit code is 0; SIGINT lets it end.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

Path("tasks.py").write_text(
    """\
import asyncio
import huey, omniloop
app = huey.SqliteHuey(filename="huey.db", fsync=True)
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2
async def late(number):
    await asyncio.sleep(0.5)
    with open("late.txt", "a") as file:
        file.write(f"{number}\\n")
@app.task()
def task(number):
    omniloop.go(late(number))
    return omniloop.run(double(number), timeout=20)
""",
    encoding="utf-8",
)
sys.path.insert(0, os.getcwd())
import tasks

from ending import right

results = [tasks.task(number) for number in range(20)]
consumer = subprocess.Popen(
    [sys.executable, "-m", "huey.bin.huey_consumer", "tasks.app", "-w", "4", "-k", "thread"],
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    stderr=subprocess.PIPE,
    text=True,
)
try:
    assert [result.get(blocking=True, timeout=60) for result in results] == [2 * number for number in range(20)]
finally:
    consumer.send_signal(signal.SIGINT)
    _, log = consumer.communicate(timeout=60)
assert consumer.returncode == 0, log
assert sorted(map(int, Path("late.txt").read_text().split())) == list(range(20)), log
right("Twenty tasks of four threads on one loop; what they forgot is done before the consumer exits.")
