# /// script
# requires-python = "==3.14.*"
# dependencies = ["redis==8.1.0"]
#
# [tool.field]
# commands = ["redis-server"]
# ///
"""
`redis.asyncio` with a server of its own: one client in `run`, a pipeline, pub/sub by `iterate`, a hundred commands at once.
"""

import redis.asyncio

import omniloop
from ending import right
from local_servers import redis_server


async def add(client, number):
    return await client.sadd("numbers", number)


async def pipelined(client):
    async with client.pipeline(transaction=True) as pipeline:
        return await pipeline.set("a", 1).incr("a").get("a").execute()


async def heard(client):
    async with client.pubsub() as listener:
        await listener.subscribe("news")
        async for message in listener.listen():
            if message["type"] == "subscribe":
                omniloop.go(client.publish("news", "it works"))
            else:
                yield message["data"]


with redis_server() as port:
    client = redis.asyncio.Redis(host="127.0.0.1", port=port, decode_responses=True)
    with omniloop.TaskGroup() as group:
        for number in range(100):
            group.go(add(client, number))
    assert omniloop.run(client.scard("numbers"), timeout=20) == 100
    assert omniloop.run(pipelined(client), timeout=20) == [True, 2, "2"]
    for message in omniloop.iterate(heard(client)):
        assert message == "it works"
        break
    omniloop.run(client.aclose(), timeout=20)
right("A client made in sync code serves every call of `run`; a listener is left by `break`, and is closed.")
