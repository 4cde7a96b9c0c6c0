"""What is called and worked on in the tests of brokers: each start and each end is written down, in one line each."""

import asyncio
import os
import sys

from omniloop import background, current_delivery

KIND, URL = os.environ["BROKER_KIND"], os.environ["BROKER_URL"]
BOOK = os.open(os.environ["BOOK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(*words: object) -> None:
    # One write to a file that is open for appending: whole, whoever else writes, and there when the writer is killed.
    os.write(BOOK, (" ".join(map(str, words)) + "\n").encode())


def make():
    if KIND == "rabbitmq":
        from taskiq_aio_pika import AioPikaBroker

        broker = AioPikaBroker(URL, qos=100, reconnect_interval=0.3)
        if os.environ.get("QUEUE") == "classic":
            from taskiq_aio_pika.queue import Queue, QueueType

            broker = broker.with_queue(Queue(type=QueueType.CLASSIC))
    else:
        from nats.js.api import ConsumerConfig
        from taskiq_nats import PullBasedJetStreamBroker

        # By default it waits for a call without end.
        pull = {} if os.environ.get("PULL") == "default" else {"pull_consume_batch": 100, "pull_consume_timeout": 1}
        config = ConsumerConfig(durable_name="taskiq_durable", ack_wait=2)
        broker = PullBasedJetStreamBroker(URL, consumer_config=config, reconnect_time_wait=0.3, **pull)
    if results := os.environ.get("RESULTS_URL"):
        from taskiq_redis import RedisAsyncResultBackend

        broker = broker.with_result_backend(RedisAsyncResultBackend(results))
    return broker


def engine():
    if KIND == "outbox":
        from omniloop.ext.outbox import Outbox

        return Outbox(URL)
    from omniloop.ext.taskiq import Taskiq

    jobs = Taskiq(make)
    if path := os.environ.get("OUTBOX"):
        from omniloop.ext.outbox import Outbox

        global broker
        broker = jobs.broker
        return Outbox(path, jobs)
    broker = jobs.broker
    return jobs


broker = None
jobs = engine()


@background(broker=jobs, name="work")
async def work(number: int, seconds: float = 0) -> int:
    delivery = current_delivery()
    assert delivery is not None
    note("started", number, delivery.attempt)
    # The second time at once: what is measured is that it comes.
    await asyncio.sleep(seconds if delivery.attempt == 1 else 0)
    note("ended", number, delivery.attempt)
    return number * 2


def call(number: int, seconds: float = 0):
    sent = work(number, seconds)
    note("returned", number)
    sent.accepted.add_done_callback(lambda task: task.cancelled() or note("accepted", number))
    return sent


if __name__ == "__main__":
    # calls.py <how many> <seconds each>
    import calls

    for at in range(int(sys.argv[1])):
        calls.call(at, float(sys.argv[2]))
    note("last line")
