# /// script
# requires-python = "==3.14.*"
# dependencies = ["freezegun==1.5.5"]
# ///
"""
`freeze_time`, still and with `tick`, around `go`, `run(timeout=)`, `call_later` and `every`.

Differs: What compares `time.monotonic()` itself stands still; the loop's clock is `loop.time()`, which freezegun leaves alone only with `real_asyncio=True`: pass that.
"""

import asyncio
import threading
from datetime import date

import freezegun

import omniloop
from ending import right


async def today():
    await asyncio.sleep(0.02)
    return date.today().isoformat()


async def never():
    await asyncio.sleep(3600)


with freezegun.freeze_time("2012-01-14", real_asyncio=True):
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
    "The date is the frozen one on the loop's thread too, and timeouts, `call_later` and `every` go by real time (`real_asyncio=True`)."
)
