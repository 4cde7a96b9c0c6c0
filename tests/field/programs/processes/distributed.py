# /// script
# requires-python = "==3.14.*"
# dependencies = ["distributed==2026.8.0"]
# ///
"""
A `LocalCluster` with threads and one `Client`; `run` in its tasks, its futures awaited on omniloop's loop, `get_executor(pure=False)`.

Differs: `Client.get_executor()` is pure by default: equal calls run once, and cancelling one cancels all of them. Pass `pure=False` where calls have effects.
"""

import asyncio

import distributed

import omniloop
from ending import right


def square_there(number):
    async def square():
        await asyncio.sleep(0.01)
        return number**2

    return omniloop.run(square(), timeout=30)


def main():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert client.gather(client.map(square_there, range(10))) == [number**2 for number in range(10)]
        executor = client.get_executor(pure=False)

        async def all_of_them():
            return await asyncio.gather(*(asyncio.wrap_future(executor.submit(square_there, 3)) for _ in range(10)))

        assert omniloop.run(all_of_them(), timeout=60) == [9] * 10
    right("Twenty tasks that call `run` on the cluster's threads, ten of them awaited on omniloop's loop.")


if __name__ == "__main__":
    main()
