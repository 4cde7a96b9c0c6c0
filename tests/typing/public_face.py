# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees of the public calls. Checked by mypy and pyright, both strict; never run."""

import asyncio
import concurrent.futures
import contextvars
from collections.abc import Awaitable, Generator
from typing import Any, assert_type

import omniloop
from omniloop import Runtime, Task


async def fetch(url: str) -> bytes:
    return url.encode()


def add(left: int, right: int = 0) -> int:
    return left + right


class Ready:
    def __await__(self) -> Generator[Any, None, float]:
        yield
        return 0.5


# go: any awaitable, and the value's type comes through.
assert_type(omniloop.go(fetch("")), Task[bytes])
assert_type(omniloop.go(Ready(), name="ready", context=contextvars.Context(), daemon=True, timeout=5), Task[float])
omniloop.go(fetch)  # type: ignore[arg-type]
omniloop.go(add)  # type: ignore[arg-type]
omniloop.go(fetch(""), 5)  # type: ignore[arg-type]

# call_soon: the arguments are checked against the function.
assert_type(omniloop.call_soon(add, 1, 2), Task[int])
omniloop.call_soon(add, "1", 2)  # type: ignore[arg-type]

# Delayed and periodic: plain and async functions.
assert_type(omniloop.call_later(0.5, add, 1, 2), Task[Any])
assert_type(omniloop.call_at(0.5, fetch, ""), Task[Any])
assert_type(
    omniloop.every(1, lambda: None, jitter=0.1, immediately=True, name="tick", context=contextvars.Context()),
    Task[None],
)
omniloop.call_later("soon", add, 1, 2)  # type: ignore[arg-type]

# to_thread: keyword arguments as well.
assert_type(omniloop.to_thread(add, 1, right=2), Task[int])
omniloop.to_thread(add, 1, wrong=2)  # type: ignore[call-arg]

# Waiting.
assert_type(omniloop.run(fetch("")), bytes)
assert_type(omniloop.run(fetch(""), timeout=1), bytes)


def waiting() -> None:
    task = omniloop.go(fetch(""))
    assert_type(task.result(), bytes)
    assert_type(task.result(timeout=0), bytes)
    assert_type(task.exception(), BaseException | None)
    assert_type(task.cancel(), bool)
    assert_type(task.done(), bool)
    assert_type(task.get_name(), str)


async def awaiting() -> None:
    assert_type(await omniloop.go(fetch("")), bytes)
    assert_type(await asyncio.wrap_future(omniloop.go(fetch(""))), bytes)
    assert_type(await asyncio.gather(omniloop.go(fetch("")), omniloop.call_soon(add, 1, 2)), tuple[bytes, int])


# A task passes for a future and for an awaitable.
future: concurrent.futures.Future[bytes] = omniloop.go(fetch(""))
awaitable: Awaitable[bytes] = omniloop.go(fetch(""))
assert_type(concurrent.futures.wait([omniloop.go(fetch(""))]).done, set[concurrent.futures.Future[bytes]])

# A runtime of one's own has the same calls.
with Runtime(name="mine", exit_timeout=1) as runtime:
    assert_type(runtime, Runtime)
    assert_type(runtime.go(fetch("")), Task[bytes])
    assert_type(runtime.call_soon(add, 1, 2), Task[int])
    assert_type(runtime.to_thread(add, 1, right=2), Task[int])
    assert_type(runtime.run(fetch("")), bytes)
    assert_type(runtime.tasks(), list[Task[Any]])
assert_type(omniloop.shared_runtime(), Runtime)


def on_error(failure: omniloop.Failure) -> None:
    assert_type(failure.exception, BaseException)
    assert_type(failure.name, str)


omniloop.configure(on_error=on_error, exit_timeout=None)

# Settings: each by its name and type.
omniloop.configure(exit_timeout=5, when_full="raise")
omniloop.configure(exit_timeout="soon")  # type: ignore[arg-type]
omniloop.configure(exit_time=5)  # type: ignore[call-arg]
assert_type(Runtime(max_workers=2, name="mine"), Runtime)
