# /// script
# requires-python = "==3.14.*"
# dependencies = ["ipython==9.18.1", "pexpect==4.9.0"]
# ///
"""
IPython's shell in a terminal: `run`, a top-level `await go(…)`, an interrupt of `run` by Ctrl-C, output of forgotten work at the prompt, `%autoreload 2` after a module of one's own, with a twin in it, has changed, work that is unfinished at `exit`.
"""

import os
import sys
import time
from pathlib import Path

import pexpect

from ending import right

SOURCE = """
import omniloop
class Client:
    async def value(self):
        return {!r}
SyncClient = omniloop.blocking(Client)
def value():
    return SyncClient().value()
"""
Path("mine.py").write_text(SOURCE.format("first"), encoding="utf-8")
shell = pexpect.spawn(
    sys.executable,
    ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
    encoding="utf-8",
    timeout=60,
    env={**os.environ, "IPYTHONDIR": os.getcwd(), "TERM": "dumb"},
)
number = 0


def cell(source, expected):
    global number
    number += 1
    shell.expect_exact(f"In [{number}]: ")
    shell.sendline(source)
    if expected is not None:
        shell.expect_exact(expected)


cell(
    f"import sys; sys.path.insert(0, {os.getcwd()!r}); import asyncio, omniloop, mine; print('im' + 'ported')",
    "imported",
)
cell("print('got', omniloop.run(asyncio.sleep(0.01, 4)) * 2)", "got 8")
cell("print('got', await omniloop.go(asyncio.sleep(0.01, 5)) * 2)", "got 10")
cell("print('wai' + 'ts'); omniloop.run(asyncio.sleep(3600))", "waits")
time.sleep(0.5)
shell.sendintr()
shell.expect_exact("KeyboardInterrupt")
cell("%load_ext autoreload", None)
cell("%autoreload 2", None)
cell("print('got', mine.value(), omniloop.run(asyncio.sleep(0, 6)))", "got first 6")
time.sleep(1.1)
Path("mine.py").write_text(SOURCE.format("second"), encoding="utf-8")
cell("print('got', mine.value(), omniloop.run(asyncio.sleep(0, 7)))", "got second 7")
cell(
    "handle = omniloop.go(asyncio.to_thread(lambda: (__import__('time').sleep(0.5), open('late.txt', 'w').write('x'))))",
    None,
)
cell("exit", None)
shell.expect(pexpect.EOF)
shell.close()
assert shell.exitstatus == 0
assert Path("late.txt").read_text() == "x"
right("Blocking and awaited calls, Ctrl-C, a module that is loaded anew at each change, and the drain at `exit`.")
