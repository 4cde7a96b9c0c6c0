# /// script
# requires-python = "==3.14.*"
# dependencies = ["time-machine==3.6.0"]
# ///
"""
`time_machine.travel`, with `tick=False` and `True`, around `go`, `run(timeout=)`, `call_later` and `every`.
"""

import asyncio
import threading
from datetime import UTC, date, datetime

import time_machine

import omniloop
from ending import right


async def today():
    await asyncio.sleep(0.02)
    return date.today().isoformat()


async def never():
    await asyncio.sleep(3600)


for tick in (False, True):
    with time_machine.travel(datetime(2012, 1, 14, tzinfo=UTC), tick=tick):
        assert omniloop.run(today(), timeout=20) == "2012-01-14"
        try:
            omniloop.run(never(), timeout=0.2)
        except TimeoutError:
            pass
        else:
            raise AssertionError("no timeout")
        called = threading.Event()
        omniloop.call_later(0.02, called.set)
        assert called.wait(20)
        turns = threading.Semaphore(0)
        repeated = omniloop.every(0.02, turns.release)
        assert all(turns.acquire(timeout=20) for _ in range(3))
        repeated.cancel()
right(
    "The date is the travelled one on the loop's thread too; timeouts, `call_later` and `every` go by real time, with `tick` or without."
)
