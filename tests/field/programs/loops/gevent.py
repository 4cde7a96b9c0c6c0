# /// script
# requires-python = "==3.14.*"
# dependencies = ["gevent==26.9.0"]
# ///
"""
`gevent.monkey.patch_all()` before the import of omniloop: `run` from twenty greenlets, `go`, `to_thread`.

Differs: Where threading is patched, omniloop's thread is a greenlet of the main thread, which a warning says: no other event loop can run beside it, and what does not yield to gevent stops it too. Leave threading unpatched where that counts.
"""

from gevent import monkey

monkey.patch_all()

import asyncio

import gevent

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.05)
    return number * 2


greenlets = [gevent.spawn(omniloop.run, double(number), timeout=20) for number in range(20)]
gevent.joinall(greenlets, timeout=60)
assert [greenlet.value for greenlet in greenlets] == [2 * number for number in range(20)]
assert omniloop.go(double(4)).result(timeout=20) == 8
assert omniloop.to_thread(sum, [1, 2]).result(timeout=20) == 3
right("Each call comes back with its own value.")
