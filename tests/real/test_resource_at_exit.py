"""A real client with a reader and a heartbeat of its own is closed in order when the program ends: RabbitMQ's server sees it say goodbye."""

import os
import time

import pytest

pytest.importorskip("aio_pika")

import aio_pika
from servers import wait_until

import omniloop
from children import run_child

pytestmark = [pytest.mark.servers, pytest.mark.timeout(150)]


def program():
    async def connect():
        return await aio_pika.connect_robust(os.environ["AMQP_URL"], heartbeat=1)

    connection = omniloop.resource(connect)

    async def open_channel():
        return await (await connection).channel()

    channel = omniloop.resource(open_channel)

    async def send_and_get(channel):
        queue = await channel.declare_queue(exclusive=True)
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key=queue.name)
        async with queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                return message.body

    print(channel.run(send_and_get).decode())


@pytest.mark.promise("A RabbitMQ connection that is a resource is closed in order at exit", section="Resources")
def test_a_connection_to_rabbitmq_is_closed_in_order_at_exit(rabbitmq):
    """Its reader was cancelled before it was closed: `close()` hung in 3 of 27 exits, and the server logged an unexpected end."""
    before = rabbitmq.log().count("closing AMQP connection")
    exits = 10

    for _ in range(exits):
        result = run_child(program, env={"AMQP_URL": rabbitmq.url}, timeout=60)
        assert (result.stdout, result.stderr, result.code) == ("hello\n", "", 0)

    wait_until(lambda: rabbitmq.log().count("user 'guest' authenticated") >= exits, rabbitmq.log)
    # What it has to say of the last one it says a moment later.
    time.sleep(0.5)
    log = rabbitmq.log()
    assert "unexpectedly" not in log and "abruptly" not in log
    assert log.count("closing AMQP connection") - before <= 2 * exits
