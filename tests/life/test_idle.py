"""Idle costs nothing: no thread of a runtime is woken in an idle second, and who waits is woken by the outcome alone."""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from omniloop import Runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the switches that Linux keeps for each thread")


def wakeups(native_ids):
    """How often these threads have gone to sleep by themselves: each time but the last, they were woken."""
    total = 0
    for native_id in native_ids:
        status = Path(f"/proc/{os.getpid()}/task/{native_id}/status").read_text()
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary"))
    return total


def in_an_idle_second(native_ids):
    """
    The wake-ups in a second of doing nothing: the fewest of some, one after the other.

    On a busy machine what was still to come, as the watchdog's last look, comes late. Who polls is woken in each of them.
    """
    fewest = None
    for _ in range(10):
        before = wakeups(native_ids)
        # The time is what is measured here, and not an order.
        time.sleep(1.2)
        woken = wakeups(native_ids) - before
        fewest = woken if fewest is None else min(fewest, woken)
        if not fewest:
            break
    return fewest


def threads_of(runtime):
    return [thread.native_id for thread in threading.enumerate() if thread.name.startswith(runtime.name)]


async def noop():
    pass


@pytest.mark.promise("An idle runtime wakes no thread for a second: nothing polls")
def test_an_idle_runtime_wakes_no_thread_for_a_second():
    with Runtime(name="idle") as runtime:
        runtime.go(noop())
        runtime.to_thread(int).result()
        runtime.call_later(3600, int)
        runtime.flush()

        woken = in_an_idle_second(threads_of(runtime))

    assert woken == 0


@pytest.mark.promise("Nor does work that waits")
def test_pending_work_that_waits_wakes_no_thread_for_a_second():
    """With the watchdog off, because on uvloop it has to ask, for as long as work is pending."""
    with Runtime(name="pending", slow_callback=None) as runtime:
        event = asyncio.Event()
        tasks = [runtime.go(event.wait()) for _ in range(10)]
        runtime.every(3600, int)
        runtime.run(noop())

        woken = in_an_idle_second(threads_of(runtime))

        runtime.call_soon(event.set)
        assert all(task.result(timeout=5) for task in tasks)
    assert woken == 0


@pytest.mark.promise("A thread that waits long wakes up once a second at the most")
def test_a_thread_that_waits_long_wakes_up_once_a_second_at_the_most():
    """Only then does it see what another thread has set for it: an exception, a debugger."""
    with Runtime(name="waited for", slow_callback=None) as runtime:
        event = asyncio.Event()
        task = runtime.go(event.wait())
        waiter = threading.Thread(target=task.result)
        waiter.start()
        counts = []
        for _ in range(5):
            before, began = wakeups([waiter.native_id]), time.monotonic()
            time.sleep(2)
            # A busy machine may wake it once more than that: for a lock that another thread holds just then.
            counts.append(wakeups([waiter.native_id]) - before - (time.monotonic() - began))
            if counts[-1] <= 1:
                break

        runtime.call_soon(event.set)
        waiter.join(timeout=5)
        assert not waiter.is_alive()
    assert min(counts) <= 1
