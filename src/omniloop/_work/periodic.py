"""Takes its turns at a fixed rate, without drift or overlap, whatever happens in one of them."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable

from .._report import Failure, Site


async def periodic(
    interval: float,
    fn: Callable[[], object],
    jitter: float,
    immediately: bool,
    name: str,
    site: Site,
    report: Callable[[Failure], None],
) -> None:
    """Call *fn*, and await what it returns, every *interval* seconds by the loop's clock, until cancelled."""
    # Here, because it would be a tenth of what the whole package costs to import.
    import random

    loop = asyncio.get_running_loop()
    # As good as nothing, and the number of turns stays one.
    interval = max(interval, 1e-9)
    task = asyncio.current_task()
    start = loop.time()
    turn = 0 if immediately else 1
    while True:
        # Counted from the start, so that the length of a turn and the lateness of a timer do not add up.
        due = start + turn * interval + (random.uniform(0, jitter) if jitter else 0)
        await asyncio.sleep(max(0.0, due - loop.time()))
        try:
            value = fn()
            if inspect.isawaitable(value):
                await value
        except GeneratorExit:
            # Closed, not run: at the end of an interpreter that forgot its loop.
            raise
        except BaseException as error:
            # A cancellation may be the turn's own: that of something it waited for.
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            report(Failure(f"A turn of {name!r} failed; the next one comes", error, name, site))
        # What is past is left out: late turns do not pile up.
        turn = max(turn + 1, math.ceil((loop.time() - start) / interval))
