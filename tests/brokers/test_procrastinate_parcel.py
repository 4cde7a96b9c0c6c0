"""`omniloop.ext.procrastinate` without a PostgreSQL: what is written down is JSON; and what refuses a login in whatever language."""

import contextlib
import datetime as dt
import socket
import struct
import sys
import threading

import pytest

pytest.importorskip("procrastinate")

from procrastinate import App, PsycopgConnector
from procrastinate.testing import InMemoryConnector

import omniloop
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


@contextlib.contextmanager
def server_that_lets_nobody_in(code: str):
    """A PostgreSQL that speaks Russian: it answers each login with an error that has the SQLSTATE *code*. Yields its port, and its answers."""
    told = threading.Semaphore(0)
    fields = {"S": "ВАЖНО", "V": "FATAL", "C": code, "M": "сюда нельзя"}
    text = b"".join(f"{field}{value}\0".encode() for field, value in fields.items()) + b"\0"

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as received, contextlib.suppress(OSError, struct.error):
                length, version = struct.unpack("!ii", received.read(8))
                while version >> 16 == 1234:
                    # It asks for encryption.
                    connection.sendall(b"N")
                    length, version = struct.unpack("!ii", received.read(8))
                received.read(length - 8)
                connection.sendall(b"E" + struct.pack("!i", len(text) + 4) + text)
                told.release()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], told
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def work_at(port: int):
    address = f"host=127.0.0.1 port={port} user=ada password=x dbname=shop"

    @background(broker=Procrastinate(lambda: App(connector=PsycopgConnector(conninfo=address))), name="work")
    async def work(): ...

    return work


@pytest.mark.promise("A login that PostgreSQL refuses is known by its code, in whatever language the server says it")
@pytest.mark.parametrize("code", ["28P01", "28000", "3D000", "42501"])
def test_a_login_is_refused_by_its_code_in_whatever_language(code):
    psycopg = pytest.importorskip("psycopg")
    if sys.platform != "linux" or psycopg.pq.version() < 180000:
        pytest.skip("libpq tells the code from 18 on, on Linux")

    with server_that_lets_nobody_in(code) as (port, _):
        sent = work_at(port)()

        with pytest.raises(
            omniloop.RefusedError, match=r"(?s)refuses the call of work: .*сюда нельзя.*Mend the address"
        ):
            sent.accepted.result(timeout=30)


@pytest.mark.parametrize("code", ["57P03", "53300"])
def test_a_login_to_a_server_that_starts_up_or_is_full_is_tried_again(code, caplog):
    pytest.importorskip("psycopg")

    with server_that_lets_nobody_in(code) as (port, told):
        sent = work_at(port)()
        for _ in range(4):
            assert told.acquire(timeout=30)

        assert not sent.accepted.done()
        omniloop.shutdown(timeout=0)
    assert "сюда нельзя" in caplog.text
