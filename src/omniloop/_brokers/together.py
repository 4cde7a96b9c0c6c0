"""Sends many things in one go: what comes while one lot is under way waits for the next, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """
    So that a burst costs one round trip for many and not one each, and a single one waits for nobody. For one loop.

    Args:
        send: Sends a lot, all or nothing. If it fails, each is sent alone, and has the error that it gets alone.
        of_all: Whether an error is everybody's, the connection's for example: then nobody is sent alone.
    """

    def __init__(
        self, send: Callable[[list[T]], Awaitable[Any]], of_all: Callable[[Exception], bool] = lambda _: True
    ) -> None:
        self._send = send
        self._of_all = of_all
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def send(self, item: T) -> None:
        """Return when *item* was sent, or raise the error that it got."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, sent))
        if self._sender is None:
            # In a turn of its own: what starts in this turn of the loop goes along.
            self._sender = asyncio.create_task(self._send_all())
        await sent

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                lot, self._waiting = self._waiting, []
                await self._send_lot([(item, sent) for item, sent in lot if not sent.done()])
        finally:
            self._sender = None
            # Cancelled, with the loop: nobody waits for ever.
            for _, sent in self._waiting:
                sent.cancel()

    async def _send_lot(self, lot: list[tuple[T, asyncio.Future[None]]]) -> None:
        try:
            if lot:
                await self._send([item for item, _ in lot])
        except Exception as error:
            if len(lot) > 1 and not self._of_all(error):
                for one in lot:
                    await self._send_lot([one])
                return
            for _, sent in lot:
                if not sent.done():
                    sent.set_exception(error)
        except BaseException:
            for _, sent in lot:
                sent.cancel()
            raise
        else:
            for _, sent in lot:
                if not sent.done():
                    sent.set_result(None)
