# /// script
# requires-python = "==3.14.*"
# dependencies = ["aiomonitor==0.7.1"]
# ///
"""
`aiomonitor.start_monitor` on omniloop's loop: its web page lists what `go` started, and cancels it.
"""

import asyncio
import json
import urllib.parse
import urllib.request
from concurrent.futures import CancelledError

import aiomonitor

import omniloop
from ending import right
from local_servers import free_port, wait_for

ports = {"port": free_port(), "webui_port": free_port(), "console_port": free_port()}


async def start():
    return aiomonitor.start_monitor(asyncio.get_running_loop(), hook_task_factory=False, **ports)


async def waits_for_ever():
    await asyncio.Event().wait()


def live_tasks():
    asked = urllib.request.Request(f"http://127.0.0.1:{ports['webui_port']}/api/live-tasks", data=b"", method="POST")
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.load(answer)["tasks"]


monitor = omniloop.run(start(), timeout=20)
handle = omniloop.go(waits_for_ever(), name="the one that waits")
try:
    wait_for(ports["webui_port"])
    (task,) = (task for task in live_tasks() if "waits_for_ever" in task["coro"])
    assert task["name"] == "the one that waits", task
    query = urllib.parse.urlencode({"task_id": task["task_id"]})
    asked = urllib.request.Request(f"http://127.0.0.1:{ports['webui_port']}/api/task?{query}", method="DELETE")
    urllib.request.urlopen(asked, timeout=20).close()
    try:
        handle.result(timeout=20)
    except CancelledError:
        pass
finally:
    omniloop.to_thread(monitor.close).result(timeout=20)
assert handle.cancelled()
right("The work on omniloop's loop, in its page by its name; what is cancelled there, is cancelled.")
