# /// script
# requires-python = "==3.14.*"
# dependencies = ["nest-asyncio2==1.7.4"]
# ///
"""
`nest_asyncio2.apply()` in the main thread, then `run` and `await go(…)` inside of a running loop, and a nested `asyncio.run` there.

Differs: It patches the classes of asyncio for the whole process, omniloop's loop among them. With `run` it is not needed: see [nest_asyncio](../how-to/migrating.md#nest_asyncio).
"""

import asyncio

import nest_asyncio2

import omniloop
from ending import right

nest_asyncio2.apply()


async def double(number):
    await asyncio.sleep(0.01)
    assert asyncio.current_task() is not None
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
    return number * 2


async def main():
    assert omniloop.run(double(4), timeout=20) == 8
    assert await omniloop.go(double(5)) == 10
    assert asyncio.run(double(6)) == 12
    assert omniloop.run(double(7), timeout=20) == 14


asyncio.run(main())
right(
    "`run`, `await go(…)` and a nested `asyncio.run` side by side; `asyncio.timeout` and `current_task()` are right on omniloop's loop."
)
