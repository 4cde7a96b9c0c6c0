"""FastAPI applications whose views leave three pieces of work: bare, with the lifespan, with one's own as well, and wrapped."""

import itertools
import os
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from omniloop import go, stats
from omniloop.ext.asgi import lifespan, with_lifespan

SERVICE = os.environ["SERVICE"]
numbers = itertools.count(1)


async def tell(kind: str, account: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as client, client.post(f"{SERVICE}/{kind}/{account}"):
        pass


def leave() -> JSONResponse:
    account = f"{os.getpid()}-{next(numbers)}"
    for kind in ("mail", "audit", "webhook"):
        go(tell(kind, account))
    return JSONResponse({"id": account}, status_code=201)


@asynccontextmanager
async def mine(app):
    print("mine begins", flush=True)
    yield {"mine": 42}
    go(tell("mail", "at-the-end"))
    print("mine ends", flush=True)


def make(**options) -> FastAPI:
    made = FastAPI(**options)

    @made.post("/accounts")
    async def register():
        return leave()

    @made.get("/pid")
    def pid():
        # Something was done: a server that is told what it will lose has said it by now.
        return f"{os.getpid()} {stats().accepted}"

    return made


bare = make()
app = make(lifespan=lifespan)
own = make(lifespan=lifespan(mine))
wrapped = with_lifespan(make(lifespan=mine))


@asynccontextmanager
async def around(app):
    async with lifespan(), mine(app) as state:
        yield state


inside = make(lifespan=around)
