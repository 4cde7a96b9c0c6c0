# /// script
# requires-python = "==3.14.*"
# dependencies = ["debugpy==1.8.22"]
# ///
"""
A program under `python -m debugpy --listen`, by the protocol that editors speak: a breakpoint in a coroutine on omniloop's loop and one in `to_thread`, variables, continue, the end.
"""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from ending import right
from local_servers import free_port

Path("program.py").write_text(
    """\
import asyncio, omniloop
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2          # line 4
def worker(number):
    return number + 1          # line 6
async def late():
    await asyncio.sleep(0.5)
    print("late", flush=True)
print(omniloop.run(double(21)), flush=True)
print(omniloop.to_thread(worker, 8).result(), flush=True)
omniloop.go(late())
""",
    encoding="utf-8",
)
port = free_port()
program = subprocess.Popen(
    [
        sys.executable,
        "-X",
        "frozen_modules=off",
        "-m",
        "debugpy",
        "--listen",
        f"127.0.0.1:{port}",
        "--wait-for-client",
        "program.py",
    ],
    stdout=-1,
    stderr=-1,
    text=True,
)


class Editor:
    """Speaks the Debug Adapter Protocol."""

    def __init__(self, connection):
        self.file = connection.makefile("rwb")
        self.number = 0
        self.events = []

    def send(self, command, **arguments):
        self.number += 1
        body = json.dumps({"seq": self.number, "type": "request", "command": command, "arguments": arguments}).encode()
        self.file.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.file.flush()
        return self.number

    def read(self):
        length = 0
        while line := self.file.readline().strip():
            length = int(line.split(b":")[1])
        return json.loads(self.file.read(length))

    def ask(self, command, **arguments):
        number = self.send(command, **arguments)
        while True:
            message = self.read()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                return message.get("body", {})
            self.events.append(message)

    def event(self, name):
        while True:
            for message in self.events:
                if message.get("event") == name:
                    self.events.remove(message)
                    return message.get("body", {})
            self.events.append(self.read())


def connect():
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(port)


try:
    connection = connect()
    editor = Editor(connection)
    editor.ask("initialize", adapterID="field")
    attached = editor.send("attach", justMyCode=True)
    editor.event("initialized")
    editor.ask(
        "setBreakpoints", source={"path": str(Path("program.py").resolve())}, breakpoints=[{"line": 4}, {"line": 6}]
    )
    editor.ask("configurationDone")
    seen = []
    for _ in range(2):
        stopped = editor.event("stopped")
        assert stopped["reason"] == "breakpoint", stopped
        names = {thread["id"]: thread["name"] for thread in editor.ask("threads")["threads"]}
        frame = editor.ask("stackTrace", threadId=stopped["threadId"])["stackFrames"][0]
        scopes = editor.ask("scopes", frameId=frame["id"])["scopes"]
        variables = editor.ask("variables", variablesReference=scopes[0]["variablesReference"])["variables"]
        number = {variable["name"]: variable["value"] for variable in variables}["number"]
        seen.append((frame["name"], frame["line"], number, names[stopped["threadId"]]))
        editor.ask("continue", threadId=stopped["threadId"])
    editor.event("terminated")
    # Its adapter lives, and has the program's streams, as long as an editor is connected.
    editor.ask("disconnect")
    editor.file.close()
    connection.close()
    printed, errors = program.communicate(timeout=60)
finally:
    program.kill()
assert [line[:3] for line in seen] == [("double", 4, "21"), ("worker", 6, "8")], seen
assert "omniloop" in seen[0][3] and "omniloop" in seen[1][3], seen
assert printed == "42\n9\nlate\n" and program.returncode == 0, (printed, errors, program.returncode)
right(
    "Breakpoints on the loop's thread and in a worker thread, by the threads' names; `run` waits meanwhile, and forgotten work is finished at the end."
)
