# /// script
# requires-python = "==3.14.*"
# dependencies = ["rloop==0.5.0"]
# ///
"""
`configure(loop_factory=rloop.new_event_loop)`: order, a server and a client, a subprocess, `to_thread`, a name that is looked up, time limits, `every`, a fork; handles awaited from asyncio's loop.

Differs: It has no servers on Unix sockets, and says so (`NotImplementedError`).
"""

import asyncio

import rloop

import omniloop
from ending import right
from foreign_loop import ask_of

ask_of(rloop.new_event_loop)
try:
    omniloop.run(asyncio.start_unix_server(print, "socket"), timeout=20)
except NotImplementedError:
    pass
else:
    raise AssertionError("it has Unix servers")
right(
    "A hundred tasks in the order of their submission, awaited from asyncio's loop; a server, a client and a subprocess; the child of a fork has a loop of its own."
)
