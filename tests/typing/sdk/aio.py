"""The async client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, Self, TypeVar, overload

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class AsyncPoint:
    """A point."""

    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)

    async def norm(self) -> float:
        return float(abs(self.x))


class AsyncStore(ABC, Generic[K, T]):
    @abstractmethod
    async def get(self, key: K) -> T: ...
    async def many(self, *keys: K) -> list[T]:
        return [await self.get(key) for key in keys]


class AsyncNumbers(AsyncStore[str, int]):
    async def get(self, key: str) -> int:
        return len(key)


class AsyncCursor:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def fetch(self) -> tuple[int, str]:
        """Fetch one."""
        return 1, ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


class AsyncClient:
    """A client."""

    LIMIT: ClassVar[int] = 3

    class Error(Exception): ...

    def __init__(self, url: str, *, retries: int = 3) -> None:
        self.url = url
        self.retries: int = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...
    async def get(self, key: str, *, raw: bool = False) -> bytes:
        """Get one."""
        return b""

    @overload
    async def load(self, key: str, text: Literal[True]) -> str: ...
    @overload
    async def load(self, key: str, text: Literal[False] = ...) -> bytes: ...
    async def load(self, key: str, text: bool = False) -> str | bytes:
        """Load one."""
        return b""

    async def echo(self, value: T) -> T:
        return value

    async def pages(self, size: int = 10) -> AsyncIterator[list[str]]:
        """Page by page."""
        yield []

    async def chat(self) -> AsyncGenerator[str, int]:
        yield ""

    def stream(self) -> AsyncIterator[bytes]:
        raise NotImplementedError

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncCursor]:
        yield AsyncCursor(self)

    def session(self) -> AbstractAsyncContextManager[int]:
        raise NotImplementedError

    def soon(self) -> Awaitable[int]:
        raise NotImplementedError

    async def cursor(self) -> AsyncCursor:
        return AsyncCursor(self)

    async def use(
        self, cursor: AsyncCursor, each: Callable[[AsyncCursor], object] | None = None
    ) -> dict[str, AsyncCursor]:
        return {}

    def where(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return 1

    @size.setter
    def size(self, value: int) -> None: ...
    @property
    async def version(self) -> str:
        return ""

    @classmethod
    async def connect(cls, url: str) -> AsyncClient:
        return cls(url)

    @staticmethod
    async def add(a: int, b: int) -> int:
        return a + b

    @classmethod
    def plain(cls) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return 0

    async def me(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close it."""


class AsyncSpecial(AsyncClient):
    async def special(self) -> int:
        return 1
