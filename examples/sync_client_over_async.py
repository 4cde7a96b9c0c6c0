"""
A sync library over an async client: many threads share one `aiohttp` session, which lives on the loop.

Run it: `python examples/sync_client_over_async.py`. The server is a real one, on this machine; it counts connections.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Self

import aiohttp
from aiohttp import web

from omniloop import enter, flush, resource

THREADS, CALLS = 20, 200


class Weather:
    """What the library shows: plain methods, to be called from any thread. No event loop, no session in sight."""

    def __init__(self, url: str) -> None:
        self._url = url
        # Opened by whoever comes first, one for all. Closed by `close`; else when nobody refers to the library any more and its last
        # call is done, or at the end of the program.
        self._session = resource(aiohttp.ClientSession)

    def degrees(self, town: str) -> int:
        """Ask, and wait for the answer."""

        async def ask(session: aiohttp.ClientSession) -> int:
            async with session.get(f"{self._url}/{town}") as answer:
                return int(await answer.text())

        return self._session.run(ask, timeout=10)

    def report(self, town: str, degrees: int) -> None:
        """Tell, and go on at once."""

        async def tell(session: aiohttp.ClientSession) -> None:
            async with session.post(f"{self._url}/{town}", data=str(degrees)) as answer:
                answer.raise_for_status()

        self._session.go(tell)

    def close(self) -> None:
        """Refuse further calls, wait for those that were accepted, reports too, and close the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Station:
    """The other end."""

    def __init__(self) -> None:
        self.connections: set[object] = set()
        self.towns: dict[str, int] = {}

    async def get(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        await asyncio.sleep(0.001)
        return web.Response(text=str(self.towns.get(request.match_info["town"], 15)))

    async def post(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        self.towns[request.match_info["town"]] = int(await request.text())
        return web.Response()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/{town}", self.get), web.post("/{town}", self.post)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0])
        finally:
            await runner.cleanup()


def main() -> None:
    station = Station()
    # The server, too, is used like something sync: `with` instead of `async with`.
    with enter(station.serve()) as url:
        with Weather(url) as weather:
            with ThreadPoolExecutor(THREADS) as pool:
                answers = list(pool.map(weather.degrees, ["Delft"] * CALLS))
            print(f"{CALLS} calls from {THREADS} threads, each answered {set(answers)}")
            print("connections no more than threads:", len(station.connections) <= THREADS)

            weather.report("Delft", 21)
            flush()
            print("after the report:", weather.degrees("Delft"))

            weather.report("Delft", 22)
        # Its end has waited for the report.
        print("after the end:", station.towns["Delft"])


if __name__ == "__main__":
    main()
