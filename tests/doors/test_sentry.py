"""Sentry's exit hook beside the drain: with the real SDK, whose own transport talks to a collector on loopback."""

import asyncio
import gzip
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from children import run_child
from omniloop import go, run

try:
    import sentry_sdk
except ImportError:
    sentry_sdk = None

pytestmark = pytest.mark.skipif(sentry_sdk is None, reason="Sentry is not installed")


class Collector:
    """A server that takes envelopes, and keeps what the events in them say."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.server.server_port}/1"

    def take(self, body: bytes) -> None:
        # Lines of JSON: the envelope's header, then header and payload of each item.
        lines = body.splitlines()[1:]
        for header, payload in zip(lines[::2], lines[1::2], strict=False):
            if json.loads(header).get("type") == "event":
                event = json.loads(payload)
                values = event.get("exception", {}).get("values", [])
                self.messages.append(values[-1]["value"] if values else event["message"])


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def imports_omniloop():
    import omniloop  # noqa: F401


def imports_sentry():
    import sentry_sdk  # noqa: F401


async def tell():
    await asyncio.sleep(0.2)
    sentry_sdk.capture_message("told while draining")


async def fail():
    await asyncio.sleep(0.1)
    raise LookupError("lost while draining")


@pytest.fixture
def init(collector):
    """Begins a program: sets up Sentry."""
    dsn = collector.dsn

    def begin():
        # By itself it imports all the frameworks that are installed, and Django in any case: most of a second.
        sys.modules["django"] = None
        sentry_sdk.init(dsn, shutdown_timeout=3, auto_enabling_integrations=False)
        # Starts the thread of Sentry's transport: 3.12 starts none at exit, and Sentry then drops what it is given.
        sentry_sdk.capture_message("started")

    return begin


@pytest.mark.promise("So are Sentry's events")
@pytest.mark.parametrize("first", [imports_omniloop, imports_sentry])
def test_events_of_draining_work_arrive_whichever_was_imported_first(collector, init, first):
    def program():
        go(tell())

    result = run_child(first, init, program)

    assert result.code == 0, result.stderr
    assert collector.messages == ["started", "told while draining"]


@pytest.mark.parametrize("first", [imports_omniloop, imports_sentry])
def test_a_forgotten_failure_while_draining_is_an_event(collector, init, first):
    """The report is a log record of level ERROR, and those Sentry's logging integration takes."""

    def program():
        go(fail())

    result = run_child(first, init, program)

    assert result.code == 0
    assert collector.messages == ["started", "lost while draining"]


@pytest.mark.promise("And failures that are held to the end are events of Sentry's")
@pytest.mark.parametrize("first", [imports_omniloop, imports_sentry])
def test_a_failure_that_is_held_to_the_end_is_an_event(collector, init, first):
    def program():
        held = go(fail())

    result = run_child(first, init, program)

    assert result.code == 0
    assert collector.messages == ["started", "lost while draining"]


@pytest.mark.parametrize(
    "used_before",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.skipif(
                sys.version_info[:2] == (3, 12), reason="3.12 starts no thread once the main one has ended"
            ),
        ),
    ],
)
def test_events_of_work_that_a_thread_submits_after_the_main_thread_ended_arrive(collector, init, used_before):
    def program():
        if used_before:
            run(asyncio.sleep(0))
        main = threading.main_thread()
        threading.Thread(target=lambda: (main.join(), threading.Event().wait(0.1), go(tell()))).start()

    result = run_child(imports_omniloop, init, program)

    assert result.code == 0, result.stderr
    assert collector.messages == ["started", "told while draining"]


def test_the_scope_of_the_view_goes_with_the_task(collector, init):
    """Sentry keeps its scopes in context variables."""

    def program():
        async def tell_tag():
            await asyncio.sleep(0.01)
            sentry_sdk.capture_message(str(sentry_sdk.get_isolation_scope()._tags))

        def view(name):
            with sentry_sdk.isolation_scope() as scope:
                scope.set_tag("view", name)
                return go(tell_tag())

        for name in "ab":
            view(name).result()

    result = run_child(init, program)

    assert result.code == 0, result.stderr
    assert collector.messages == ["started", "{'view': 'a'}", "{'view': 'b'}"]
