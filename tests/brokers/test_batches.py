"""`omniloop._brokers.batches`: many in one go."""

import asyncio

import pytest

from omniloop._brokers.batches import Batches


class Wire:
    """Notes each lot, and fails as told."""

    def __init__(self):
        self.lots = []
        self.bad = {}
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, lot):
        await self.open.wait()
        self.lots.append(lot)
        for item in lot:
            if item in self.bad:
                raise self.bad[item]


def is_for_all(error):
    return isinstance(error, ConnectionError)


def run(scenario):
    async def main():
        wire = Wire()
        await scenario(wire, Batches(wire.send, is_for_all))

    asyncio.run(asyncio.wait_for(main(), 10))


def test_what_comes_while_one_lot_is_under_way_goes_together():
    async def scenario(wire, together):
        wire.open.clear()
        sending = [asyncio.create_task(together.send(number)) for number in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sending += [asyncio.create_task(together.send(number)) for number in range(5, 50)]
        await asyncio.sleep(0)
        wire.open.set()
        await asyncio.gather(*sending)
        await together.send(50)

        assert wire.lots == [list(range(5)), list(range(5, 50)), [50]]

    run(scenario)


def test_an_error_of_one_is_its_own():
    async def scenario(wire, together):
        wire.bad[3] = ValueError("3 is bad")
        outcomes = await asyncio.gather(*(together.send(number) for number in range(5)), return_exceptions=True)

        assert outcomes == [None, None, None, wire.bad[3], None]
        assert wire.lots == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]

    run(scenario)


def test_an_error_of_the_connection_is_everybodys_and_nobody_is_sent_alone():
    async def scenario(wire, together):
        wire.bad[3] = ConnectionError("cut")
        outcomes = await asyncio.gather(*(together.send(number) for number in range(5)), return_exceptions=True)

        assert outcomes == [wire.bad[3]] * 5
        assert len(wire.lots) == 1

    run(scenario)


def test_who_does_not_wait_any_more_is_left_out_and_the_others_go():
    async def scenario(wire, together):
        wire.open.clear()
        first, second, third = (asyncio.create_task(together.send(number)) for number in range(3))
        await asyncio.sleep(0)
        fourth = asyncio.create_task(together.send(3))
        await asyncio.sleep(0)
        for sending in (first, fourth):
            sending.cancel()
        await asyncio.sleep(0)
        wire.open.set()
        outcomes = await asyncio.gather(first, second, third, fourth, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [
            asyncio.CancelledError,
            type(None),
            type(None),
            asyncio.CancelledError,
        ]
        assert wire.lots == [[0, 1, 2]]

    run(scenario)


def test_when_the_loop_ends_nobody_waits_for_ever():
    async def scenario(wire, together):
        wire.open.clear()
        first = asyncio.create_task(together.send(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(together.send(2))
        await asyncio.sleep(0)
        together._sender.cancel()
        for sending in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await sending

    run(scenario)
