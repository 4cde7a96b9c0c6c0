"""
Very many at once, beside asyncio's own in the same run: waiters on one handle, and connections that are open together.

`python tests/benchmarks/many.py [WAITERS [CONNECTIONS]]`, by default 100,000 and 10,000; the limit of descriptors is raised for them.
Each line is the seconds that asyncio alone takes, those with omniloop, and how many times as long that is; the better of three rounds each.
"""

import asyncio
import contextlib
import resource
import subprocess
import sys
import time

import omniloop

SERVER = """
import asyncio, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def wait_for_it(shared):
    return await shared


async def asyncios_waiters(count):
    gate = asyncio.Event()
    shared = asyncio.create_task(gate.wait())
    waiters = [asyncio.create_task(wait_for_it(shared)) for _ in range(count)]
    await asyncio.sleep(0)
    gate.set()
    assert all(await asyncio.gather(*waiters))


def our_waiters(count):
    gate = asyncio.Event()
    shared = omniloop.go(gate.wait())
    waiters = [omniloop.go(wait_for_it(shared)) for _ in range(count)]
    omniloop.call_soon(gate.set)
    assert all(waiter.result() for waiter in waiters)


async def connect(port):
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(connection):
    reader, writer = connection
    writer.write(b"hello\n")
    return await reader.readline()


async def close(connection):
    connection[1].close()
    with contextlib.suppress(OSError):
        await connection[1].wait_closed()


async def asyncios_connections(port, count):
    few = asyncio.Semaphore(500)

    async def open_and_ask():
        async with few:
            connection = await connect(port)
        assert await ask(connection) == b"hello\n"
        return connection

    connections = await asyncio.gather(*(open_and_ask() for _ in range(count)))
    await asyncio.gather(*map(close, connections))


def our_connections(port, count):
    few = asyncio.Semaphore(500)

    @contextlib.asynccontextmanager
    async def connection():
        async with few:
            opened = await connect(port)
        try:
            yield opened
        finally:
            await close(opened)

    connections = [omniloop.resource(connection) for _ in range(count)]
    handles = [one.go(ask) for one in connections]
    assert all(handle.result() == b"hello\n" for handle in handles)
    omniloop.shutdown(60)


def seconds(do):
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def compare(what, theirs, ours):
    rounds = [(seconds(theirs), seconds(ours)) for _ in range(3)]
    their, our = (min(column) for column in zip(*rounds, strict=True))
    print(f"{what}: asyncio {their:.2f} s, omniloop {our:.2f} s, {our / their:.2f} times", flush=True)


def main(waiters=100_000, connections=10_000):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    compare(
        f"{waiters:,} waiters on one handle",
        lambda: asyncio.run(asyncios_waiters(waiters)),
        lambda: our_waiters(waiters),
    )
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        compare(
            f"{connections:,} connections, opened, asked and closed",
            lambda: asyncio.run(asyncios_connections(port, connections)),
            lambda: our_connections(port, connections),
        )
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
