"""The windows of the page on Qt, Tk and Textual, clicked as a user would: started, followed, cancelled, closed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from children import run_child

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "windows.md"

pytestmark = pytest.mark.timeout(90)


def window(toolkit: str) -> str:
    """The program of the page, without its last lines, which show the window."""
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if re.search(rf"^from {toolkit}|^import {toolkit}", block, re.MULTILINE):
            return block.partition('\nif __name__ == "__main__":')[0] + "\n"
    pytest.fail(f"no block of the page imports {toolkit}")


@pytest.mark.promise(
    "A window of Qt starts work, follows it, cancels it and ends with it, as the page shows",
    section="Frameworks and servers",
)
def test_a_qt_window_starts_follows_and_cancels_work():
    pytest.importorskip("PySide6")
    drive = """
import os, threading
os.environ.update(QT_QPA_PLATFORM="offscreen", QT_LOGGING_RULES="*=false")
from PySide6.QtCore import QTimer
app = QApplication([])
window = Window()
window.show()
threads = []
window.ended.connect(lambda task: threads.append(threading.current_thread() is threading.main_thread()))
window.start.click()
print(window.start.isEnabled(), window.label.text())

def after_the_first(task):
    window.ended.disconnect(after_the_first)
    print(window.bar.value(), window.label.text(), window.start.isEnabled())
    window.ended.connect(after_the_second)
    window.start.click()
    window.cancel.click()

def after_the_second(task):
    print(window.label.text())
    window.ended.disconnect(after_the_second)
    window.start.click()
    window.close()
    QTimer.singleShot(0, app.quit)

window.ended.connect(after_the_first)
app.exec()
print(threads[:2])
"""
    result = run_child(window("PySide6") + drive)

    assert result == ("False ready\n100 fetched True\ncancelled\n[True, True]\n", "", 0, result.seconds)


@pytest.fixture
def display():
    """A virtual screen, where there is none."""
    if "DISPLAY" in os.environ:
        yield os.environ["DISPLAY"]
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    reading, writing = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-nolisten", "tcp"], pass_fds=[writing], stderr=subprocess.DEVNULL
    ) as server:
        os.close(writing)
        with open(reading) as told:
            number = told.readline().strip()
        try:
            yield f":{number}"
        finally:
            server.terminate()


@pytest.mark.promise("A window of Tk starts work, follows it, cancels it and ends with it, as the page shows")
def test_a_tk_window_starts_follows_and_cancels_work(display):
    pytest.importorskip("tkinter")
    drive = """
import threading
window = Window()
shown = window.show_outcome
steps = iter(["first", "second", "third"])

def show_outcome(task):
    shown(task)
    step = next(steps)
    if step == "first":
        print(window.bar["value"], window.label["text"], threading.current_thread() is threading.main_thread())
        window.start.invoke()
        window.cancel.invoke()
    elif step == "second":
        print(window.label["text"])
        window.start.invoke()
        window.close()

window.show_outcome = show_outcome
window.root.after(0, window.start.invoke)
window.root.mainloop()
print("closed")
"""
    result = run_child(window("tkinter") + drive, env={"DISPLAY": display})

    assert result == ("100 fetched True\ncancelled\nclosed\n", "", 0, result.seconds)


@pytest.mark.promise("An app of Textual starts work, follows it, cancels it and ends with it, as the page shows")
def test_a_textual_app_starts_follows_and_cancels_work():
    pytest.importorskip("textual")
    drive = """
ended = []

class Watched(Window):
    def on_ended(self, message):
        message.prevent_default()
        super().on_ended(message)
        ended.append(message.task)

async def main():
    app = Watched()
    async with app.run_test() as pilot:
        async def until(number):
            while len(ended) < number:
                await pilot.pause(0.01)

        await pilot.click("#start")
        await until(1)
        print(app.query_one(ProgressBar).progress, app.query_one(Label).render())
        app.query_one("#start").press()
        app.query_one("#cancel").press()
        await until(2)
        print(app.query_one(Label).render())

asyncio.run(main())
"""
    result = run_child(window("textual") + drive)

    assert result == ("100 fetched\ncancelled\n", "", 0, result.seconds)


@pytest.mark.promise("In an app of Textual a `run` that a callback's `call_from_thread` waits for is told")
def test_a_run_in_a_textual_app_that_call_from_thread_waits_for_is_told():
    pytest.importorskip("textual")
    program = """
import asyncio
from textual.app import App
from omniloop import WouldDeadlockError, go, run

async def main():
    app = App()
    async with app.run_test():
        gate, over = run(make()), asyncio.Event()

        async def fetch():
            await gate.wait()

        def callback(task):
            app.call_from_thread(over.set)

        go(fetch()).add_done_callback(callback)

        async def opens():
            gate.set()
            await asyncio.Event().wait()

        waits = go(opens())
        try:
            waits.result()
        except WouldDeadlockError as error:
            print("in App.call_from_thread, until this thread's own event loop" in str(error))
        await over.wait()
        waits.cancel()
        print("over")

async def make():
    return asyncio.Event()

asyncio.run(main())
"""
    result = run_child(program, env={"OMNILOOP_SLOW_CALLBACK": "none"})

    assert result == ("True\nover\n", "", 0, result.seconds)
