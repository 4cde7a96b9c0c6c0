"""Await a handle on a loop of your own: the work runs on omniloop's, and your loop stays free."""

import asyncio
import threading

import aiohttp
from aiohttp import web

from omniloop import go


async def serve(ready: "asyncio.Queue[str]") -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"hello from {threading.current_thread().name}")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.put_nowait(f"http://localhost:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def address(ready: "asyncio.Queue[str]") -> str:
    return await ready.get()


async def main() -> None:
    # The server lives on omniloop's thread; this coroutine runs on a loop that asyncio.run has made in the main thread.
    ready: asyncio.Queue[str] = asyncio.Queue()
    server = go(serve(ready))
    url = await go(address(ready))

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        print(await response.text(), "- to", threading.current_thread().name)
    results = await asyncio.gather(go(asyncio.sleep(0.01, "first")), go(asyncio.sleep(0.01, "second")))
    ticker.cancel()
    print(results, "- and this loop went on meanwhile:", ticks > 10)

    # Cancelling the handle asks the server to end; awaiting it waits until its clean-up is done.
    server.cancel()
    try:
        await server
    except asyncio.CancelledError:
        print("the server has closed its sockets")


if __name__ == "__main__":
    asyncio.run(main())
