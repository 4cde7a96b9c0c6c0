# /// script
# requires-python = "==3.14.*"
# dependencies = ["veloxloop==0.2.0"]
# ///
"""
`configure(loop_factory=veloxloop.new_event_loop)`: order, a server and a client, `to_thread`, a name that is looked up, time limits, `every`, a fork; handles awaited from asyncio's loop.

Differs: It has no subprocesses, and says so (`NotImplementedError`): start them in a `Runtime` with asyncio's loop.
"""

import veloxloop

import omniloop
from ending import right
from foreign_loop import ask_of, subprocess

ask_of(veloxloop.new_event_loop, subprocesses=False)
try:
    omniloop.run(subprocess(), timeout=20)
except NotImplementedError:
    pass
else:
    raise AssertionError("it has subprocesses: ask for them")
right(
    "A hundred tasks in the order of their submission, awaited from asyncio's loop; a server and a client; the child of a fork has a loop of its own."
)
