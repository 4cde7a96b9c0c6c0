"""The client, written once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp


class NotFoundError(LookupError):
    """There is no such note."""


@dataclass(frozen=True)
class Note:
    """A note, as the service has it."""

    number: int
    text: str


class AsyncClient:
    """
    A client for the notes service.

    Args:
        url: Where the service is.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # Binds the loop that runs here: the twin makes it on omniloop's.
        self._session = aiohttp.ClientSession(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session."""
        await self._session.close()

    async def add(self, text: str) -> Note:
        """Add a note."""
        async with self._session.post("/notes", json={"text": text}) as answer:
            return Note(**await answer.json())

    async def get(self, number: int) -> Note:
        """
        Get a note.

        Raises:
            NotFoundError: if there is none with this number.
        """
        async with self._session.get(f"/notes/{number}") as answer:
            if answer.status == 404:
                raise NotFoundError(number)
            return Note(**await answer.json())

    async def notes(self, *, page_size: int = 10) -> AsyncIterator[Note]:
        """All notes; a page is fetched when its first note is asked for."""
        start = 0
        while True:
            params = {"start": start, "count": page_size}
            async with self._session.get("/notes", params=params) as answer:
                page = await answer.json()
            for note in page:
                yield Note(**note)
            if len(page) < page_size:
                return
            start += page_size

    @asynccontextmanager
    async def export(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """Stream all notes as lines; the connection is given back when the block is left."""
        async with self._session.get("/export") as answer:

            async def lines() -> AsyncIterator[bytes]:
                async for line in answer.content:
                    yield line

            yield lines()
