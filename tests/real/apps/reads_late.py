"""A view that leaves work which reads the form when the request is over; with the guard, or without."""

import asyncio
import os
import threading

from flask import Flask, request

import omniloop

app = Flask(__name__)
if os.environ["GUARD"] == "yes":
    from omniloop.ext.flask import guard

    guard(app)
over = threading.Event()
found = []


async def read_late() -> None:
    await asyncio.to_thread(over.wait)
    try:
        found.append(f"form: {request.form.get('name')}")
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")


@app.post("/leave")
def leave():
    omniloop.go(read_late())
    return "left"


@app.get("/found")
def show():
    over.set()
    omniloop.flush()
    return found[0]


@app.get("/pid")
def pid():
    return str(os.getpid())
