# /// script
# requires-python = "==3.14.*"
# dependencies = ["twisted==26.10.0"]
# ///
"""
`asyncioreactor` in the main thread; handles awaited in `Deferred.fromFuture`, and a callback that goes back by `reactor.callFromThread`.

Differs: What `task.react` calls runs before the loop does: from 3.14 on `asyncio.ensure_future` finds one only after `asyncio.set_event_loop(loop)`.
"""

import asyncio

from twisted.internet import asyncioreactor

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
asyncioreactor.install(loop)

from twisted.internet import defer, task

import omniloop
from ending import right

seen = []


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def main(reactor):
    async def one(number):
        return await omniloop.go(double(number))

    results = await defer.gatherResults(
        [defer.Deferred.fromFuture(asyncio.ensure_future(one(number))) for number in range(10)]
    )
    assert results == [number * 2 for number in range(10)]
    called = defer.Deferred()
    handle = omniloop.go(double(21))
    handle.add_done_callback(lambda handle: reactor.callFromThread(called.callback, handle.result()))
    assert await called == 42
    seen.append("done")


try:
    task.react(lambda reactor: defer.Deferred.fromCoroutine(main(reactor)))
except SystemExit as ended:
    assert ended.code in (0, None), ended
assert seen == ["done"]
assert omniloop.run(double(1), timeout=20) == 2
right(
    "Ten handles awaited at once under Twisted's reactor; a done callback that goes back to the reactor's thread; `run` after the reactor has stopped."
)
