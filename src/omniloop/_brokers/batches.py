"""Sends items in batches: those that come while one batch is being sent go together in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """
    Batches the sending of items: a burst costs one round trip for many items, and a single item is sent at once. For one loop.

    Args:
        send: Sends a batch, all or nothing. If it fails, each item is sent alone, and gets the error of its own sending.
        of_all: Whether an error concerns all items, such as one of the connection. Then all get it, and none is sent alone. By
            default every error does.
    """

    def __init__(
        self, send: Callable[[list[T]], Awaitable[Any]], of_all: Callable[[Exception], bool] = lambda _: True
    ) -> None:
        self._send = send
        self._of_all = of_all
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def send(self, item: T) -> None:
        """Return when *item* has been sent, or raise the error of its sending."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, sent))
        if self._sender is None:
            # The task starts in the next iteration of the loop, so that all items of this one go along.
            self._sender = asyncio.create_task(self._send_all())
        await sent

    async def _send_all(self) -> None:
        lot: list[tuple[T, asyncio.Future[None]]] = []
        try:
            while self._waiting:
                lot, self._waiting = [(item, sent) for item, sent in self._waiting if not sent.done()], []
                await self._send_lot(lot)
        finally:
            self._sender = None
            # If the task was cancelled at the end of the loop, items are left: cancel their waiters, which would wait for ever.
            for _, sent in [*lot, *self._waiting]:
                sent.cancel()

    async def _send_lot(self, lot: list[tuple[T, asyncio.Future[None]]]) -> None:
        try:
            if lot:
                await self._send([item for item, _ in lot])
        except Exception as error:
            if len(lot) > 1 and not self._of_all(error):
                for one in lot:
                    await self._send_lot([one])
            for _, sent in lot:
                if not sent.done():
                    sent.set_exception(error)
        else:
            for _, sent in lot:
                if not sent.done():
                    sent.set_result(None)
