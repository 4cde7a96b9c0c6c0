"""As `calls`, on Procrastinate without Django."""

import asyncio
import os
import sys

from procrastinate import App, PsycopgConnector

from omniloop import background, current_delivery
from omniloop.ext.procrastinate import Procrastinate

BOOK = os.open(os.environ["BOOK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

jobs = Procrastinate(
    lambda: App(
        connector=PsycopgConnector(conninfo=os.environ["BROKER_URL"]),
        worker_defaults={"update_heartbeat_interval": 0.5, "fetch_job_polling_interval": 0.5, "concurrency": 100},
    ),
    stalled_after=3,
)


def note(*words: object) -> None:
    os.write(BOOK, (" ".join(map(str, words)) + "\n").encode())


@background(broker=jobs, name="work")
async def work(number: int, seconds: float = 0) -> None:
    attempt = current_delivery().attempt
    note("started", number, attempt)
    await asyncio.sleep(seconds if attempt == 1 else 0)
    note("ended", number, attempt)


def call(number: int, seconds: float = 0):
    sent = work(number, seconds)
    note("returned", number)
    sent.accepted.add_done_callback(lambda task: task.cancelled() or note("accepted", number))
    return sent


def main() -> None:
    for at in range(int(sys.argv[1])):
        call(at, float(sys.argv[2]))


app = jobs.app
