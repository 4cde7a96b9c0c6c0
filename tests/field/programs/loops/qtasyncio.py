# /// script
# requires-python = "==3.14.*"
# dependencies = ["PySide6==6.12.0"]
# ///
"""
`QtAsyncio.run(main())` of PySide6 in the main thread, without a display: handles awaited there, `go` from a `QTimer`, `run` in a worker thread of omniloop's while Qt's loop goes on, a wait that is cancelled.

Differs:
Importing `QtAsyncio`, or its `run`, makes Qt's the loop that `asyncio.new_event_loop()` gives in every thread, and it runs in one only: omniloop's thread ends with `LoopDiedError`, because "Event loop is already running". Say `configure(loop_factory=asyncio.SelectorEventLoop)` before the first use (on Windows `ProactorEventLoop`).
"""

import asyncio
import os
import threading

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from PySide6 import QtAsyncio, QtCore

import omniloop
from ending import right


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def main():
    assert threading.current_thread() is threading.main_thread()
    assert await asyncio.gather(*[omniloop.go(double(n)) for n in range(20)]) == [n * 2 for n in range(20)]
    assert threading.current_thread() is threading.main_thread()
    assert await omniloop.to_thread(omniloop.run, double(4)) == 8

    timed = asyncio.get_running_loop().create_future()
    QtCore.QTimer.singleShot(0, lambda: timed.set_result(omniloop.go(double(5))))
    assert await (await timed) == 10

    endless = omniloop.go(asyncio.Event().wait())
    waits = asyncio.ensure_future(endless)
    await asyncio.sleep(0.05)
    waits.cancel()
    try:
        await waits
    except asyncio.CancelledError:
        pass
    assert endless.cancelled()
    seen.append("over")


seen = []
omniloop.configure(loop_factory=asyncio.SelectorEventLoop)
QtAsyncio.run(main(), keep_running=False, quit_qapp=True)
assert seen == ["over"]
right("Handles awaited on Qt's loop, which come back to the main thread; a cancelled wait cancels the work.")
