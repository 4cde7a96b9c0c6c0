# /// script
# requires-python = "==3.14.*"
# dependencies = ["nats-py==2.16.0"]
#
# [tool.field]
# commands = ["nats-server"]
# ///
"""
nats-py with a server of its own: one client made by `run`, requests and replies from ten threads, a subscription read by `iterate`, JetStream, `drain` at the end.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import nats

import omniloop
from ending import right
from local_servers import free_port, wait_for

port = free_port()
server = subprocess.Popen(
    ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", "store"], stdout=-3, stderr=-3
)


async def serve(client):
    async def double(message):
        await message.respond(message.data * 2)

    await client.subscribe("double", cb=double)
    await client.flush()


async def heard(client):
    subscription = await client.subscribe("news")
    await client.flush()
    for number in range(5):
        await client.publish("news", b"%d" % number)
    async for message in subscription.messages:
        yield message.data


async def kept(client):
    stream = client.jetstream()
    await stream.add_stream(name="jobs", subjects=["jobs"])
    for number in range(3):
        await stream.publish("jobs", b"job %d" % number)
    subscription = await stream.pull_subscribe("jobs", "worker")
    messages = await subscription.fetch(3, timeout=10)
    for message in messages:
        await message.ack()
    return [message.data for message in messages]


def ask(number):
    return omniloop.run(client.request("double", b"%d." % number, timeout=20), timeout=30).data


try:
    wait_for(port)
    client = omniloop.run(nats.connect(f"nats://127.0.0.1:{port}"), timeout=20)
    omniloop.run(serve(client), timeout=20)
    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(ask, range(100))) == [b"%d." % number * 2 for number in range(100)]
    received = []
    for data in omniloop.iterate(heard(client)):
        received.append(data)
        if len(received) == 5:
            break
    assert received == [b"0", b"1", b"2", b"3", b"4"]
    assert omniloop.run(kept(client), timeout=20) == [b"job 0", b"job 1", b"job 2"]
    omniloop.run(client.drain(), timeout=20)
finally:
    server.terminate()
    server.wait(30)
right(
    "A hundred requests of ten threads over one client, a subscription that is left by `break`, and JetStream's messages."
)
