# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees of `blocking`, and of the classes that `python -m omniloop stubs` writes. Checked by mypy and pyright, both strict; never run."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any, assert_type

from sdk.sync import DEFAULT, Client, Cursor, Numbers, Point, Special, count, fetch

from omniloop import Blocking, blocking

assert_type(fetch("x"), bytes)
assert_type(fetch.options(timeout=5)("x"), bytes)
assert_type(count(3), Generator[int, Any, None])
assert_type(DEFAULT, str)


async def main() -> None:
    assert_type(await fetch.aio("x"), bytes)
    assert_type(await client.get.aio("x"), bytes)
    assert_type(await client.load.aio("x", True), str)
    assert_type(await Client.connect.aio("x"), Client)
    assert_type(client.pages.aio(), AsyncGenerator[list[str], Any])
    async with client as c:
        assert_type(c, Client)


with Client("url", retries=3) as client:
    assert_type(client, Client)
    assert_type(client.get("key", raw=True), bytes)
    assert_type(client.load("k", True), str)
    assert_type(client.load("k"), bytes)
    assert_type(client.load.options(timeout=3)("k", True), str)
    assert_type(client.echo(3), int)
    assert_type(client.pages(3), Generator[list[str], Any, None])
    for page in client.pages():
        assert_type(page, list[str])
    assert_type(client.chat(), Generator[str, Any, None])
    assert_type(client.stream(), Generator[bytes, Any, None])
    with client.transaction() as cursor:
        assert_type(cursor, Cursor)
    with client.session() as number:
        assert_type(number, int)
    assert_type(client.soon(), int)
    assert_type(client.cursor().fetch(), tuple[int, str])
    assert_type(client.use(cursor), dict[str, Cursor])
    assert_type(client.where(), int)
    client.size = client.size + 1
    assert_type(client.version, str)
    assert_type(Client.connect("x"), Client)
    assert_type(client.connect("x"), Client)
    assert_type(Client.add(1, b=2), int)
    assert_type(Client.plain(), Client)
    assert_type(len(client), int)
    assert_type(client.me(), Client)
    assert_type(client.LIMIT, int)
    client.close()
    assert_type(client.url, str)
    for item in cursor:
        assert_type(item, bytes)
    assert_type(next(cursor), bytes)
special = Special("url")
assert_type(special.special(), int)
assert_type(special.get("x"), bytes)
point = Point(3, tags=["x"])
assert_type(point.norm(), float)
assert_type(point.x, int)
numbers = Numbers()
assert_type(numbers.get("x"), int)
assert_type(numbers.many("x"), list[int])
client.get(3)  # type: ignore[arg-type]
client.get("k", row=True)  # type: ignore[call-arg]


# --- functions, without a stub ----------------------------------------------------------------------------------------


@blocking
async def work(a: int, *, b: str = "") -> float:
    return 1.0


@blocking(timeout=3)
async def limited(a: int) -> str:
    return ""


@blocking
async def numbers_to(n: int) -> AsyncGenerator[int, str]:
    yield 1


@blocking
@asynccontextmanager
async def opened() -> AsyncGenerator[bytes]:
    yield b""


class Mixed:
    @blocking
    async def method(self, a: int) -> str:
        return ""


assert_type(work(1, b=""), float)
assert_type(work.options(timeout=3)(1), float)
assert_type(limited(1), str)
assert_type(numbers_to(3), Generator[int, Any, None])
assert_type(Mixed().method(1), str)
assert_type(Mixed().method.options(timeout=None)(1), str)
with opened() as value:
    assert_type(value, bytes)


# An `Any` in the signature does not make the rest of it unknown.
@blocking
async def loose(a: dict[str, Any], **more: Any) -> int:
    return 1


@blocking
async def loose_items(a: Any) -> AsyncIterator[int]:
    yield 1


class Loose:
    @blocking
    async def method(self, *, a: str, b: Any = None) -> dict[str, Any]:
        return {}


assert_type(loose({}, b=3), int)
assert_type(loose_items(3), Generator[int, Any, None])
assert_type(Loose().method(a=""), dict[str, Any])
loose(3)  # type: ignore[arg-type]
work("1")  # type: ignore[arg-type]
work(1, "b")  # type: ignore[call-arg]
Mixed().method()  # type: ignore[call-arg]
call: Callable[[int], str] = limited
named: Blocking[[int], str, Coroutine[Any, Any, str]] = limited
manager: AbstractContextManager[bytes, bool | None] = opened()


async def use() -> None:
    assert_type(await work.aio(1), float)
    async with opened.aio() as value:
        assert_type(value, bytes)
    async_manager: AbstractAsyncContextManager[bytes, bool | None] = opened.aio()
    del async_manager
    assert_type(numbers_to.aio(1), AsyncGenerator[int, Any])
    assert_type(await Mixed().method.aio(1), str)


# Options do not make the rest unknown either.
async def plain(a: int) -> str:
    return ""


assert_type(blocking(plain, timeout=3)(1), str)
blocking(plain, timeout="3")  # type: ignore[call-overload]
