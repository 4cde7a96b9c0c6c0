# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees of `background`, `TaskGroup`, `map` and `try_go`. Checked by mypy and pyright, both strict; never run."""

from collections.abc import Iterator
from typing import assert_type

import omniloop
from omniloop import Engine, Failure, Runtime, Sent, Task, TaskGroup, background

# --- background -------------------------------------------------------------------------------------------------------


@background
async def fetch(url: str, *, retries: int = 0) -> bytes:
    return url.encode()


@background
def store(data: bytes) -> int:
    return len(data)


def on_error(failure: Failure) -> None: ...


@background(daemon=True, name="poller", limit=3, on_error=on_error, runtime=omniloop.shared_runtime())
async def poll(every: float) -> None: ...


@background(limit=2)
def resize(path: str) -> bool:
    return bool(path)


assert_type(fetch("", retries=1), Task[bytes])
assert_type(store(b""), Task[int])
assert_type(poll(0.5), Task[None])
assert_type(resize(""), Task[bool])
fetch(5)  # type: ignore[arg-type]
fetch("", tries=1)  # type: ignore[call-arg]
poll("often")  # type: ignore[arg-type]
background(daemon=True, colour="red")  # type: ignore[call-overload]


async def awaiting() -> None:
    assert_type(await fetch(""), bytes)
    assert_type(await store(b""), int)


class Mailer:
    @background
    async def send(self, to: str) -> int:
        return len(to)

    @classmethod
    @background
    async def ping(cls, host: str) -> float:
        return 0.5

    @staticmethod
    @background
    def compress(data: bytes) -> bytes:
        return data


assert_type(Mailer().send("you"), Task[int])
assert_type(Mailer.ping(""), Task[float])
assert_type(Mailer.compress(b""), Task[bytes])
Mailer().send(b"you")  # type: ignore[arg-type]


# A class stays the class that it was.
@background
class Worker:
    def __init__(self, name: str) -> None:
        self.name = name

    async def work(self) -> None: ...


assert_type(Worker(""), Worker)


@background(daemon=True)
class Other:
    async def work(self) -> None: ...


assert_type(Other(), Other)

# --- TaskGroup --------------------------------------------------------------------------------------------------------


async def size(url: str) -> int:
    return len(url)


def area(width: int, height: int = 1) -> float:
    return width * height


def in_sync_code() -> float:
    with TaskGroup(limit=2, timeout=1.5, supervised=True, runtime=omniloop.shared_runtime()) as group:
        assert_type(group, TaskGroup)
        assert_type(group.go(size(""), name="size"), Task[int])
        assert_type(group.create_task(size("")), Task[int])
        assert_type(group.call_soon(area, 1, 2), Task[float])
        task = group.to_thread(area, 1, height=2)
        assert_type(task, Task[float])
        group.go(size)  # type: ignore[arg-type]
        group.to_thread(area, "1")  # type: ignore[arg-type]
    # After the block: a checker must not think that it may swallow errors.
    return task.result()


async def in_async_code() -> int:
    async with TaskGroup() as group:
        task = group.go(size(""))
        group.cancel()
    return await task


# --- map --------------------------------------------------------------------------------------------------------------


def progress(done: int, total: int | None) -> None: ...


assert_type(omniloop.map(size, ["a", "b"]), Iterator[int])
assert_type(omniloop.map(area, [1, 2], limit=4, ordered=False, progress=progress), Iterator[float])
assert_type(omniloop.map(area, [1], return_exceptions=True), Iterator[float | Exception])
omniloop.map(area, [1], timeout=5)  # type: ignore[arg-type]
assert_type(omniloop.map(size, ["a"], return_exceptions=True), Iterator[int | Exception])
omniloop.map(size, ["a"], timeout="5")  # type: ignore[call-overload]
omniloop.map(size, [1, 2])  # type: ignore[arg-type]
omniloop.map(size, ["a"], progress=print, limit="4")  # type: ignore[call-overload]

# --- try_go, bounds and several runtimes ------------------------------------------------------------------------------

assert_type(omniloop.try_go(size("")), Task[int] | None)
with Runtime(name="mine", max_pending=10, when_full="drop_old") as runtime:
    assert_type(runtime.try_go(size(""), name="size", daemon=True), Task[int] | None)

# --- handed over --------------------------------------------------------------------------------------------------------


def handed_over(jobs: Engine) -> None:
    @background(broker=jobs, name="length", limit=3)
    async def length(text: str) -> int:
        return len(text)

    @background(broker=jobs)
    def plain(width: float) -> float:
        return width

    sent = length("a")
    assert_type(sent, Sent[int])
    assert_type(sent.result(timeout=1), int)
    assert_type(sent.accepted, Task[None])
    assert_type(plain(1.5), Sent[float])
    length(1)  # type: ignore[arg-type]
    background(broker="amqp://")  # type: ignore[call-overload]
    background(broker=jobs, daemon=True)  # type: ignore[call-overload]
