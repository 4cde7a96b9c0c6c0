# /// script
# requires-python = "==3.14.*"
# dependencies = ["uvloop==0.23.0"]
# ///
"""
`configure(loop_factory=uvloop.new_event_loop)`: order, a subprocess, a server and a client, `await go(…)` from another uvloop.

Differs: `asyncio.eager_task_factory` starts nothing eagerly on this loop, on 3.14 and 3.15; what `go` starts runs in its order all the same.
"""

import asyncio
import sys

import uvloop

import omniloop
from ending import right

omniloop.configure(loop_factory=uvloop.new_event_loop)
started = []


async def start(number):
    started.append(number)
    await asyncio.sleep(0)
    return number


async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def server_and_client():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"over the wire\n")
        line = await reader.readline()
        writer.close()
        return line


async def child():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=-1)
    return (await process.communicate())[0]


async def elsewhere():
    assert type(asyncio.get_running_loop()) is uvloop.Loop
    return await asyncio.gather(*(omniloop.go(start(number)) for number in range(100)))


assert omniloop.run(server_and_client(), timeout=20) == b"over the wire\n"
assert omniloop.run(child(), timeout=20) == b"42\n"
assert uvloop.run(elsewhere()) == list(range(100))
assert started == list(range(100))
right(
    "A hundred tasks in the order of their submission, awaited from a uvloop of the main thread; a server, a client and a subprocess."
)
