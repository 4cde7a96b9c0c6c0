"""So much that is pending that it may be memory without end is warned of, once."""

import asyncio
import logging
import threading

import pytest

from omniloop import Runtime
from omniloop._seen import watchdog

# What is shown does not depend on how many they are, and a hundred thousand take a busy machine a minute.
CROWD = 10_000


@pytest.fixture(autouse=True)
def _a_smaller_crowd(monkeypatch):
    assert watchdog._CROWD == 100_000
    monkeypatch.setattr(watchdog, "_CROWD", CROWD)


@pytest.fixture
def told():
    messages, came = [], threading.Event()

    class Told(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
            if "are pending" in messages[-1]:
                came.set()

    handler = Told()
    logger = logging.getLogger("omniloop")
    logger.addHandler(handler)
    yield messages, came
    logger.removeHandler(handler)


@pytest.fixture
def runtime():
    made = Runtime(slow_callback=0.05, cancel_timeout=30)
    yield made
    made.shutdown(timeout=0)


async def slow_service():
    await asyncio.Event().wait()


def by_the_thousand(runtime, thousands):
    for _ in range(thousands * 1000):
        runtime.go(slow_service())


def crowds(messages):
    return [message for message in messages if "are pending" in message]


@pytest.mark.timeout(60)
@pytest.mark.promise(
    "At 100,000 pending a warning names, once, where the most were submitted, and `max_pending`", section="Bounds"
)
def test_at_a_hundred_thousand_pending_a_warning_names_the_sites_and_max_pending(told, runtime):
    """A slow service under fire and forget was memory until the process was killed, and then all was lost."""
    messages, came = told
    by_the_thousand(runtime, 4)
    for _ in range(6_500):
        runtime.go(slow_service())

    assert came.wait(timeout=40)
    by_the_thousand(runtime, 1)
    runtime.run(asyncio.sleep(0.3))
    (message,) = crowds(messages)
    assert message.startswith("omniloop: 1")
    assert "configure(max_pending=…)" in message
    # The most first.
    first, second, *_ = message.partition("submitted")[2].strip().splitlines()
    # Counted when the last of a crowd was there, or soon after.
    assert int(first.partition(" at")[0].replace(",", "")) > 5_500 and "test_at_a_hundred_thousand" in first
    # What is on its way from the inbox to the loop at that moment may be in neither.
    assert int(second.partition(" at")[0].replace(",", "")) > 3_500 and "by_the_thousand" in second


@pytest.mark.timeout(60)
@pytest.mark.promise("Also while a callback blocks the loop", section="Bounds")
def test_what_piles_up_behind_a_blocked_loop_is_warned_of(told, runtime):
    messages, came = told
    gate = threading.Event()
    runtime.call_soon(gate.wait, 50)
    by_the_thousand(runtime, 11)

    assert came.wait(timeout=40)
    gate.set()


@pytest.mark.timeout(60)
def test_where_it_is_bounded_or_less_nothing_is_said(told):
    messages, _ = told
    with Runtime(slow_callback=0.05, max_pending=2 * CROWD) as runtime:
        group = [runtime.go(slow_service()) for _ in range(CROWD + 100)]
        runtime.run(asyncio.sleep(0.3))
        for task in group:
            task.cancel()
    with Runtime(slow_callback=0.05) as runtime:
        group = [runtime.go(slow_service()) for _ in range(1_000)]
        runtime.run(asyncio.sleep(0.3))
        for task in group:
            task.cancel()

    assert crowds(messages) == []
