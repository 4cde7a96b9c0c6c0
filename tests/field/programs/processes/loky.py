# /// script
# requires-python = "==3.14.*"
# dependencies = ["loky==3.7.0"]
# ///
"""
`loky.get_reusable_executor()` beside the loop: `await` of its futures by `asyncio.wrap_future`, and `run` inside of its processes.

Differs: One process that dies takes every future of the executor with it; `ProcessPool` fails only the call that was in it.
"""

import asyncio
import os

import loky

import omniloop
from ending import right


def square_there(number):
    # A loop of its own in each process, whatever the parent had.
    async def square():
        await asyncio.sleep(0.01)
        return number**2, os.getpid()

    return omniloop.run(square(), timeout=30)


def main():
    assert omniloop.run(asyncio.sleep(0, True), timeout=20)
    executor = loky.get_reusable_executor(max_workers=2)

    async def all_of_them():
        return await asyncio.gather(
            *(asyncio.wrap_future(executor.submit(square_there, number)) for number in range(10))
        )

    results = omniloop.run(all_of_them(), timeout=60)
    assert [value for value, _ in results] == [number**2 for number in range(10)]
    assert os.getpid() not in {process for _, process in results}
    executor.shutdown()
    right("Ten calls awaited on the loop, each with `run` in a process of loky's.")


if __name__ == "__main__":
    main()
