# /// script
# requires-python = "==3.14.*"
# dependencies = ["pydantic-ai-slim==2.68.0"]
# ///
"""
An agent with its `TestModel`, which asks nobody: `run(agent.run(…))`, twenty at once, a stream in `enter` and `iterate` that is left early, a tool that calls `run` and one that awaits `go`; its own `run_sync` beside it.
"""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

import omniloop
from ending import right

agent = Agent(TestModel())


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


@agent.tool_plain
def blocks(number: int) -> int:
    return omniloop.run(double(number + 1), timeout=20)


@agent.tool_plain
async def awaits(number: int) -> int:
    return await omniloop.go(double(number + 2))


expected = '{"blocks":2,"awaits":4}'
assert omniloop.run(agent.run("hello"), timeout=60).output == expected
with omniloop.TaskGroup() as group:
    handles = [group.go(agent.run("hello")) for _ in range(20)]
assert {handle.result().output for handle in handles} == {expected}
with omniloop.enter(agent.run_stream("hello")) as stream:
    for part in omniloop.iterate(stream.stream_text(delta=True)):
        assert expected.startswith(part)
        break
assert agent.run_sync("hello").output == expected
assert omniloop.run(agent.run("hello"), timeout=60).output == expected
right(
    "Agents on one loop, whose tools block and await; a stream that sync code leaves early; `run_sync` before and after."
)
