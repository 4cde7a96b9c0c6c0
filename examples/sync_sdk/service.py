"""The other end, for the demo and the tests: the notes service, in a thread of this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Service:
    """Keeps notes in memory, and counts the requests."""

    def __init__(self) -> None:
        self.notes: list[dict[str, object]] = []
        self.requests: list[str] = []

    async def add(self, request: web.Request) -> web.Response:
        note = {"number": len(self.notes), "text": (await request.json())["text"]}
        self.notes.append(note)
        return web.json_response(note)

    async def get(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if number >= len(self.notes):
            raise web.HTTPNotFound
        return web.json_response(self.notes[number])

    async def page(self, request: web.Request) -> web.Response:
        self.requests.append(request.path_qs)
        start, count = int(request.query["start"]), int(request.query["count"])
        return web.json_response(self.notes[start : start + count])

    async def export(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for note in self.notes:
            await response.write(f"{note['text']}\n".encode())
        return response

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The address, as long as the block lasts."""
        app = web.Application()
        app.add_routes(
            [
                web.post("/notes", self.add),
                web.get("/notes", self.page),
                web.get("/notes/{number}", self.get),
                web.get("/export", self.export),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0])
        finally:
            await runner.cleanup()
