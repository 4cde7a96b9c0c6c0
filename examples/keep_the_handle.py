"""Keep the handle: poll it, wait for it with a timeout, cancel it, ask it for its error."""

import asyncio
from concurrent.futures import CancelledError

from omniloop import go


async def work(gate: asyncio.Event) -> str:
    await gate.wait()
    return "the result"


async def fail() -> None:
    raise ValueError("no such account")


async def open_gate(gate: asyncio.Event) -> None:
    gate.set()


def main() -> None:
    gate = asyncio.Event()
    task = go(work(gate), name="patient")
    print("done?", task.done())
    try:
        task.result(timeout=0.05)
    except TimeoutError as error:
        # Waiting less long never cancels the work.
        print("not yet:", error)
    go(open_gate(gate))
    print("result:", task.result(timeout=5))

    failed = go(fail())
    print("error:", failed.exception(timeout=5))

    endless = go(work(asyncio.Event()))
    print("asked to end:", endless.cancel())
    try:
        endless.result(timeout=5)
    except CancelledError:
        print("cancelled:", endless.cancelled())


if __name__ == "__main__":
    main()
