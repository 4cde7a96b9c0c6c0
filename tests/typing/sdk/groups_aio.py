# ruff: noqa: UP037
"""An async SDK of the shape that generators write: groups of calls, overloads by `stream`, pages, and factories that name `Self`."""

from __future__ import annotations

import typing as t
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Generic, Literal, ParamSpec, Self, TypeVar, overload

if t.TYPE_CHECKING:
    from sdk.aio import AsyncCursor

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K", bound="AsyncRoot")
P = ParamSpec("P")


class Chunk:
    text: str


class Completion:
    """Data: it comes out as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


class AsyncStream(Generic[T]):
    response: AsyncResponse

    def __aiter__(self) -> AsyncIterator[T]:
        raise NotImplementedError

    async def __anext__(self) -> T:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...
    async def close(self) -> None: ...


class AsyncPage(Generic[T]):
    data: list[T]

    def __aiter__(self) -> AsyncIterator[T]:
        raise NotImplementedError

    async def get_next_page(self) -> Self:
        return self


class AsyncPaginator(Generic[T]):
    def __await__(self) -> t.Generator[t.Any, None, AsyncPage[T]]:
        raise NotImplementedError

    async def __aiter__(self) -> AsyncIterator[T]:
        yield t.cast("T", None)


class AsyncResponse:
    status = 200

    async def read(self) -> bytes:
        return b""

    def json(self) -> object:
        return None


class AsyncCompletions:
    @overload
    async def create(self, q: str, *, stream: Literal[True]) -> AsyncStream[Chunk]: ...
    @overload
    async def create(self, q: str, *, stream: Literal[False] = False) -> Completion: ...
    async def create(self, q: str, *, stream: bool = False) -> Completion | AsyncStream[Chunk]:
        """Ask."""
        return Completion(q)

    def list(self) -> AsyncPaginator[Completion]:
        raise NotImplementedError


class AsyncChat:
    @cached_property
    def completions(self) -> AsyncCompletions:
        return AsyncCompletions()


class AsyncBeta:
    @property
    def chat(self) -> AsyncChat:
        return AsyncChat()


class AsyncFiles:
    async def get(self, name: str) -> bytes:
        return b""

    async def send(self, response: AsyncResponse, *, again: AsyncResponse | None = None) -> AsyncResponse:
        return response


class AsyncRoot:
    def __init__(self, key: str) -> None:
        self.key = key
        self.files = AsyncFiles()
        self.completion = Completion("")

    @cached_property
    def chat(self) -> AsyncChat:
        return AsyncChat()

    @property
    def beta(self) -> AsyncBeta:
        return AsyncBeta()

    @property
    def cursor(self) -> AsyncCursor:
        raise NotImplementedError

    async def all(self) -> list[AsyncResponse]:
        return []

    async def by_name(self) -> dict[str, AsyncResponse | None]:
        return {}

    # What names the class of the object.
    async def copy(self) -> Self:
        return self

    def with_options(self) -> t.Self:
        return self

    @classmethod
    async def create(cls, key: str) -> Self:
        return cls(key)

    @classmethod
    async def old_style(cls: type[K], key: str) -> K:
        return cls(key)

    @classmethod
    async def in_quotes(cls: "type[K]", key: str) -> "K":
        return cls(key)

    @classmethod
    async def pair(cls) -> tuple[Self, Completion]:
        raise NotImplementedError

    @classmethod
    async def each(cls) -> AsyncIterator[Self]:
        yield cls("")

    @classmethod
    @asynccontextmanager
    async def session(cls, key: str) -> AsyncIterator[Self]:
        yield cls(key)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[Self]:
        yield self

    @overload
    @classmethod
    async def several(cls, n: str) -> Self: ...
    @overload
    @classmethod
    async def several(cls, n: int) -> "list[Self]": ...
    @classmethod
    async def several(cls, n: object) -> "Self | list[Self]":
        return []

    async def tap(self, fn: Callable[[Self], Awaitable[T]]) -> Self:
        return self

    async def call(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[Self, T]:
        raise NotImplementedError


class AsyncSpecial(AsyncRoot):
    async def more(self) -> int:
        return 1


class AsyncBox(Generic[T]):
    """Type parameters of its class, of its methods, and both."""

    def __init__(self, value: T) -> None:
        self.value = value

    async def get(self) -> T:
        return self.value

    async def both(self, other: U) -> tuple[T, U]:
        raise NotImplementedError

    async def copy(self) -> Self:
        return self

    @overload
    async def load(self) -> T: ...
    @overload
    async def load(self, default: U) -> T | U: ...
    async def load(self, default: object = None) -> object:
        return None

    @classmethod
    async def of(cls, value: T) -> Self:
        return cls(value)
