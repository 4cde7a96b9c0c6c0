# /// script
# requires-python = "==3.14.*"
# dependencies = ["multiprocess==0.70.19", "dill==0.4.1"]
# ///
"""
`multiprocess` (multiprocessing with dill) with closures and lambdas: pools by `fork` and `spawn` whose functions call `run`, from a parent whose loop has pending work; work that a child of it forgets.
"""

import asyncio
import warnings
from pathlib import Path

import multiprocess

import omniloop
from ending import right


def main():
    warnings.simplefilter("ignore", DeprecationWarning)
    factor = 7

    def times(number):
        import asyncio

        import omniloop

        async def multiply():
            await asyncio.sleep(0.01)
            return number * factor

        return omniloop.run(multiply(), timeout=30)

    def forgets():
        import asyncio

        import omniloop

        async def late():
            await asyncio.sleep(0.3)
            with open("late.txt", "a") as file:
                file.write("x")

        omniloop.go(late())

    pending = omniloop.go(asyncio.Event().wait())
    for method in ("fork", "spawn"):
        context = multiprocess.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(times, range(10)) == [factor * number for number in range(10)], method
            assert pool.apply(lambda number: number + 1, [4]) == 5
        process = context.Process(target=forgets)
        process.start()
        process.join(60)
        assert process.exitcode == 0, method
    assert Path("late.txt").read_text() == "xx"
    assert times(2) == 14
    assert pending.cancel()
    right(
        "Closures that call `run` in forked and in spawned processes; a process that ends does what it forgot before."
    )


if __name__ == "__main__":
    main()
