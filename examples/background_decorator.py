"""
`@background`: calling the function starts it; whoever wants to wait, waits, in sync or in async code.

Run it: `python examples/background_decorator.py`. A child process is the audit service, a real HTTP server; this one is a
program whose calls look like plain calls.
"""

import asyncio
import hashlib
import subprocess
import sys

import aiohttp
from aiohttp import web

from omniloop import Failure, background, flush, resource

EVENTS = 200

http = resource(aiohttp.ClientSession)


def tell(failure: Failure) -> None:
    print(f"{failure.name} failed: {type(failure.exception).__name__}")


class Audit:
    def __init__(self, url: str) -> None:
        self.url = url

    @background(limit=20, on_error=tell)
    async def record(self, event: str) -> int:
        """Post an event to the service; return how many it has now. No more than 20 are on their way at once."""
        client = await http
        async with client.post(self.url, data=event) as response:
            response.raise_for_status()
            return int(await response.text())


@background
def checksum(text: str) -> str:
    """A blocking function: runs in a worker thread."""
    return hashlib.sha256(text.encode()).hexdigest()


def main(url: str) -> None:
    audit = Audit(url)
    for number in range(EVENTS):
        audit.record(f"event {number}")  # fire and forget
    flush()
    print("the service has:", audit.record("one more").result())  # wait, in sync code

    async def in_async_code() -> None:
        task = audit.record("and another")
        digest = await checksum("a text")
        print("the service has:", await task, "- and the checksum begins with", digest[:8])

    asyncio.run(in_async_code())
    Audit(url + "/nowhere").record("lost")  # nobody asks about it: on_error is told


# --- the service ------------------------------------------------------------------------------------------------------


def serve() -> None:
    events: list[str] = []

    async def take(request: web.Request) -> web.Response:
        events.append(await request.text())
        return web.Response(text=str(len(events)))

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/events", take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        # Until whoever started it closes the pipe, or ends.
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(run())


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        with subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as service:
            assert service.stdout is not None
            main(f"http://127.0.0.1:{int(service.stdout.readline())}/events")
            flush()
            service.communicate()
