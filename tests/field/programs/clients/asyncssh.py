# /// script
# requires-python = "==3.14.*"
# dependencies = ["asyncssh==2.24.1"]
# ///
"""
An SSH server of asyncssh's on omniloop's loop; `enter(asyncssh.connect(…))` in the main thread: twenty commands at once, lines by `iterate`.
"""

import contextlib

import asyncssh

import omniloop
from ending import right

key = asyncssh.generate_private_key("ssh-ed25519")


async def handle(process):
    if process.command == "lines":
        for number in range(5):
            process.stdout.write(f"line {number}\n")
    else:
        process.stdout.write(f"did {process.command}\n")
    process.exit(0)


@contextlib.asynccontextmanager
async def serving():
    async with asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        process_factory=handle,
    ) as server:
        yield server.get_port()


async def read(connection):
    async with connection.create_process("lines") as process:
        async for line in process.stdout:
            yield line


with (
    omniloop.enter(serving()) as port,
    omniloop.enter(
        asyncssh.connect("127.0.0.1", port, client_keys=[key], known_hosts=None, username="me")
    ) as connection,
):
    with omniloop.TaskGroup() as group:
        handles = [group.go(connection.run(f"job {number}")) for number in range(20)]
    assert [handle.result().stdout for handle in handles] == [f"did job {number}\n" for number in range(20)]
    assert list(omniloop.iterate(read(connection))) == [f"line {number}\n" for number in range(5)]
    assert omniloop.run(connection.run("last"), timeout=20).stdout == "did last\n"
right("A connection that sync code keeps open in a `with`: commands at once, lines in a `for` loop.")
