"""
asyncio's side, in an order that a seed chooses: what is ready in one turn of the loop runs in any order, and time is virtual.

What one callback schedules after another still comes after it, as asyncio promises it for each; the order among those that became ready on
their own (timers, wake-ups from other threads, tasks) is nobody's promise, and differs from run to run. `OMNILOOP_ORDERS` says how many
orders are tried (200 each by default). simloop 0.2 has such a loop, and refuses calls from other threads, which is what a runtime is.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from explorer import Copy, Loop, repeat, unexplored

ORDERS = int(os.environ.get("OMNILOOP_ORDERS", "200"))
STEPS = [0, 0.001, 0.002]


class ShuffledLoop(Loop):
    """Runs the timers and tasks that are ready in one turn in an order that a seed chooses."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def _run_once(self) -> None:
        ready: Any = self._ready
        steps = [handle for handle in ready if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)]
        places = [place for place, handle in enumerate(ready) if handle in steps]
        self._rng.shuffle(steps)
        for place, handle in zip(places, steps, strict=True):
            ready[place] = handle
        super()._run_once()


def in_order(copy: Copy, seed: int, scenario: Any) -> list[str]:
    """Run a scenario on a runtime whose loop goes by *seed*; return what it noted."""
    rng = random.Random(seed)
    noted: list[str] = []
    with unexplored():
        runtime = copy.omniloop.Runtime(
            name="shuffled",
            loop_factory=lambda: ShuffledLoop(rng),
            slow_callback=None,
            max_workers=1,
            on_error=lambda failure: noted.append(f"reported: {failure.exception!r}"),
        )
        try:
            scenario(copy, runtime, rng, noted)
        finally:
            runtime.shutdown()
    return noted


async def work(rng: random.Random, noted: list[str], name: str, steps: int) -> str:
    try:
        for _ in range(steps):
            await asyncio.sleep(rng.choice(STEPS))
    except asyncio.CancelledError:
        await asyncio.sleep(rng.choice(STEPS))
        noted.append(f"{name} cancelled")
        raise
    noted.append(f"{name} done")
    return name


def drains(copy: Copy, runtime: Any, rng: random.Random, noted: list[str]) -> None:
    """What was accepted is done when the drain is over, in whichever order; daemons are cancelled, and clean up."""

    async def spawns(name: str) -> None:
        runtime.go(work(rng, noted, f"{name}, spawned", 2))

    for number in range(4):
        runtime.go(work(rng, noted, f"work {number}", number))
        runtime.go(spawns(f"work {number}"))
    runtime.go(work(rng, noted, "daemon", 10_000), daemon=True)
    runtime.shutdown()

    wanted = [f"work {number}{spawned} done" for number in range(4) for spawned in ("", ", spawned")]
    # A daemon that is cancelled before its first step has nothing to clean up.
    assert sorted(set(noted) - {"daemon cancelled"}) == sorted(wanted)
    assert len(noted) == len(set(noted))


def cancels(copy: Copy, runtime: Any, rng: random.Random, noted: list[str]) -> None:
    """What is asked to end comes out as cancelled when its clean-up is done, or as done; never as both, and never as neither."""
    tasks = [runtime.go(work(rng, noted, f"work {number}", 3)) for number in range(6)]
    for task in rng.sample(tasks, 4):
        task.cancel()
    runtime.flush()

    for number, task in enumerate(tasks):
        assert task.done()
        assert (f"work {number} done" in noted) == (not task.cancelled())
        assert not (task.cancelled() and f"work {number} done" in noted)


def groups(copy: Copy, runtime: Any, rng: random.Random, noted: list[str]) -> None:
    """The first that fails cancels the others, and the block ends when all have ended."""

    async def fails() -> None:
        await asyncio.sleep(rng.choice(STEPS))
        raise LookupError

    with pytest.raises(ExceptionGroup) as raised, copy.omniloop.TaskGroup(runtime=runtime) as group:
        tasks = [group.go(work(rng, noted, f"work {number}", 2_000)) for number in range(4)]
        group.go(fails())

    assert [type(error) for error in raised.value.exceptions] == [LookupError]
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("scenario", [drains, cancels, groups], ids=lambda scenario: scenario.__name__)
def test_what_is_promised_holds_in_any_order_of_callbacks(scenario: Any, record_property: Any) -> None:
    seeds = iter(range(ORDERS))
    found: list[list[str]] = []

    def model(copy: Copy) -> None:
        with unexplored():
            seed = next(seeds)
            first = in_order(copy, seed, scenario)
            # The same seed, the same order.
            if seed % 50 == 0:
                assert in_order(copy, seed, scenario) == first, f"seed {seed}"
            found.append(first)

    explored = repeat(model, ORDERS)
    if explored.error is not None:
        raise explored.error

    # Of 24 or more that can come out.
    assert len({tuple(noted) for noted in found}) >= min(ORDERS, 10)
    record_property("orders", f"{len(found)} orders, {explored.seconds:.1f} s")
