# /// script
# requires-python = "==3.14.*"
# dependencies = ["fastapi==0.165.0", "quart==0.23.1", "litestar==2.25.0", "starlette==1.10.0", "httpx2==2.16.2", "httpx==0.28.1"]
# ///
"""
FastAPI, Quart and Litestar in one program: an async endpoint that awaits `go`, a sync one that calls `run`, asked without a server.
"""

import asyncio
import logging

import fastapi
import httpx
import litestar
import quart

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


fast = fastapi.FastAPI()


@fast.get("/async/{number}")
async def fast_async(number: int) -> int:
    return await omniloop.go(double(number))


@fast.get("/sync/{number}")
def fast_sync(number: int) -> int:
    return omniloop.run(double(number), timeout=20)


@litestar.get("/async/{number:int}")
async def star_async(number: int) -> int:
    return await omniloop.go(double(number))


@litestar.get("/sync/{number:int}", sync_to_thread=True)
def star_sync(number: int) -> int:
    return omniloop.run(double(number), timeout=20)


star = litestar.Litestar([star_async, star_sync])
logging.disable(logging.INFO)
quarted = quart.Quart("field")


@quarted.get("/async/<int:number>")
async def quart_async(number):
    return str(await omniloop.go(double(number)))


@quarted.get("/sync/<int:number>")
def quart_sync(number):
    return str(omniloop.run(double(number), timeout=20))


async def ask(app):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://field") as client:
        answers = await asyncio.gather(
            *(client.get(f"/{kind}/{number}") for kind in ("async", "sync") for number in range(20))
        )
    return [answer.text for answer in answers]


wanted = [str(2 * number) for _ in range(2) for number in range(20)]
for app in (fast, star, quarted):
    assert asyncio.run(ask(app)) == wanted, app
right(
    "Twenty async and twenty sync requests at once in each of the three, on the framework's loop with the work on omniloop's."
)
