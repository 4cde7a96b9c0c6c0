# /// script
# requires-python = "==3.14.*"
# dependencies = ["aiohttp==3.14.5"]
# ///
"""
An aiohttp server on omniloop's loop; one `ClientSession` by `resource`, used from ten threads; a response read line by line by `iterate`.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp import web

import omniloop
from ending import right


async def double(request):
    return web.json_response(2 * int(request.query["number"]))


async def lines(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(5):
        await response.write(b"line %d\n" % number)
    return response


async def serve():
    app = web.Application()
    app.add_routes([web.get("/double", double), web.get("/lines", lines)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


runner, address = omniloop.run(serve(), timeout=20)


@omniloop.resource
@contextlib.asynccontextmanager
async def session():
    async with aiohttp.ClientSession(address) as opened:
        yield opened


async def ask(opened, number):
    async with opened.get("/double", params={"number": number}) as response:
        return await response.json()


async def read():
    async with aiohttp.ClientSession(address) as opened, opened.get("/lines") as response:
        async for line in response.content:
            yield line


def from_a_thread(number):
    return session.run(lambda opened: ask(opened, number), timeout=20)


with ThreadPoolExecutor(10) as threads:
    assert list(threads.map(from_a_thread, range(100))) == [2 * number for number in range(100)]
assert list(omniloop.iterate(read())) == [b"line %d\n" % number for number in range(5)]
omniloop.run(runner.cleanup(), timeout=20)
right(
    "A hundred requests of ten threads over one session, which is closed at exit; a streamed response in a `for` loop."
)
