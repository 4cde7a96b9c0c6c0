# /// script
# requires-python = "==3.14.*"
# dependencies = ["qasync==0.28.0", "PySide6-Essentials==6.12.0"]
# ///
"""
qasync's loop under a `QApplication` without a screen: `await go(…)` in slots' coroutines, a signal emitted from omniloop's thread, `run` in a `QThread`.

Differs: `QTimer.singleShot(0, f)` from a plain thread never runs; emit a signal instead, which reaches the slot in the GUI's thread.
"""

import asyncio
import os
import threading

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import qasync
from PySide6.QtCore import QCoreApplication, QObject, QThread, Signal

import omniloop
from ending import right

application = QCoreApplication([])
slots = []


class Teller(QObject):
    told = Signal(int)


class Worker(QThread):
    def run(self):
        self.value = omniloop.run(double(5), timeout=20)


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def main():
    assert await asyncio.gather(*(omniloop.go(double(number)) for number in range(20))) == [
        2 * number for number in range(20)
    ]
    assert threading.current_thread() is threading.main_thread()

    heard = asyncio.Event()
    teller = Teller()

    def slot(number):
        slots.append((number, threading.current_thread() is threading.main_thread()))
        heard.set()

    teller.told.connect(slot)
    omniloop.go(double(21)).add_done_callback(lambda handle: teller.told.emit(handle.result()))
    await asyncio.wait_for(heard.wait(), 20)
    assert slots == [(42, True)], slots

    worker = Worker()
    ended = asyncio.Event()
    worker.finished.connect(ended.set)
    worker.start()
    await asyncio.wait_for(ended.wait(), 20)
    worker.wait()
    assert worker.value == 10


qasync.run(main())
right(
    "Twenty handles awaited in the GUI's thread; a done callback's signal arrives there; a `QThread` blocks in `run`."
)
