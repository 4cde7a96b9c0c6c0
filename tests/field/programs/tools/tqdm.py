# /// script
# requires-python = "==3.14.*"
# dependencies = ["tqdm==4.70.1", "rich==15.0.0"]
# ///
"""
`tqdm` around `omniloop.map` and `iterate`, `tqdm.asyncio.gather` on the loop; `rich.progress.track` and a `rich.live` display while work prints.
"""

import asyncio
import io

import tqdm
from rich.console import Console
from rich.progress import Progress, track
from tqdm.asyncio import tqdm_asyncio

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.001)
    return number * 2


async def counts():
    for number in range(20):
        await asyncio.sleep(0)
        yield number


out = io.StringIO()
assert list(tqdm.tqdm(omniloop.map(double, range(50), limit=5), total=50, file=out)) == [2 * n for n in range(50)]
assert "50/50" in out.getvalue()
assert list(tqdm.tqdm(omniloop.iterate(counts()), file=out)) == list(range(20))


async def gathered():
    return await tqdm_asyncio.gather(*(double(number) for number in range(20)), file=out)


assert omniloop.run(gathered(), timeout=20) == [2 * n for n in range(20)]
assert "20/20" in out.getvalue()

screen = io.StringIO()
console = Console(file=screen, force_terminal=True, width=80)
assert len(list(track(omniloop.map(double, range(50), limit=5), total=50, console=console))) == 50
with Progress(console=console) as progress:
    bar = progress.add_task("working", total=50)
    with omniloop.TaskGroup() as group:
        for number in range(50):
            group.go(double(number)).add_done_callback(lambda _: progress.advance(bar))
    assert progress.finished
assert "100%" in screen.getvalue()
right("Bars of both around `map` and `iterate`; one that is moved by done callbacks of the loop's thread.")
