# /// script
# requires-python = "==3.14.*"
# dependencies = ["prompt-toolkit==3.0.53"]
# ///
"""
A `PromptSession`: `prompt()` in the main thread while work prints through `patch_stdout`, a key binding that awaits `go`; `prompt_async` on omniloop's loop.
"""

import asyncio
import threading

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.patch_stdout import patch_stdout

import omniloop
from ending import right

keys = KeyBindings()
awaited = []


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


@keys.add("c-k")
async def _(event):
    awaited.append(await omniloop.go(double(4)))
    event.app.current_buffer.insert_text(str(awaited[-1]))


async def prints(written):
    for number in range(5):
        print("printed", number)
        await asyncio.sleep(0.01)
    written.set()


async def asks(pipe):
    with create_app_session(input=pipe, output=DummyOutput()):
        return await PromptSession().prompt_async("> ")


with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
    written = threading.Event()
    with patch_stdout():
        omniloop.go(prints(written))

        async def types_when_it_has_printed():
            await asyncio.to_thread(written.wait, 20)
            pipe.send_text("got \x0b")
            while not awaited:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            pipe.send_text("\r")

        omniloop.go(types_when_it_has_printed())
        assert PromptSession(key_bindings=keys).prompt("> ") == "got 8"
with create_pipe_input() as pipe:
    pipe.send_text("there\r")
    assert omniloop.run(asks(pipe), timeout=20) == "there"
right(
    "A prompt in the main thread beside work that prints, a key that awaits a handle, and a prompt on omniloop's loop."
)
