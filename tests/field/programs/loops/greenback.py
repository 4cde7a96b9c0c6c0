# /// script
# requires-python = "==3.14.*"
# dependencies = ["greenback==1.3.0", "greenlet==3.5.6"]
# ///
"""
`greenback.await_` in plain functions: with a portal in a task of omniloop's, in one of `asyncio.run`, and around a handle of `go`.
"""

import asyncio

import greenback

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


def plain(number):
    """Not async, and called on a loop's thread."""
    return greenback.await_(double(number)) + greenback.await_(omniloop.go(double(number)))


async def with_portal(number):
    await greenback.ensure_portal()
    return plain(number)


async def without():
    try:
        plain(1)
    except RuntimeError as error:
        return "portal" in str(error)


async def at_once():
    return await asyncio.gather(*(with_portal(number) for number in range(10)))


with omniloop.TaskGroup() as group:
    handles = [group.go(with_portal(number)) for number in range(20)]
assert [handle.result() for handle in handles] == [4 * number for number in range(20)]
assert omniloop.run(without(), timeout=20)
assert asyncio.run(with_portal(5)) == 20
assert omniloop.run(at_once(), timeout=20) == [4 * number for number in range(10)]
right(
    "Plain functions that wait for coroutines and for handles, on omniloop's loop from a task's first step on, and on another."
)
