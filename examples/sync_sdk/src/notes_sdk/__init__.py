"""A client for the notes service: `Client` for sync code, `AsyncClient` for async code."""

from omniloop import blocking

from .aio import AsyncClient, Note, NotFoundError

Client = blocking(AsyncClient, timeout=30)

__all__ = ["AsyncClient", "Client", "NotFoundError", "Note"]
