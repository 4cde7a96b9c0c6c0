# /// script
# requires-python = "==3.14.*"
# dependencies = ["grpcio==1.85.3"]
# ///
"""
`grpc.aio`: a server and a channel on omniloop's loop, a hundred calls at once, a stream by `iterate`; the sync channel beside it.

Differs: A channel belongs to the loop that it was made on: make it in a coroutine, as `run(connect())` does here.
"""

import asyncio

import grpc
import grpc.aio

import omniloop
from ending import right


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/test/Double":
            return grpc.unary_unary_rpc_method_handler(double)
        return grpc.unary_stream_rpc_method_handler(several)


async def double(request, context):
    await asyncio.sleep(0.01)
    return request * 2


async def several(request, context):
    for number in range(5):
        yield b"%s %d" % (request, number)


async def serve():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def connect():
    return grpc.aio.insecure_channel(address)


async def ask(channel, number):
    return await channel.unary_unary("/test/Double")(b"%d " % number)


async def stream(channel):
    async for message in channel.unary_stream("/test/Several")(b"message"):
        yield message


server, address = omniloop.run(serve(), timeout=20)
with omniloop.enter(omniloop.run(connect(), timeout=20)) as channel:
    with omniloop.TaskGroup() as group:
        handles = [group.go(ask(channel, number)) for number in range(100)]
    assert [handle.result() for handle in handles] == [b"%d %d " % (number, number) for number in range(100)]
    assert list(omniloop.iterate(stream(channel))) == [b"message %d" % number for number in range(5)]
with grpc.insecure_channel(address) as channel:
    assert channel.unary_unary("/test/Double")(b"sync ", timeout=20) == b"sync sync "
omniloop.run(server.stop(1), timeout=20)
right(
    "A hundred calls at once over a channel in `enter`, a stream in a `for` loop, and gRPC's own sync channel to the same server."
)
