# /// script
# requires-python = "==3.14.*"
# dependencies = ["websockets==17.4"]
# ///
"""
A server of websockets' on omniloop's loop; clients by `enter(connect(…))` in the main thread and its sync client; messages by `iterate`.

Differs: `serve()` wants the running loop where it is called: call it in an async context manager of your own, and give that to `enter`. `connect()` does not.
"""

import contextlib

import websockets.sync.client
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

import omniloop
from ending import right


async def echo(connection):
    async for message in connection:
        await connection.send(message * 2)


@contextlib.asynccontextmanager
async def serving():
    async with serve(echo, "127.0.0.1", 0) as server:
        yield server


async def three(connection):
    async for message in connection:
        yield message
        if message == "cc":
            return


with omniloop.enter(serving()) as server:
    address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with omniloop.enter(connect(address)) as connection:
        for letter in "abc":
            omniloop.run(connection.send(letter), timeout=20)
        assert list(omniloop.iterate(three(connection))) == ["aa", "bb", "cc"]
    with websockets.sync.client.connect(address) as connection:
        connection.send("z")
        assert connection.recv(timeout=20) == "zz"
right("A server and its clients, async and sync, side by side; each `with` closes what it opened.")
