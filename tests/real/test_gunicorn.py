"""Under real gunicorn, what an accepted request has left to `go` is done before its worker is gone."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("flask")
pytest.importorskip("gunicorn")

import servers

# A server with its workers, a service and a load, each in interpreters of their own, on a machine that may be busy.
pytestmark = pytest.mark.timeout(90)

LONG = pytest.mark.long


@contextmanager
def gunicorn(
    tmp_path: Path, service: str, *options: object, app: str = "app:app"
) -> Iterator[tuple[servers.Process, str]]:
    port = servers.free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", tmp_path]
    with servers.process(
        [*command, "--no-control-socket", *options, app],
        tmp_path / "gunicorn.log",
        tmp_path,
        {
            "SERVICE": service,
            "DATABASE": str(tmp_path / "accounts.sqlite"),
            "PYTHONPATH": servers.import_path(servers.EXAMPLES / "flask_app", servers.HERE / "apps"),
        },
    ) as running:
        url = f"http://127.0.0.1:{port}"
        running.wait_for_page(f"{url}/pid")
        yield running, url


@pytest.mark.promise(
    "Under gunicorn, sync and gthread, with and without `--preload`, used in the master or not, a graceful stop drains: every accepted request's work has arrived, none twice"
)
@pytest.mark.parametrize("worker", servers.variants("--worker-class=gthread --threads=4", "--worker-class=sync"))
@pytest.mark.parametrize(
    ("app", "preload"),
    [("app:app", ""), pytest.param("app:app", "--preload", marks=LONG), ("used_in_master:app", "--preload")],
)
def test_a_graceful_stop_drains(tmp_path, app, preload, worker):
    with (
        servers.collector(tmp_path) as collector,
        gunicorn(tmp_path, collector.url, "--workers=2", *worker.split(), *preload.split(), app=app) as (server, url),
    ):
        collector.hold()
        load = servers.load(url, 30, tmp_path)
        assert not load.failed
        # Nothing is done when the server is told to stop, and the workers are on their way out when it can be.
        assert collector.arrived() == {}
        server.signal(signal.SIGTERM)
        server.wait_for_log("Worker exiting", times=2)
        collector.let_in(slowly=1)

        assert server.wait() == 0
        servers.assert_all_arrived_once(collector.arrived(), load.accepted)
        assert "Traceback" not in server.log()


@pytest.mark.promise("Workers that gunicorn recycles (`--max-requests`) are drained")
@pytest.mark.parametrize("worker", servers.variants("--worker-class=gthread --threads=4", "--worker-class=sync"))
def test_recycling_workers_with_max_requests_drains_each(tmp_path, worker):
    with (
        servers.collector(tmp_path) as collector,
        gunicorn(tmp_path, collector.url, "--workers=2", "--max-requests=10", *worker.split()) as (server, url),
    ):
        load = servers.load(url, 50, tmp_path)
        assert server.stop() == 0

        assert server.log().count("Autorestarting worker") >= 3
        servers.assert_all_arrived_once(collector.arrived(), load.accepted)


@LONG
@pytest.mark.promise("A reload (SIGHUP) under load loses nothing that was accepted")
def test_a_reload_by_sighup_under_load_drains_the_old_workers(tmp_path):
    with (
        servers.collector(tmp_path) as collector,
        gunicorn(tmp_path, collector.url, "--workers=2", "--worker-class=gthread", "--threads=2") as (server, url),
        servers.loading(url, 100_000, tmp_path) as finish,
    ):
        # Twice, the second time when the workers of the time before are gone.
        for reload in (1, 2):
            servers.wait_until(lambda seen=len(collector.arrived()): len(collector.arrived()) > seen + 30, "load")
            server.signal(signal.SIGHUP)
            server.wait_for_log("Worker exiting", times=2 * reload)
        load = finish()
        assert server.stop() == 0

        servers.assert_all_arrived_once(
            {key: times for key, times in collector.arrived().items() if int(key.split("/")[1]) in set(load.accepted)},
            load.accepted,
        )


@pytest.mark.promise("What outlasts the exit deadline is named in the log before gunicorn kills the worker")
def test_what_outlasts_the_deadline_is_named_in_the_log_before_gunicorn_kills_the_worker(tmp_path):
    with (
        servers.collector(tmp_path) as collector,
        gunicorn(tmp_path, collector.url, "--workers=1", "--graceful-timeout=20", app="short_deadline:app") as running,
    ):
        server, url = running
        collector.hold()
        load = servers.load(url, 1, tmp_path)

        assert server.stop() == 0

        assert len(load.accepted) == 1
        assert "3 unfinished when the time for draining was over, and cancelled" in server.log()
        assert server.log().count("tell, for ") == 3
        assert collector.arrived() == {}


@pytest.mark.promise("A worker that gunicorn times out loses what is not done within the second that it has left")
def test_a_worker_that_times_out_loses_what_is_not_done_within_the_second_it_has_left(tmp_path):
    with (
        servers.collector(tmp_path) as collector,
        gunicorn(tmp_path, collector.url, "--workers=1", "--timeout=1", app="hangs:app") as (server, url),
    ):
        first_pid = servers.get(f"{url}/pid")
        collector.hold()
        threading.Thread(target=servers.get, args=[f"{url}/hang"]).start()
        servers.wait_until(collector.waiting, "the first step of the work")
        # It waits at the gate; gunicorn tells the worker to abort, then kills it.
        server.wait_for_log("WORKER TIMEOUT")
        servers.wait_until(lambda: not _alive(int(first_pid)), "the end of the worker")
        collector.let_in()

        assert servers.wait_until(lambda: servers.get(f"{url}/pid"), "the next worker") != first_pid
        load = servers.load(url, 5, tmp_path)
        assert server.stop() == 0
        # Neither of the two steps was done.
        assert not {"first/1", "second/1"} & set(collector.arrived())
        servers.assert_all_arrived_once(collector.arrived(), load.accepted)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
