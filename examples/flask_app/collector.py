"""
The service beside the application: mail, audit log and webhook in one, over HTTP on loopback. It counts what arrives.

    python collector.py 8001

POST /KIND/KEY is answered once the gate is open (POST /gate/open, /gate/shut; open at first), and counted then; after
POST /gate/shut?but=KIND that kind still passes, and after POST /gate/open?delay=SECONDS an answer takes that long.
GET /arrived returns how often each "KIND/KEY" was answered, and how many wait at the gate.
"""

import asyncio
import sys
from collections import Counter

from aiohttp import web


def make_app() -> web.Application:
    arrived: Counter[str] = Counter()
    gate = asyncio.Event()
    gate.set()
    passes, delay = "", 0.0
    waiting = 0

    async def arrive(request: web.Request) -> web.Response:
        nonlocal waiting
        if request.match_info["kind"] != passes:
            waiting += 1
            try:
                await gate.wait()
                await asyncio.sleep(delay)
            finally:
                waiting -= 1
        arrived["{kind}/{key}".format_map(request.match_info)] += 1
        return web.Response(status=204)

    async def move_gate(request: web.Request) -> web.Response:
        nonlocal passes, delay
        passes, delay = request.query.get("but", ""), float(request.query.get("delay", 0))
        if request.match_info["position"] == "open":
            gate.set()
        else:
            gate.clear()
        return web.Response(status=204)

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"arrived": arrived, "waiting": waiting})

    app = web.Application()
    app.router.add_post("/gate/{position:open|shut}", move_gate)
    app.router.add_post("/{kind}/{key}", arrive)
    app.router.add_get("/arrived", show)
    return app


if __name__ == "__main__":
    # A client that is gone before the answer has not been served: its call does not count.
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]), print=None, handler_cancellation=True)
