"""A channel to RabbitMQ that confirms each message, and does not wait for one to have left before it takes the next."""

from __future__ import annotations

from typing import Any

from aio_pika.robust_channel import RobustChannel
from aio_pika.robust_exchange import RobustExchange


class _Exchange(RobustExchange):
    async def publish(
        self,
        message: Any,
        routing_key: str,
        *,
        mandatory: bool = True,
        immediate: bool = False,
        timeout: Any = None,
    ) -> Any:
        # As the original, with `wait=False`: its lock is held until the socket has the message, one turn of the loop for each. What is
        # on its way is bounded by who calls, and the confirmation is waited for all the same.
        channel: Any = await self.channel.get_underlay_channel()
        return await channel.basic_publish(
            exchange=self.name,
            routing_key=routing_key,
            body=message.body,
            properties=message.properties,
            mandatory=mandatory,
            immediate=immediate,
            timeout=timeout,
            wait=False,
        )


class Channel(RobustChannel):
    EXCHANGE_CLASS = _Exchange
