# /// script
# requires-python = "==3.14.*"
# dependencies = ["flask==3.1.3"]
# ///
"""
Flask's threaded server: a hundred requests at once that call `run`, and `go` for what the response need not wait for; `current_app` in the coroutine.
"""

import asyncio
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import flask
from werkzeug.serving import make_server

import omniloop
from ending import right

app = flask.Flask("field")
logged = []


async def double(number):
    await asyncio.sleep(0.05)
    return f"{flask.current_app.name} {number * 2} {flask.request.args['number']}"


async def log(number):
    await asyncio.sleep(0.2)
    logged.append(number)


@app.get("/")
def index():
    number = int(flask.request.args["number"])
    omniloop.go(log(number))
    return omniloop.run(double(number), timeout=20)


server = make_server("127.0.0.1", 0, app, threaded=True)
import logging

logging.getLogger("werkzeug").setLevel(logging.ERROR)
thread = threading.Thread(target=server.serve_forever)
thread.start()


def ask(number):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/?number={number}", timeout=30) as answer:
        return answer.read().decode()


with ThreadPoolExecutor(20) as threads:
    assert list(threads.map(ask, range(100))) == [f"field {2 * number} {number}" for number in range(100)]
server.shutdown()
thread.join(30)
assert omniloop.flush(timeout=20) is not False
assert sorted(logged) == list(range(100))
right(
    "A hundred requests on one loop, each with its own `request` and `current_app` in the coroutine; what they forgot is done."
)
