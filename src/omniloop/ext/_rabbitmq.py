"""A channel to RabbitMQ that confirms each message, and does not wait for one to have left before it takes the next."""

from __future__ import annotations

from functools import partial
from typing import Any

from aio_pika.robust_channel import RobustChannel


class Channel(RobustChannel):
    async def get_underlay_channel(self) -> Any:
        channel: Any = await super().get_underlay_channel()
        # By default its lock is held until the socket has the message, one turn of the loop for each. What is on its way is bounded by who
        # calls, and the confirmation is waited for all the same.
        channel.basic_publish = partial(type(channel).basic_publish, channel, wait=False)
        return channel
