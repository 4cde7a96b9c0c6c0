# /// script
# requires-python = "==3.14.*"
# dependencies = ["celery[redis]==5.7.0"]
#
# [tool.field]
# commands = ["redis-server"]
# ///
"""
A server of redis and Celery's workers by `prefork`, `threads` and `solo`: tasks that call `run` and forget `go`, ended by SIGTERM.

Differs: A prefork child runs no exit hooks, so what a task forgot is lost when the worker stops, unless the app says `worker_process_shutdown.connect(lambda **_: omniloop.shutdown(), weak=False)`, as here.
"""

import signal
import subprocess
import sys
from pathlib import Path

from ending import right
from local_servers import redis_server

Path("jobs.py").write_text(
    """\
import asyncio, os
import celery
from celery.signals import worker_process_shutdown
import omniloop
app = celery.Celery("jobs", broker=os.environ["FIELD"], backend=os.environ["FIELD"])
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)
worker_process_shutdown.connect(lambda **_: omniloop.shutdown(), weak=False)
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2
async def late(number):
    await asyncio.sleep(1)
    with open("late.txt", "a") as file:
        file.write(f"{number}\\n")
@app.task
def job(number):
    omniloop.go(late(number))
    return omniloop.run(double(number), timeout=20)
""",
    encoding="utf-8",
)
sys.path.insert(0, ".")
import os

with redis_server() as port:
    os.environ["FIELD"] = f"redis://127.0.0.1:{port}/0"
    import jobs

    for pool in ("prefork", "threads", "solo"):
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "jobs", "worker", "-P", pool, "-c", "2", "-l", "ERROR"],
            env={**os.environ, "PYTHONPATH": os.getcwd(), "C_FORCE_ROOT": "1"},
            stdout=-3,
            stderr=-3,
        )
        try:
            handed = [jobs.job.delay(number) for number in range(4)]
            assert [result.get(timeout=60) for result in handed] == [0, 2, 4, 6], pool
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0, pool
        finally:
            worker.kill()
        assert sorted(Path("late.txt").read_text().split()) == ["0", "1", "2", "3"], pool
        Path("late.txt").unlink()
right("Twelve tasks in three kinds of pool; what they forgot is done before the worker exits.")
