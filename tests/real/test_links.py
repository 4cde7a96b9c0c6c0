"""Calls over links that are cut, and over TLS."""

import collections
import contextlib
import json
import shutil
import ssl
import subprocess
import threading
import time
import uuid

import pytest

pytest.importorskip("taskiq")

import services
from test_engine_refusals import LONG, Queue, _redis

import omniloop

pytestmark = [pytest.mark.servers, pytest.mark.timeout(150)]

HERE, THERE = "198.51.100.1", "198.51.100.2"


def _ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def far_away():
    """A namespace at the other end of a link: what a command begins with that runs there, and the name of the link here."""
    name = f"omni{uuid.uuid4().hex[:6]}"
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`: apt-get install iproute2")
    with contextlib.ExitStack() as stack:
        try:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
            stack.callback(_ip, "link", "del", name)
            _ip("address", "add", f"{HERE}/24", "dev", name)
            _ip("link", "set", name, "up")
            _ip("-n", name, "address", "add", f"{THERE}/24", "dev", "far")
            _ip("-n", name, "link", "set", "far", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no namespaces can be made here: {error.stderr.decode().strip()}")
        yield ["ip", "netns", "exec", name], name


def _ids(queue):
    async def ask(broker):
        if queue.kind == "redis":
            return await _redis(broker, "LRANGE", queue.name, 0, -1)
        count = (await broker.js.stream_info(queue.name)).state.messages
        return [(await broker.js.get_msg(queue.name, number + 1)).data for number in range(count)]

    return collections.Counter(json.loads(data)["task_id"] for data in queue.on_the_broker(ask))


@pytest.mark.promise(
    "A link that is cut for ten seconds costs the caller nothing, and all calls arrive, at most `at_once` of them twice, with NATS and Redis",
    section="Beyond the process",
)
@pytest.mark.parametrize("kind", ["nats", "redis"])
def test_a_link_that_is_cut_for_ten_seconds_loses_nothing(kind, far_away, tmp_path):
    inside, link = far_away
    with services.KINDS[kind](tmp_path, address=THERE, inside=inside) as service:
        queue = Queue(kind, service.url)
        work = queue.function()
        work("first").accepted.result(LONG)
        sent, slowest, stop = [], 0.0, threading.Event()

        def make_calls():
            nonlocal slowest
            while not stop.wait(0.005):
                before = time.perf_counter()
                sent.append(work(str(len(sent))))
                slowest = max(slowest, time.perf_counter() - before)

        caller = threading.Thread(target=make_calls)
        caller.start()
        # What is measured is an outage of that length.
        time.sleep(1)
        _ip("link", "set", link, "down")
        cut = len(sent)
        time.sleep(10)
        _ip("link", "set", link, "up")
        while sum(not call.accepted.done() for call in sent) > 50:
            time.sleep(0.05)
        stop.set()
        caller.join()
        for call in sent:
            call.accepted.result(LONG)
        arrived = _ids(queue)

    assert cut < len(sent) - 100
    assert {call.id for call in sent} <= set(arrived)
    assert arrived.total() - len(arrived) <= queue.jobs.at_once
    # A busy machine is not the call's fault.
    assert slowest < 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with `server.pem`, made out to localhost by `ca.pem`, and `other.pem` of somebody else."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no `openssl`")
    folder = tmp_path_factory.mktemp("certificates")
    for word in ("ca", "other"):
        _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={word}", "-addext", "keyUsage=critical,keyCertSign", "-keyout", f"{word}.key", "-out", f"{word}.pem")  # fmt: skip
    _openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    # With all that Python asks for from 3.13 on.
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    _openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return folder


@pytest.mark.promise(
    "Calls go to RabbitMQ, NATS and Redis by TLS; where nobody vouches for the server's certificate they fail"
)
@pytest.mark.parametrize("kind", ["rabbitmq", "nats", "redis"])
def test_calls_go_by_tls_and_fail_where_nobody_vouches_for_the_server(kind, certificates, tmp_path):
    with services.KINDS[kind](tmp_path, tls=certificates) as service:
        queue = by_tls(kind, service.url, certificates / "ca.pem")
        work = queue.function()
        for call in [work(str(number)) for number in range(100)]:
            call.accepted.result(LONG)
        stranger = by_tls(kind, service.url, certificates / "other.pem").function()

        for sent in [stranger("not to a server that nobody vouches for") for _ in range(40)]:
            with pytest.raises(
                omniloop.RefusedError, match="certificate verify failed.* Mend what the broker is made with"
            ):
                sent.accepted.result(LONG)
        assert queue.holds() == 100


def by_tls(kind, url, authority):
    if kind == "rabbitmq":
        return Queue(kind, f"{url}?cafile={authority}")
    if kind == "redis":
        return Queue(kind, url, ssl_ca_certs=str(authority))
    return Queue(kind, url, tls=ssl.create_default_context(cafile=authority))


def _openssl(folder, *words):
    subprocess.run(["openssl", *words, *(["-days", "2"] if "-x509" in words else [])], check=True, capture_output=True, cwd=folder, timeout=60)  # fmt: skip
