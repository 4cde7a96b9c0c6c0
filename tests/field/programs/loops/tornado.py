# /// script
# requires-python = "==3.14.*"
# dependencies = ["tornado==6.6.1"]
# ///
"""
A tornado server on omniloop's loop, asked by tornado's client from another loop; a handler that awaits `go`.
"""

import asyncio

import tornado.httpclient
import tornado.web

import omniloop
from ending import right


async def answer():
    await asyncio.sleep(0.01)
    return "by go"


class Handler(tornado.web.RequestHandler):
    async def get(self):
        self.write(await omniloop.go(answer()))


async def serve():
    server = tornado.web.Application([("/", Handler)]).listen(0, "127.0.0.1")
    return server, next(iter(server._sockets.values())).getsockname()[1]


async def stop(server):
    server.stop()
    await server.close_all_connections()


async def ask(port):
    client = tornado.httpclient.AsyncHTTPClient()
    answers = await asyncio.gather(*(client.fetch(f"http://127.0.0.1:{port}/") for _ in range(20)))
    return {answer.body for answer in answers}


server, port = omniloop.run(serve(), timeout=20)
assert asyncio.run(ask(port)) == {b"by go"}
assert omniloop.run(ask(port), timeout=20) == {b"by go"}
omniloop.run(stop(server), timeout=20)
right("Twenty requests at once from a loop in the main thread, and twenty from omniloop's own.")
