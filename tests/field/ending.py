"""The last line of each program of this folder."""

import asyncio

import omniloop


def right(line: str) -> None:
    """Leave work behind that says so: the line comes only if the drain at exit works here as well."""

    async def say() -> None:
        await asyncio.sleep(0.05)
        print(f"right: {line}", flush=True)

    omniloop.go(say())
