# /// script
# requires-python = "==3.14.*"
# dependencies = ["panel==1.10.0"]
# ///
"""
A Panel app served on a free port, asked over HTTP: `run` in its plain builder, `await go(…)` in a callback; the server, with its loop in a thread, is stopped at the end.
"""

import asyncio
import threading
import urllib.request

import panel as pn

import omniloop
from ending import right
from local_servers import free_port, wait_for

built, awaited, done = [], [], threading.Semaphore(0)


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


async def clicked():
    awaited.append(await omniloop.go(double(4)))
    done.release()


def app():
    built.append(omniloop.run(double(21), timeout=20))
    pn.state.execute(clicked)
    return pn.pane.Str(f"built {built[-1]}")


port = free_port()
server = pn.serve(app, port=port, address="127.0.0.1", threaded=True, show=False, verbose=False)
wait_for(port)
for _ in range(5):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.status == 200
assert built == [42] * 5, built
for _ in range(5):
    assert done.acquire(timeout=30)
server.stop()
server.join(30)
assert awaited == [8] * 5, awaited
right("Five sessions: a blocking call in the builder, a handle awaited in a callback on Panel's loop.")
