"""
A component owns what it starts: its `stop()` cancels all of it, and returns when the clean-up is done.

Run it: `python examples/component_with_group.py`. A child process is a news service that streams without end, a real HTTP
server; the component here subscribes to three of its channels, from plain sync code.
"""

import asyncio
import subprocess
import sys
import threading
from collections import Counter

import aiohttp
from aiohttp import web

from omniloop import TaskGroup, run, tasks

CHANNELS = ("sport", "weather", "world")


class Reader:
    """Reads some channels, from `start()` to `stop()`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: Counter[str] = Counter()
        self.every_channel_came = threading.Event()

    def start(self) -> None:
        self._tasks = TaskGroup()
        for channel in CHANNELS:
            self._tasks.go(self._read(channel), name=f"read {channel}")

    def stop(self) -> None:
        with self._tasks:
            self._tasks.cancel()

    async def _read(self, channel: str) -> None:
        try:
            async with aiohttp.ClientSession() as client, client.get(f"{self.url}/{channel}") as response:
                async for _ in response.content:
                    self.received[channel] += 1
                    # What it starts meanwhile is the component's as well.
                    self._tasks.call_soon(self._look)
        finally:
            # Also when it is cancelled: the connection was closed just now.
            print("closed", channel)

    def _look(self) -> None:
        if len(self.received) == len(CHANNELS):
            self.every_channel_came.set()


def main(url: str) -> None:
    reader = Reader(url)
    reader.start()
    reader.every_channel_came.wait(timeout=20)
    print("every channel came:", sorted(reader.received) == sorted(CHANNELS))
    print("open connections:", run(count_connections(url)))

    reader.stop()
    print("unfinished tasks:", len(tasks()))
    print("open connections:", run(count_connections(url, until=0)))


async def count_connections(url: str, until: int | None = None) -> int:
    """Ask the service; if there is a number to wait for, until it says so, for the network takes its time."""
    query = {} if until is None else {"until": str(until)}
    async with aiohttp.ClientSession() as client, client.get(f"{url}/open", params=query) as response:
        return int(await response.text())


# --- the service ------------------------------------------------------------------------------------------------------


def serve() -> None:
    streams = 0
    changed = asyncio.Condition()

    async def count_open(request: web.Request) -> web.Response:
        if "until" in request.query:
            async with changed:
                await asyncio.wait_for(changed.wait_for(lambda: streams == int(request.query["until"])), timeout=10)
        return web.Response(text=str(streams))

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal streams
        response = web.StreamResponse()
        await response.prepare(request)
        streams += 1
        try:
            while True:
                await response.write(b"news\n")
                await asyncio.sleep(0.01)
        except ConnectionError:
            return response
        finally:
            streams -= 1
            async with changed:
                changed.notify_all()

    async def run_server() -> None:
        app = web.Application()
        app.router.add_get("/open", count_open)
        app.router.add_get("/{channel}", stream)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        # Until whoever started it closes the pipe, or ends.
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(run_server())


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        with subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as service:
            assert service.stdout is not None
            main(f"http://127.0.0.1:{int(service.stdout.readline())}")
            service.communicate()
