# /// script
# requires-python = "==3.14.*"
# dependencies = ["nicegui==3.18.0"]
# ///
"""
A page on a free port, asked over HTTP: `await go(…)` in its async builder, `run.io_bound` of a function that calls omniloop's `run`; the server is stopped by `app.shutdown()`.
"""

import asyncio
import urllib.request

from nicegui import app, run, ui

import omniloop
from ending import right
from local_servers import free_port, wait_for

answers = []
port = free_port()


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


@ui.page("/")
async def index():
    ui.label(f"awaited {await omniloop.go(double(21))}")
    ui.label(f"blocked {await run.io_bound(omniloop.run, double(4))}")


def ask():
    wait_for(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        return answer.read().decode()


async def visit():
    answers.append(await asyncio.to_thread(ask))
    app.shutdown()


app.on_startup(lambda: asyncio.create_task(visit()))
ui.run(host="127.0.0.1", port=port, reload=False, show=False, show_welcome_message=False)
assert "awaited 42" in answers[0] and "blocked 8" in answers[0]
right(
    "A handle awaited in a page's builder, a blocking call in a thread of NiceGUI's, and the drain after `ui.run` has come back."
)
