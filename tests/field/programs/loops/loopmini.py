# /// script
# requires-python = "==3.14.*"
# dependencies = ["loopmini==0.2.3"]
# ///
"""
`configure(loop_factory=loopmini.new_event_loop)`: order, a server and a client, a subprocess, `to_thread`, a name that is looked up, time limits, `every`, a fork; handles awaited from asyncio's loop.
"""

import loopmini

from ending import right
from foreign_loop import ask_of

ask_of(loopmini.new_event_loop)
right(
    "A hundred tasks in the order of their submission, awaited from asyncio's loop; a server, a client and a subprocess; the child of a fork has a loop of its own."
)
