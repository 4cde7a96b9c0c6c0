"""A failure that nobody holds is reported at once, not when the garbage collector happens to come by."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator

import pytest

from omniloop import Failure, Runtime


def fail() -> None:
    raise LookupError


async def fail_at_once() -> None:
    fail()


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.promise("A failure that nobody holds is reported at once, without waiting for a garbage collection")
@pytest.mark.parametrize(
    "submit",
    [
        lambda runtime: runtime.go(fail_at_once()),
        lambda runtime: runtime.go(fail_later()),
        lambda runtime: runtime.call_soon(fail),
        lambda runtime: runtime.call_later(0, fail),
        lambda runtime: runtime.call_later(0, fail_at_once),
        lambda runtime: runtime.to_thread(fail),
    ],
    ids=["go, at once", "go, later", "call_soon", "call_later", "call_later, async", "to_thread"],
)
@pytest.mark.usefixtures("no_collection")
def test_a_forgotten_failure_is_reported_without_a_collection(submit: Callable[[Runtime], object]):
    """The frames of the error referred, as their caller, to the frame that started the work, and that to the task: a circle."""
    reported: list[Failure] = []
    with Runtime(on_error=reported.append) as runtime:
        submit(runtime)
        give_up = time.monotonic() + 2
        while not reported and time.monotonic() < give_up:
            runtime.flush(timeout=5)

        assert [type(failure.exception) for failure in reported] == [LookupError]
