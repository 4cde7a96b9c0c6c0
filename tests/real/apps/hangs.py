"""The Flask example, with a view that never returns, and work that takes two steps."""

import threading

from app import app, tell

from omniloop import go


async def in_two_steps() -> None:
    await tell("first", 1)
    await tell("second", 1)


@app.get("/hang")
def hang():
    go(in_two_steps())
    threading.Event().wait()
