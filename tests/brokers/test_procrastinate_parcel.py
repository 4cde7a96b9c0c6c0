"""`omniloop.ext.procrastinate` behind an outbox: what is written down is JSON."""

import datetime as dt

import pytest

pytest.importorskip("procrastinate")

from procrastinate import App
from procrastinate.testing import InMemoryConnector

from omniloop import background
from omniloop._brokers.handover import due
from omniloop.ext.outbox import Outbox
from omniloop.ext.procrastinate import Procrastinate


@pytest.mark.promise(
    "A call that is due later, of Procrastinate behind an outbox, is written down with its moment",
    section="Beyond the process",
)
def test_a_moment_survives_the_outbox(tmp_path):
    connector = InMemoryConnector()
    engine = Procrastinate(lambda: App(connector=connector))

    @background(broker=Outbox(tmp_path / "jobs.sqlite", engine), name="work")
    async def work(number: int) -> None: ...

    moment = dt.datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    token = due.set(moment)
    try:
        later = work(1)
    finally:
        due.reset(token)
    at_once = work(2)

    for sent in later, at_once:
        sent.accepted.result(timeout=30)
    jobs = {job["args"]["call_id"]: job["scheduled_at"] for job in connector.jobs.values()}
    assert jobs == {later.id: moment, at_once.id: None}
