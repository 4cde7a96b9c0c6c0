# /// script
# requires-python = "==3.14.*"
# dependencies = ["blockbuster==1.5.29"]
#
# [tool.field]
# built = ["forbiddenfruit"]
# ///
"""
`blockbuster_ctx()` while `go`, `run`, `to_thread` and a call that blocks the loop run.
"""

import asyncio
import time

from blockbuster import BlockingError, blockbuster_ctx

import omniloop
from ending import right


async def blocks():
    time.sleep(0.01)


async def does_not():
    await omniloop.to_thread(time.sleep, 0.01)
    await asyncio.sleep(0.01)
    return await omniloop.go(asyncio.sleep(0, "fine"))


async def elsewhere():
    return await omniloop.go(does_not())


with blockbuster_ctx():
    for _ in range(20):
        assert omniloop.run(does_not(), timeout=20) == "fine"
    assert asyncio.run(elsewhere()) == "fine"
    try:
        omniloop.run(blocks(), timeout=20)
    except BlockingError as error:
        assert "time.sleep" in str(error)
    else:
        raise AssertionError("a blocking call on the loop was not seen")
right(
    "A `time.sleep` on omniloop's loop is refused as on any other; nothing that omniloop does on its loop or yours is."
)
