# /// script
# requires-python = "==3.14.*"
# dependencies = ["ipykernel==7.4.0", "jupyter-client==8.10.0"]
# ///
"""
A kernel of its own, driven by jupyter_client: `run` and `await go(…)` in cells, an interrupt during `run`, work that is unfinished when the kernel is shut down.
"""

import time
from pathlib import Path

from jupyter_client.manager import start_new_kernel

from ending import right

manager, client = start_new_kernel(kernel_name="python3")


def cell(source):
    """What the cell printed, and its error's name."""
    printed, errors = [], []

    def output(message):
        content = message["content"]
        if message["header"]["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["header"]["msg_type"] == "error":
            errors.append(content["ename"])

    client.execute_interactive(source, timeout=60, output_hook=output)
    return "".join(printed), errors


try:
    assert cell(
        "import asyncio, time, omniloop\nasync def double(n):\n    await asyncio.sleep(0.01)\n    return n * 2"
    ) == ("", [])
    assert cell("print(omniloop.run(double(2)))") == ("4\n", [])
    assert cell("print(await omniloop.go(double(3)))") == ("6\n", [])
    assert cell("handle = omniloop.go(asyncio.sleep(3600))") == ("", [])

    message = client.execute(
        "print('waits', flush=True)\ntry:\n    omniloop.run(asyncio.sleep(3600))\nfinally:\n    print('left')"
    )
    while True:
        heard = client.get_iopub_msg(timeout=60)
        if heard["parent_header"].get("msg_id") == message and heard["content"].get("text") == "waits\n":
            break
    time.sleep(0.2)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=60)
    assert reply["content"].get("ename") == "KeyboardInterrupt", reply
    assert cell("handle.cancel()\nprint(omniloop.run(double(4)))") == ("8\n", [])
    assert cell(
        "async def late():\n    await asyncio.sleep(0.3)\n    open('late.txt', 'w').write('done')\nhandle = omniloop.go(late())"
    ) == ("", [])
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=False)
assert Path("late.txt").read_text() == "done"
right(
    "Blocking and awaited calls in cells; the interrupt ends `run` with `KeyboardInterrupt` and the kernel goes on; a shutdown of the kernel finishes forgotten work."
)
