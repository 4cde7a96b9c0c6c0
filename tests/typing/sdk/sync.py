"""The sync client."""

from collections.abc import AsyncIterator

from omniloop import blocking

from . import aio

Point = blocking(aio.AsyncPoint)
Store = blocking(aio.AsyncStore)
Numbers = blocking(aio.AsyncNumbers)
Cursor = blocking(aio.AsyncCursor)
Client = blocking(aio.AsyncClient)
Special = blocking(aio.AsyncSpecial)
DEFAULT = "http://"


@blocking
async def fetch(url: str) -> bytes:
    """Fetch it."""
    return b""


@blocking
async def count(to: int) -> AsyncIterator[int]:
    yield 1
