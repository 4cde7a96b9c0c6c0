# /// script
# requires-python = "==3.14.*"
# dependencies = ["httpx2==2.16.2", "uvicorn==0.54.0", "starlette==1.10.0"]
# ///
"""
`httpx2.AsyncClient` by `enter`, against uvicorn in a thread: a hundred requests at once, a stream by `iterate`, a timeout of its own.
"""

import asyncio
import threading
import time

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import omniloop
from ending import right


async def hello(request):
    return PlainTextResponse("hello")


async def slow(request):
    await asyncio.sleep(1)
    return PlainTextResponse("late")


async def lines(request):
    async def body():
        for number in range(5):
            yield f"line {number}\n"

    return StreamingResponse(body())


app = Starlette(routes=[Route("/", hello), Route("/slow", slow), Route("/lines", lines)])
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.01)
address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


async def read(client):
    async with client.stream("GET", "/lines") as response:
        async for line in response.aiter_lines():
            yield line


with omniloop.enter(httpx2.AsyncClient(base_url=address)) as client:
    with omniloop.TaskGroup() as group:
        handles = [group.go(client.get("/")) for _ in range(100)]
    assert {handle.result().text for handle in handles} == {"hello"}
    assert list(omniloop.iterate(read(client))) == [f"line {number}" for number in range(5)]
    try:
        omniloop.run(client.get("/slow", timeout=0.3), timeout=20)
    except httpx2.ReadTimeout:
        pass
    else:
        raise AssertionError("no timeout")
server.should_exit = True
thread.join(30)
right(
    "A hundred requests over one client made in sync code, a streamed response in a `for` loop, its timeouts as on any loop."
)
