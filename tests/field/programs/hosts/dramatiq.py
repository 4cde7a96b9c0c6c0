# /// script
# requires-python = "==3.14.*"
# dependencies = ["dramatiq==2.2.1"]
# ///
"""
A `StubBroker` and a `Worker`: actors that call `run`, async actors by dramatiq's own `AsyncIO` middleware that await `go`.

Differs: With a StubBroker time limits apply only after `broker.emit_after("process_boot")`; they are looked at once a second, and do not interrupt a wait in `run()` after its first second: pass `timeout=` there.
"""

import asyncio

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware.asyncio import AsyncIO

import omniloop
from ending import right

broker = StubBroker()
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)
seen = []


async def double(number):
    await asyncio.sleep(0.01)
    return number * 2


@dramatiq.actor(max_retries=0)
def sync_actor(number):
    seen.append(omniloop.run(double(number), timeout=20))


@dramatiq.actor(max_retries=0)
async def async_actor(number):
    seen.append(await omniloop.go(double(number)))


broker.emit_after("process_boot")
worker = dramatiq.Worker(broker, worker_timeout=100)
worker.start()
for number in range(20):
    sync_actor.send(number)
    async_actor.send(number)
broker.join("default", timeout=60_000)
worker.join()
worker.stop()
assert sorted(seen) == sorted([2 * number for number in range(20)] * 2)
right("Twenty sync actors and twenty async ones, whose loop is dramatiq's and whose handles are omniloop's.")
