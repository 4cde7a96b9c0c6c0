# /// script
# requires-python = "==3.14.*"
# dependencies = ["pyzmq==27.3.0"]
# ///
"""
`zmq.asyncio` on omniloop's loop: a REP server, REQ clients in `run` from ten threads, PUB and SUB by `iterate`; a plain `zmq` socket of a thread beside it.

Differs: A `zmq.asyncio` socket belongs to the loop where it is first used: use it in coroutines on omniloop's loop only. ZeroMQ's context can't be used in a forked child; make a new one there.
"""

from concurrent.futures import ThreadPoolExecutor

import zmq
import zmq.asyncio

import omniloop
from ending import right

context = zmq.asyncio.Context()


async def bind(kind):
    socket = context.socket(kind)
    return socket, socket.bind_to_random_port("tcp://127.0.0.1")


async def serve(socket):
    while True:
        await socket.send(await socket.recv() * 2)


async def ask(number):
    with context.socket(zmq.REQ) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        await socket.send(b"%d " % number)
        return await socket.recv()


async def heard():
    with context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{news_port}")
        while True:
            yield await socket.recv()


async def publish():
    import asyncio

    number = 0
    while True:
        await news.send(b"%d" % number)
        number += 1
        await asyncio.sleep(0.01)


server, port = omniloop.run(bind(zmq.REP), timeout=20)
serving = omniloop.go(serve(server), daemon=True)
with ThreadPoolExecutor(10) as threads:
    answers = list(threads.map(lambda number: omniloop.run(ask(number), timeout=20), range(50)))
assert answers == [b"%d %d " % (number, number) for number in range(50)]
with zmq.Context() as plain, plain.socket(zmq.REQ) as socket:
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(b"plain ")
    assert socket.recv() == b"plain plain "
news, news_port = omniloop.run(bind(zmq.PUB), timeout=20)
publishing = omniloop.go(publish(), daemon=True)
received = []
for message in omniloop.iterate(heard()):
    received.append(int(message))
    if len(received) == 5:
        break
assert received == list(range(received[0], received[0] + 5))
for handle in (serving, publishing):
    handle.cancel()
    omniloop.run(handle.wait(20))
omniloop.call_soon(context.destroy).result(timeout=20)
right("Fifty requests of ten threads, a plain socket to the same server, and a subscription that is left by `break`.")
