# /// script
# requires-python = "==3.14.*"
# dependencies = ["dash==4.4.1"]
# ///
"""
A Dash app on a threaded server of its own: a callback that calls `run`, twenty at once, and forgets `go`.
"""

import asyncio
import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from dash import Dash, Input, Output, dcc, html
from werkzeug.serving import make_server

import omniloop
from ending import right

forgotten = []
app = Dash(__name__)
app.layout = html.Div([dcc.Input(id="number", value=1), html.Div(id="doubled")])


async def double(number):
    await asyncio.sleep(0.05)
    return number * 2


async def log(number):
    await asyncio.sleep(0.01)
    forgotten.append(number)


@app.callback(Output("doubled", "children"), Input("number", "value"))
def show(number):
    omniloop.go(log(number))
    return omniloop.run(double(number), timeout=20)


def ask(number):
    body = {
        "output": "doubled.children",
        "outputs": {"id": "doubled", "property": "children"},
        "inputs": [{"id": "number", "property": "value", "value": number}],
        "changedPropIds": ["number.value"],
    }
    asked = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/_dash-update-component",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)["response"]["doubled"]["children"]


server = make_server("127.0.0.1", 0, app.server, threaded=True)
thread = threading.Thread(target=server.serve_forever)
thread.start()
with ThreadPoolExecutor(20) as threads:
    assert list(threads.map(ask, range(20))) == [2 * number for number in range(20)]
server.shutdown()
thread.join(30)
omniloop.flush(timeout=20)
assert sorted(forgotten) == list(range(20))
right("Twenty callbacks at once on one loop, and what they forgot.")
