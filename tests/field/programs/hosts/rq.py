# /// script
# requires-python = "==3.14.*"
# dependencies = ["rq==3.0.0", "redis==8.1.0"]
#
# [tool.field]
# commands = ["redis-server"]
# ///
"""
A server of redis, a `Worker` and a `SimpleWorker` in burst mode: jobs that call `run` and forget `go`.

Differs: `Worker` forks for each job and leaves the child by `os._exit`: forgotten work there is lost unless the job, or a wrapper of it, ends with `flush()`.
"""

import os
import sys
from pathlib import Path

Path("jobs.py").write_text(
    """\
import asyncio
import omniloop
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2
async def late(number):
    await asyncio.sleep(0.3)
    with open("late.txt", "a") as file:
        file.write(f"{number}\\n")
def job(number):
    omniloop.go(late(number))
    number = omniloop.run(double(number), timeout=20)
    omniloop.flush(timeout=20)
    return number
def forgets(number):
    omniloop.go(late(number))
""",
    encoding="utf-8",
)
sys.path.insert(0, os.getcwd())
import jobs
import redis
import rq

import omniloop
from ending import right
from local_servers import redis_server

omniloop.run(jobs.double(1), timeout=20)
with redis_server() as port:
    connection = redis.Redis(host="127.0.0.1", port=port)
    for kind in (rq.Worker, rq.SimpleWorker):
        queue = rq.Queue("field", connection=connection)
        handed = [queue.enqueue(jobs.job, number) for number in range(3)]
        kind([queue], connection=connection).work(burst=True, logging_level="ERROR")
        assert [job.latest_result(timeout=1).return_value for job in handed] == [0, 2, 4], kind
    rq.Queue("field", connection=connection).enqueue(jobs.forgets, 99)
    rq.Worker(["field"], connection=connection).work(burst=True, logging_level="ERROR")
assert sorted(map(int, Path("late.txt").read_text().split())) == [0, 0, 1, 1, 2, 2]
right("Jobs in forked children, whose parent had used the loop, and in the worker's own process.")
