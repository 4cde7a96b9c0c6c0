# /// script
# requires-python = "==3.14.*"
# dependencies = []
# ///
"""
`concurrent.futures.InterpreterPoolExecutor`: its futures awaited on the loop, closures, and `run` inside of an interpreter.

Differs: There are no daemon threads in such an interpreter, so there omniloop refuses its first use and says so: call it in the main interpreter. Closures are `NotShareableError`.
"""

import asyncio
from concurrent.futures import InterpreterPoolExecutor

import omniloop
from ending import right


def square(number):
    return number**2


def use_it_there():
    import asyncio

    import omniloop

    try:
        return omniloop.run(asyncio.sleep(0, "ran"), timeout=10)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    with InterpreterPoolExecutor(max_workers=2) as pool:

        async def all_of_them():
            return await asyncio.gather(*(asyncio.wrap_future(pool.submit(square, number)) for number in range(10)))

        assert omniloop.run(all_of_them(), timeout=60) == [number**2 for number in range(10)]
        said = pool.submit(use_it_there).result(timeout=60)
        assert said.startswith("CannotStartError: "), said
    right(
        "Ten calls awaited on the loop; inside an interpreter `run` is refused with `CannotStartError`, and nothing hangs."
    )


if __name__ == "__main__":
    main()
