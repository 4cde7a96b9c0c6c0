"""
`@background(broker=…)`: the same function, handed to an engine that keeps it when this process is killed.

Run it: `python examples/outlives_the_process.py`; in memory, with nothing to start. With a broker: put
`--broker amqp://guest:guest@localhost/` (or `nats://localhost`) behind it, and start a worker beside it:
`BROKER=amqp://guest:guest@localhost/ taskiq worker outlives_the_process:broker --fs-discover=no`, in this folder.
"""

import argparse
import asyncio
import os

from omniloop import background, current_delivery, stats
from omniloop.ext.taskiq import Taskiq

parser = argparse.ArgumentParser()
parser.add_argument("--broker", default=os.environ.get("BROKER"))
arguments, _ = parser.parse_known_args()
url = arguments.broker


def make():
    """Make the broker: called in each process that needs one, and again after a fork."""
    if url.startswith("amqp"):
        from taskiq_aio_pika import AioPikaBroker

        return AioPikaBroker(url)
    from taskiq_nats import PullBasedJetStreamBroker

    return PullBasedJetStreamBroker(url)


jobs = Taskiq(make if url else None)
broker = jobs.broker

sent_receipts: set[str] = set()


@background(broker=jobs, name="send_receipt")
async def send_receipt(order: int) -> str:
    """At least once: what was done for this id before is not done again. (A real one asks a database.)"""
    delivery = current_delivery()
    assert delivery is not None
    if delivery.id in sent_receipts:
        return "sent before"
    await asyncio.sleep(0.05)
    sent_receipts.add(delivery.id)
    print(f"receipt for order {order}", flush=True)
    return f"receipt for order {order}, attempt {delivery.attempt}"


def main() -> None:
    try:
        send_receipt()
    except TypeError as error:
        print("refused here, and not in a worker:", error)
    try:
        send_receipt({1, 2})
    except TypeError:
        print("refused: a set would not arrive as one")
    calls = [send_receipt(order) for order in range(3)]
    for sent in calls:
        sent.accepted.result(timeout=30)
    print("the broker has:", stats().handed_over)
    if not url:
        print("the last one:", calls[-1].result(timeout=5))
    for order in range(3, 6):
        send_receipt(order)
    # And the program may end: it waits until the broker has them.


if __name__ == "__main__":
    main()
