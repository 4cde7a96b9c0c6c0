# /// script
# requires-python = "==3.14.*"
# dependencies = ["textual==8.2.8"]
# ///
"""
An `App` in `run_test()`: `await go(…)` in a handler, `run` in a thread worker, `call_from_thread` in a done callback.

Differs: A `run()` in the UI's own thread, while a done callback waits in `call_from_thread`, is a wait in a circle: `await go(…)` there.
"""

import asyncio

from textual.app import App
from textual.widgets import Static

import omniloop
from ending import right

seen = []


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


class Field(App):
    def compose(self):
        yield Static("field", id="field")

    async def on_mount(self):
        seen.append(await omniloop.go(double(21)))
        omniloop.go(double(4)).add_done_callback(lambda handle: self.call_from_thread(seen.append, handle.result()))
        self.run_worker(self.blocks, thread=True)

    def blocks(self):
        seen.append(omniloop.run(double(5), timeout=20))


async def main():
    app = Field()
    async with app.run_test() as pilot:
        for _ in range(200):
            await pilot.pause(0.05)
            if len(seen) == 3:
                break
    assert sorted(seen) == [8, 10, 42], seen


asyncio.run(main())
right("A handle awaited in a handler, `run` in a worker's thread, and a done callback that goes back to the UI.")
