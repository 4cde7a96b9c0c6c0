# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees of `iterate`, `enter`, `queue`, `resource` and `to_process`. Checked by mypy and pyright, both strict; never run."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import StringIO
from types import TracebackType
from typing import assert_type

from omniloop import (
    Iteration,
    ProcessPool,
    Queue,
    Resource,
    Runtime,
    Task,
    aiterate,
    enter,
    iterate,
    queue,
    resource,
    to_process,
)

runtime = Runtime()


class Client:
    async def get(self, url: str) -> bytes:
        return url.encode()

    async def aclose(self) -> None: ...


# --- iterate ----------------------------------------------------------------------------------------------------------


async def numbers() -> AsyncIterator[int]:
    yield 1


async def words() -> AsyncGenerator[str, None]:
    yield ""


assert_type(iterate(numbers()), Iteration[int])
assert_type(iterate(words(), buffer=3, runtime=runtime), Iteration[str])
assert_type(list(iterate(numbers())), list[int])
for number in iterate(numbers()):
    assert_type(number, int)
with iterate(words()) as iteration:
    assert_type(next(iteration), str)
iterate([1, 2])  # type: ignore[arg-type]
iterate(numbers)  # type: ignore[arg-type]
iterate(numbers(), buffer="1")  # type: ignore[arg-type]
plain: Iterator[int] = iterate(numbers())


async def consume() -> None:
    assert_type(aiterate([1, 2]), AsyncGenerator[int, None])
    async for row in aiterate(StringIO(), buffer=10, runtime=runtime):
        assert_type(row, str)
    aiterate(numbers())  # type: ignore[arg-type]


# --- enter ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connect() -> AsyncGenerator[Client, None]:
    yield Client()


class Suppressing:
    async def __aenter__(self) -> int:
        return 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return True


class Passing:
    async def __aenter__(self) -> int:
        return 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


with enter(connect()) as client:
    assert_type(client, Client)


def never_suppresses() -> int:
    # A checker knows that the block's error comes out, so that nothing is missing here.
    with enter(Passing(), runtime=runtime) as value:
        return value


def may_suppress() -> int:
    with enter(Suppressing()) as value:
        return value
    return 0


enter(StringIO())  # type: ignore[arg-type]
enter(connect)  # type: ignore[arg-type]


# --- queue ------------------------------------------------------------------------------------------------------------

jobs: Queue[int] = queue(10, kind="priority", runtime=runtime)
jobs.sync_q.put(1, timeout=1)
assert_type(jobs.sync_q.get(), int)
jobs.sync_q.put("1")  # type: ignore[arg-type]
bad: Queue[int] = queue(kind="stack")  # type: ignore[arg-type]


async def take() -> None:
    assert_type(await jobs.async_q.get(), int)


# --- resource ---------------------------------------------------------------------------------------------------------


async def make() -> Client:
    return Client()


def close(client: Client) -> None: ...


async def close_later(client: Client) -> None: ...


def close_other(client: int) -> None: ...


def managed() -> AbstractAsyncContextManager[Client]:
    return connect()


assert_type(resource(Client), Resource[Client])
assert_type(resource(lambda: Client(), runtime=runtime), Resource[Client])
assert_type(resource(make), Resource[Client])
assert_type(resource(make, close), Resource[Client])
assert_type(resource(Client, close_later), Resource[Client])
assert_type(resource(connect), Resource[Client])
assert_type(resource(managed), Resource[Client])
resource(Client, close_other)  # type: ignore[arg-type]

shared = resource(make)
assert_type(shared.run(lambda c: c.get("/"), timeout=1), bytes)
assert_type(shared.go(lambda c: c.get("/"), name="get", daemon=True), Task[bytes])
shared.run(lambda c: 1)  # type: ignore[arg-type,return-value]


async def use() -> None:
    assert_type(await shared, Client)
    assert_type(await shared.go(lambda c: asyncio.sleep(0, c)), Client)


# --- to_process -------------------------------------------------------------------------------------------------------


def compute(number: int, *, scale: float = 1) -> float:
    return number * scale


assert_type(to_process(compute, 1, scale=2), Task[float])
assert_type(ProcessPool(2, runtime=runtime).to_process(compute, 1), Task[float])
assert_type(ProcessPool(executor=ProcessPoolExecutor(2)).to_process(compute, 1, scale=2), Task[float])
to_process(compute, "1")  # type: ignore[arg-type]
to_process(compute, 1, factor=2)  # type: ignore[call-arg]
to_process(compute, 1, executor=2)  # type: ignore[call-arg]
ProcessPool(2).to_process(compute, "1")  # type: ignore[arg-type]
