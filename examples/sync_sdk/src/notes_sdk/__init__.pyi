# Written by `python -m omniloop stubs notes_sdk`: change the source, and write it again.
# mypy: disable-error-code="override,misc,type-arg,overload-overlap"
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false, reportOverlappingOverload=false
"""A client for the notes service: `Client` for sync code, `AsyncClient` for async code."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Self

from omniloop import blocking

from .aio import AsyncClient, Note, NotFoundError

class Client:
    """
    A client for the notes service.

    Args:
        url: Where the service is.
    """

    def __init__(self, url: str) -> None: ...
    def __enter__(self) -> Self: ...
    async def __aenter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    async def __aexit__(self, *error: object) -> None: ...
    @blocking
    async def close(self) -> None:
        """Close the session."""

    @blocking
    async def add(self, text: str) -> Note:
        """Add a note."""

    @blocking
    async def get(self, number: int) -> Note:
        """
        Get a note.

        Raises:
            NotFoundError: if there is none with this number.
        """

    @blocking
    def notes(self, *, page_size: int = 10) -> AsyncIterator[Note]:
        """All notes; a page is fetched when its first note is asked for."""

    @blocking
    def export(self) -> AbstractAsyncContextManager[Iterator[bytes], bool | None]:
        """Stream all notes as lines; the connection is given back when the block is left."""
    url: str

__all__ = ["AsyncClient", "Client", "NotFoundError", "Note"]
