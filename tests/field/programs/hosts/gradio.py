# /// script
# requires-python = "==3.14.*"
# dependencies = ["gradio==6.31.0"]
# ///
"""
A `Blocks` on a free port, asked by Gradio's own client: a plain function that calls `run`, an async one that awaits `go`, a generator that yields from `iterate`.
"""

import asyncio
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio
from gradio_client import Client

import omniloop
from ending import right
from local_servers import free_port


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


def blocks(number):
    return omniloop.run(double(number))


async def awaits(number):
    return await omniloop.go(double(number))


async def counts(number):
    for count in range(int(number)):
        await asyncio.sleep(0)
        yield count


def streams(number):
    yield from omniloop.iterate(counts(number))


with gradio.Blocks() as page:
    number, out = gradio.Number(), gradio.Number()
    for function in (blocks, awaits, streams):
        gradio.Button(function.__name__).click(function, number, out, api_name=function.__name__)

page.queue().launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True)
client = Client(page.local_url, verbose=False)
jobs = [client.submit(n, api_name=name) for n in range(10) for name in ("/blocks", "/awaits")]
assert [job.result(timeout=60) for job in jobs] == [n * 2 for n in range(10) for _ in range(2)]
assert list(client.submit(3, api_name="/streams")) == [0, 1, 2]
page.close()
right("Ten blocking and ten awaited calls at once, and a stream, with Gradio's loop in a thread of its own.")
