# /// script
# requires-python = "==3.14.*"
# dependencies = ["loguru==0.7.3", "structlog==26.1.0"]
# ///
"""
loguru with `enqueue=True`, and a sink that is a coroutine on omniloop's loop; `contextualize` and structlog's `bound_contextvars` around `go`; forgotten work that logs at the program's end.
"""

import asyncio

import loguru
import structlog

import omniloop
from ending import right

logger = loguru.logger
logger.remove()
queued, awaited = [], []


async def sink(message):
    await asyncio.sleep(0)
    awaited.append((message.record["extra"]["number"], message.record["extra"].get("request")))


async def add_sink():
    logger.add(sink, loop=asyncio.get_running_loop())


async def logs(number):
    await asyncio.sleep(0.001)
    logger.bind(number=number).info("done")
    return structlog.contextvars.get_contextvars().get("request")


async def complete():
    await logger.complete()


logger.add(lambda message: queued.append(message.record["extra"]["number"]), enqueue=True)
omniloop.run(add_sink(), timeout=20)
handles = []
for request in range(10):
    with logger.contextualize(request=request), structlog.contextvars.bound_contextvars(request=request):
        handles.append(omniloop.go(logs(request)))
assert [handle.result(timeout=20) for handle in handles] == list(range(10))
omniloop.run(complete(), timeout=20)
assert sorted(awaited) == [(number, number) for number in range(10)], awaited
assert sorted(queued) == list(range(10))
right(
    "Each line with the context of the code that submitted the work, in a queue's sink and in one that is a coroutine."
)
