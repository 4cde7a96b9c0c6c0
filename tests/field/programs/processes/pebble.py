# /// script
# requires-python = "==3.14.*"
# dependencies = ["pebble==5.2.3"]
# ///
"""
`pebble.ProcessPool` with a timeout, its futures awaited on the loop; `run` in its processes; `ThreadPool` likewise.

Differs: After `stop()` and `join()` a future may stay pending for ever: bound the wait by `timeout=` where you call `stop()`.
"""

import asyncio

import pebble

import omniloop
from ending import right


def square_there(number):
    async def square():
        await asyncio.sleep(0.01)
        return number**2

    return omniloop.run(square(), timeout=30)


def never():
    omniloop.run(asyncio.sleep(3600))


def main():
    assert omniloop.run(asyncio.sleep(0, True), timeout=20)

    async def all_of(pool):
        return await asyncio.gather(
            *(asyncio.wrap_future(pool.schedule(square_there, args=[number])) for number in range(10))
        )

    async def too_long(pool):
        try:
            await asyncio.wrap_future(pool.schedule(never, timeout=1))
        except TimeoutError:
            return True

    with pebble.ProcessPool(max_workers=2) as pool:
        assert omniloop.run(all_of(pool), timeout=60) == [number**2 for number in range(10)]
        assert omniloop.run(too_long(pool), timeout=60)
    with pebble.ThreadPool(max_workers=2) as pool:
        assert omniloop.run(all_of(pool), timeout=60) == [number**2 for number in range(10)]
    right("Ten calls in each pool; a call that hangs in `run` is ended by pebble's timeout, and the pool goes on.")


if __name__ == "__main__":
    main()
