# /// script
# requires-python = "==3.14.*"
# dependencies = ["trio==0.35.0"]
# ///
"""
trio's guest mode on omniloop's loop, and `await go(…)` in `trio.run` of the main thread.
"""

import asyncio

import trio

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def in_trio():
    # A handle is awaited in trio as it is.
    results = []

    async def one(number):
        results.append(await omniloop.go(double(number)))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, number)
    return sorted(results)


async def guest():
    done = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    trio.lowlevel.start_guest_run(
        in_trio,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=done.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    return (await done).unwrap()


assert trio.run(in_trio) == [number * 2 for number in range(10)]
assert omniloop.run(guest(), timeout=20) == [number * 2 for number in range(10)]
right("Ten handles awaited at once in `trio.run`, and in a trio that is a guest of omniloop's loop.")
