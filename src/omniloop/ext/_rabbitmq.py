"""A channel to RabbitMQ on which each message is confirmed, and the next is taken before the last has reached the socket."""

from __future__ import annotations

from functools import partial
from typing import Any

from aio_pika.robust_channel import RobustChannel


class Channel(RobustChannel):
    async def get_underlay_channel(self) -> Any:
        channel: Any = await super().get_underlay_channel()
        # By default the channel's lock is held until the socket has the message, one iteration of the loop for each. Without that, the
        # caller still limits how many messages are on their way, and still waits for each confirmation.
        channel.basic_publish = partial(type(channel).basic_publish, channel, wait=False)
        return channel
