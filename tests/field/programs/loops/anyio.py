# /// script
# requires-python = "==3.14.*"
# dependencies = ["anyio==4.16.0", "asgiref==3.13.0"]
# ///
"""
anyio on omniloop's loop: task groups, cancel scopes, `to_thread`, and `from_thread.run` in its threads; a `BlockingPortal` of `start_blocking_portal` beside it that awaits `go`; asgiref's `async_to_sync` and `sync_to_async` around both.

Differs: A portal's future may be `done()` before its task has ended, and a task that swallows the cancellation still reads cancelled; a handle is done when its clean-up is.
"""

import asyncio

import anyio
import anyio.from_thread
import anyio.to_thread
from asgiref.sync import async_to_sync, sync_to_async

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def grouped():
    results = []

    async def one(number):
        results.append(await anyio.to_thread.run_sync(anyio.from_thread.run, double, number))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    return sorted(results)


async def given_up():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with anyio.move_on_after(0.05) as scope:
        await omniloop.go(waits())
    return scope.cancelled_caught, ended


async def awaits(number):
    return await omniloop.go(double(number))


assert omniloop.run(grouped(), timeout=60) == [2 * number for number in range(20)]
assert omniloop.run(given_up(), timeout=20) == (True, [True])
assert anyio.run(given_up) == (True, [True])
with anyio.from_thread.start_blocking_portal() as portal:
    futures = [portal.start_task_soon(awaits, number) for number in range(20)]
    assert [future.result(20) for future in futures] == [2 * number for number in range(20)]
assert async_to_sync(awaits)(21) == 42
assert omniloop.run(sync_to_async(async_to_sync(awaits), thread_sensitive=False)(4), timeout=20) == 8
assert omniloop.run(sync_to_async(omniloop.run, thread_sensitive=False)(double(5)), timeout=20) == 10
right(
    "Groups, scopes and threads of anyio on omniloop's loop; handles awaited in a portal and in `async_to_sync`; a scope that gives up a handle waits for its clean-up."
)
