# /// script
# requires-python = "==3.14.*"
# dependencies = ["mcp==2.3.0"]
# ///
"""
An MCP server in a process of its own; the SDK's `Client` over stdio in `enter`: tools called from sync code, twenty at once, the server's error, two clients that are closed in the order in which they were opened.
"""

import contextlib
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters

import omniloop
from ending import right

Path("served.py").write_text(
    """\
import asyncio
from mcp.server import MCPServer
server = MCPServer("field")
@server.tool()
async def double(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number
@server.tool()
def fails() -> int:
    raise ValueError("on purpose")
server.run("stdio")
""",
    encoding="utf-8",
)
parameters = StdioServerParameters(command=sys.executable, args=["served.py"])


async def double(client, number):
    answer = await client.call_tool("double", {"number": number})
    return int(answer.content[0].text)


with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
    one = first.enter_context(omniloop.enter(Client(parameters)))
    two = second.enter_context(omniloop.enter(Client(parameters)))
    assert {tool.name for tool in omniloop.run(one.list_tools(), timeout=60).tools} == {"double", "fails"}
    with omniloop.TaskGroup() as group:
        handles = [group.go(double(client, number)) for client in (one, two) for number in range(10)]
    assert [handle.result() for handle in handles] == [2 * number for number in range(10)] * 2
    assert omniloop.run(one.call_tool("fails"), timeout=60).is_error
    # Not the youngest first, which anyio's scopes would want in one task.
    first.close()
    assert omniloop.run(double(two, 21), timeout=60) == 42
right("Two servers' tools from sync code, each client in a `with` of its own; they are closed in any order.")
