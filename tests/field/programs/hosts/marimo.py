# /// script
# requires-python = "==3.14.*"
# dependencies = ["marimo==0.25.2"]
# ///
"""
A notebook by `app.run()`: `run` and `await go(…)` in cells.
"""

import marimo

import omniloop
from ending import right

app = marimo.App()


@app.cell
def _():
    import asyncio

    import omniloop

    async def double(number):
        await asyncio.sleep(0.01)
        return number * 2

    return double, omniloop


@app.cell
def _(double, omniloop):
    blocking = omniloop.run(double(2), timeout=20)
    return (blocking,)


@app.cell
async def _(blocking, double, omniloop):
    awaited = await omniloop.go(double(blocking))
    return (awaited,)


_, definitions = app.run()
assert definitions["blocking"] == 4
assert definitions["awaited"] == 8
assert omniloop.stats() is not None
right("A cell that blocks in `run`, and one that awaits a handle on marimo's loop.")
