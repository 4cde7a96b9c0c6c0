# /// script
# requires-python = "==3.14.*"
# dependencies = ["viztracer==1.1.1"]
# ///
"""
`VizTracer(log_async=True)` around `go`, `run` and `to_thread`, and what it saved.
"""

import asyncio
import json

from viztracer import VizTracer

import omniloop
from ending import right


def traced_in_a_thread():
    return 3


async def traced_on_the_loop():
    await asyncio.sleep(0.01)
    return await omniloop.to_thread(traced_in_a_thread)


with VizTracer(output_file="trace.json", log_async=True, verbose=0):
    assert omniloop.run(traced_on_the_loop(), timeout=30) == 3

with open("trace.json", encoding="utf-8") as file:
    names = " ".join(event["name"] for event in json.load(file)["traceEvents"])
assert "traced_on_the_loop" in names
assert "traced_in_a_thread" in names
right("A tracer started before the first use sees what runs on the loop's thread and in worker threads.")
