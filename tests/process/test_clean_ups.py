"""The clean-up of async generators that were left before their end is waited for, and not cancelled: at the end, and by `flush`."""

import asyncio
import gc
import os
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, blocking, flush, go, iterate, run, shutdown


@pytest.mark.promise(
    "The clean-up of an async generator that was left before its end is waited for, and not cut off", section="At exit"
)
@pytest.mark.parametrize(
    "mode",
    [
        "go",
        "shutdown",
        "flush",
        "run",
        "daemon",
        "timeout",
        "fails",
        "iterate",
        "twin",
        "left",
        "collected",
        "resource",
    ],
)
def test_the_clean_up_of_an_async_generator_is_waited_for(mode):
    """The loop closes it in a task of its own, which was cancelled first of all: in 104 of 105 runs."""

    def program():
        async def rows():
            try:
                for number in range(10):
                    yield number
            finally:
                # A cursor, say: closing it talks to the server.
                try:
                    await asyncio.sleep(0.1)
                except asyncio.CancelledError:
                    print("cut off")
                    raise
                print("closed")

        async def first():
            async for _ in rows():
                break

        async def waits():
            async for _ in rows():
                await asyncio.Event().wait()

        async def fails():
            async for _ in rows():
                raise LookupError

        async def through():
            async for row in rows():
                yield row

        async def in_a_circle():
            generator = rows()
            await anext(generator)
            circle = [generator]
            circle.append(circle)

        async def collects():
            await asyncio.sleep(0.2)
            gc.collect()

        class Table:
            async def rows(self):
                async for row in rows():
                    yield row

        class Client:
            async def aclose(self):
                async for _ in rows():
                    break

        omniloop.configure(on_error=lambda failure: None)
        match mode:
            case "go":
                go(first())
            case "shutdown":
                go(first())
                shutdown()
            case "flush":
                go(first())
                flush()
                os.write(1, b"flushed\n")
            case "run":
                run(first())
            case "daemon":
                go(waits(), daemon=True)
                run(asyncio.sleep(0.05))
            case "timeout":
                # Not so soon that a busy machine would not have started it.
                go(waits(), timeout=0.5)
            case "fails":
                go(fails())
            case "iterate":
                for _ in iterate(through()):
                    break
            case "twin":
                for _ in blocking(Table)().rows():
                    break
            case "left":

                async def main():
                    asyncio.create_task(first())

                run(main())
            case "collected":
                gc.disable()
                run(in_a_circle())
                go(collects())
            case _:
                omniloop.resource(Client).run(lambda client: asyncio.sleep(0))

    result = run_child(program)

    assert (result.stdout.replace("flushed\n", ""), result.stderr, result.code) == ("closed\n", "", 0)


@pytest.mark.promise("`flush()` waits for it, `cancel_timeout` at the most")
def test_flush_waits_for_the_clean_up_of_async_generators(runtime):
    closed = threading.Event()

    async def rows():
        try:
            yield
        finally:
            await asyncio.sleep(0.05)
            closed.set()

    async def first():
        async for _ in rows():
            break

    runtime.go(first())
    runtime.flush(timeout=5)

    assert closed.is_set()


def test_a_clean_up_that_never_ends_holds_up_neither_flush_nor_the_end(caplog):
    async def rows():
        try:
            yield
        finally:
            await asyncio.Event().wait()

    async def first():
        async for _ in rows():
            break

    runtime = Runtime(name="stuck", cancel_timeout=0.1)
    runtime.run(first())
    start = time.monotonic()
    runtime.flush(timeout=5)
    runtime.shutdown()

    assert time.monotonic() - start < 3
