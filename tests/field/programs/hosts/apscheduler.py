# /// script
# requires-python = "==3.14.*"
# dependencies = ["apscheduler==3.11.3"]
# ///
"""
`BackgroundScheduler` whose jobs call `go` and `run`, and an `AsyncIOScheduler` on omniloop's loop whose jobs are coroutines.

Differs: `AsyncIOScheduler` takes the loop that runs where it is started: start it in a coroutine, by `run`.
"""

import asyncio
import threading

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

import omniloop
from ending import right

ran = threading.Semaphore(0)


async def job():
    await asyncio.sleep(0.01)
    ran.release()


def sync_job():
    omniloop.run(job(), timeout=20)


scheduler = BackgroundScheduler()
scheduler.add_job(omniloop.background(job), "interval", seconds=0.1)
scheduler.add_job(sync_job, "interval", seconds=0.1)
scheduler.start()
assert all(ran.acquire(timeout=20) for _ in range(10))
scheduler.shutdown()
ran = threading.Semaphore(0)


async def start():
    scheduler = AsyncIOScheduler()
    scheduler.add_job(job, "interval", seconds=0.1)
    scheduler.start()
    return scheduler


async def stop(scheduler):
    scheduler.shutdown()


scheduler = omniloop.run(start(), timeout=20)
assert all(ran.acquire(timeout=20) for _ in range(5))
omniloop.run(stop(scheduler), timeout=20)
right("Jobs that call `go` and `run` in the scheduler's threads, and coroutine jobs on omniloop's loop.")
