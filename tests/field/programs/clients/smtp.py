# /// script
# requires-python = "==3.14.*"
# dependencies = ["aiosmtplib==5.1.3", "aiosmtpd==1.4.6"]
# ///
"""
Letters: `aiosmtplib.send` forgotten by `go` and awaited by `run`, to a server of aiosmtpd's, whose `Controller` has a loop in a thread of its own, and to one on omniloop's loop.
"""

import asyncio
from email.message import EmailMessage

import aiosmtplib
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

import omniloop
from ending import right
from local_servers import free_port


class Keeps:
    def __init__(self):
        self.letters = []

    async def handle_DATA(self, server, session, envelope):
        self.letters.append(envelope.content.decode().strip().splitlines()[-1])
        return "250 kept"


def letter(number):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", "field"
    message.set_content(f"number {number}")
    return message


async def serve(handler):
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(handler), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


theirs, ours = Keeps(), Keeps()
controller = Controller(theirs, hostname="127.0.0.1", port=free_port())
controller.start()
server, port = omniloop.run(serve(ours), timeout=20)
for number in range(20):
    omniloop.go(aiosmtplib.send(letter(number), hostname="127.0.0.1", port=controller.port))
omniloop.run(aiosmtplib.send(letter(99), hostname="127.0.0.1", port=port), timeout=20)
with omniloop.enter(aiosmtplib.SMTP(hostname="127.0.0.1", port=port)) as client:
    omniloop.run(client.send_message(letter(100)), timeout=20)
omniloop.flush(timeout=60)
controller.stop()
assert sorted(theirs.letters) == sorted(f"number {number}" for number in range(20)), theirs.letters
assert ours.letters == ["number 99", "number 100"], ours.letters
omniloop.call_soon(server.close).result(timeout=20)
right("Letters that are forgotten, awaited, and sent over a connection that sync code keeps open.")
