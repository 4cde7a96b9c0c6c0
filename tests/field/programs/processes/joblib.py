# /// script
# requires-python = "==3.14.*"
# dependencies = ["joblib==1.6.0"]
# ///
"""
`joblib.Parallel` with `loky`, `threading` and `multiprocessing`, whose functions call `run`; `Parallel` itself in `to_thread`; with the loop in use before.
"""

import asyncio

import joblib

import omniloop
from ending import right


def square_there(number):
    async def square():
        await asyncio.sleep(0.01)
        return number**2

    return omniloop.run(square(), timeout=30)


def in_parallel(backend):
    return joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(square_there)(number) for number in range(10))


def main():
    assert omniloop.run(asyncio.sleep(0, True), timeout=20)
    for backend in ("loky", "threading", "multiprocessing"):
        assert in_parallel(backend) == [number**2 for number in range(10)], backend
    assert omniloop.to_thread(in_parallel, "threading").result(timeout=60) == [number**2 for number in range(10)]
    right("Ten calls of `run` in each backend, and in a `Parallel` of a worker thread.")


if __name__ == "__main__":
    main()
