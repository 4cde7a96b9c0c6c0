"""A failure that nobody holds is reported at once, not when the garbage collector happens to come by."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator

import pytest

from omniloop import Failure, Runtime, _report


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


class Boom(Exception):
    pass


async def fails(error, number):
    raise error(f"number {number}")


@pytest.fixture
def within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy machine takes for them."""
    monkeypatch.setattr(_report, "STORM", 60)


def messages(caplog):
    return [record.exc_info[1].args[0] for record in caplog.records]


@pytest.mark.promise("Of equal failures within a second the log shows the first and the last, and `on_error` gets each")
def test_equal_failures_in_a_storm_are_grouped_in_the_log(caplog, within_a_second):
    """A thousand tracebacks of one failed server tell no more than two."""
    with Runtime(name="storm") as runtime:
        for number in range(1000):
            runtime.go(fails(Boom, number))
        runtime.flush()

        assert messages(caplog) == ["number 0", "number 999"]
        assert caplog.messages[1].startswith("998 more like the one before within a second, and: Task 'fails' failed")


def test_on_error_gets_each_of_a_storm():
    failures = []
    with Runtime(name="storm", on_error=failures.append) as runtime:
        for number in range(1000):
            runtime.go(fails(Boom, number))

    assert [failure.exception.args for failure in failures] == [(f"number {number}",) for number in range(1000)]


def test_failures_of_another_type_or_from_another_place_are_of_another_group(caplog, within_a_second):
    with Runtime(name="storm") as runtime:
        for number in range(2):
            runtime.go(fails(Boom, f"{number} of one"))
            runtime.go(fails(Boom, f"{number} of another place"))
            runtime.go(fails([Boom, LookupError][number], f"{number} of one type"))
        runtime.flush()

    # On PyPy they come in the order in which the collector finds them.
    assert sorted(messages(caplog)) == [
        "number 0 of another place",
        "number 0 of one",
        "number 0 of one type",
        "number 1 of another place",
        "number 1 of one",
        "number 1 of one type",
    ]


def test_the_last_of_a_storm_is_logged_when_its_second_is_over_though_nothing_else_happens(caplog):
    with Runtime(name="storm") as runtime:
        for number in range(3):
            runtime.go(fails(Boom, number))
        until = time.monotonic() + 8
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.01)

        assert messages(caplog) == ["number 0", "number 2"]


def test_what_a_storm_at_the_end_keeps_is_logged_before_the_end(caplog, within_a_second):
    with Runtime(name="storm") as runtime:
        for number in range(3):
            runtime.go(fails(Boom, number))

    assert messages(caplog) == ["number 0", "number 2"]
