# /// script
# requires-python = "==3.14.*"
# dependencies = ["asyncssh==2.24.1"]
# ///
"""
An SSH server of asyncssh's on omniloop's loop; `enter(asyncssh.connect(…))` in the main thread: twenty commands at once, a process that is talked to, SFTP, lines by `iterate`.
"""

import contextlib
from pathlib import Path

import asyncssh

import omniloop
from ending import right

key = asyncssh.generate_private_key("ssh-ed25519")
Path("served").mkdir()


async def handle(process):
    if process.command == "lines":
        for number in range(5):
            process.stdout.write(f"line {number}\n")
    elif process.command:
        process.stdout.write(f"did {process.command}\n")
    else:
        async for line in process.stdin:
            process.stdout.write(line.upper())
    process.exit(0)


@contextlib.asynccontextmanager
async def serving():
    async with asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        process_factory=handle,
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=b"served"),
    ) as server:
        yield server.get_port()


async def read(connection):
    async with connection.create_process("lines") as process:
        async for line in process.stdout:
            yield line


async def talk(connection):
    async with connection.create_process() as process:
        process.stdin.write("quiet\n")
        answer = await process.stdout.readline()
        process.stdin.write_eof()
        return answer


async def files(connection):
    async with connection.start_sftp_client() as sftp:
        async with sftp.open("hello.txt", "w") as file:
            await file.write("hello")
        return await sftp.listdir(".")


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
    assert omniloop.run(talk(connection), timeout=20) == "QUIET\n"
    assert "hello.txt" in omniloop.run(files(connection), timeout=20)
assert Path("served/hello.txt").read_text() == "hello"
right(
    "A connection that sync code keeps open in a `with`: commands at once, a conversation, files, lines in a `for` loop."
)
