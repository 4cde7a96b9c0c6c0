"""In a real Celery prefork worker, `run` waits on the one loop of the worker process, and `go` is done before that process ends."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("celery")

import servers

# A worker with its processes, a service and a client, each in interpreters of their own, on a machine that may be busy.
pytestmark = pytest.mark.timeout(90)

CLIENT = """
import json, sys
from app import register
sent = [register.delay(account) for account in range(1, int(sys.argv[1]) + 1)]
print(json.dumps([result.get(timeout=30) for result in sent]))
"""


def environment(tmp_path: Path, service: str, folder: Path = servers.EXAMPLES / "celery_app") -> dict[str, str]:
    return {
        "SERVICE": service,
        "FOLDER": str(tmp_path),
        "PYTHONPATH": servers.import_path(folder),
        # It warns of running as root, which a container does.
        "C_FORCE_ROOT": "1",
    }


@contextmanager
def worker(
    tmp_path: Path, service: str, *options: str, folder: Path = servers.EXAMPLES / "celery_app"
) -> Iterator[servers.Process]:
    command = [sys.executable, "-m", "celery", "--app", "app", "worker", "--pool=prefork", "--concurrency=2"]
    quiet = ["--loglevel=INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    log = tmp_path / "celery.log"
    with servers.process(
        [*command, *quiet, *options], log, tmp_path, environment(tmp_path, service, folder)
    ) as running:
        running.wait_for_log(" ready.")
        yield running


def send(tmp_path: Path, service: str, count: int) -> list[str]:
    """Have *count* accounts registered; returns the results of the tasks."""
    command = [sys.executable, "-c", CLIENT, count]
    with servers.process(command, tmp_path / "client.log", tmp_path, environment(tmp_path, service)) as client:
        assert client.wait() == 0, client.log()
        return json.loads(client.log())


@pytest.mark.promise(
    "In a Celery prefork worker, a warm shutdown drains what the tasks have left to `go`, with one handler of `worker_process_shutdown`"
)
def test_a_warm_shutdown_drains_what_the_tasks_have_left_to_go(tmp_path):
    with servers.collector(tmp_path) as collector, worker(tmp_path, collector.url) as celery:
        collector.hold(but="mail")
        # The tasks are done, and their results are there: the mail was sent by `run`. The rest waits.
        assert send(tmp_path, collector.url, 10) == ["No Content"] * 10
        servers.wait_until(lambda: collector.waiting() == 20, "the work that is held")
        celery.signal(signal.SIGTERM)
        celery.wait_for_log("draining <Runtime 'omniloop', ", times=2)
        collector.let_in()

        assert celery.wait() == 0, celery.log()
        servers.assert_all_arrived_once(collector.arrived(), range(1, 11))
        assert "Traceback" not in celery.log()
        assert "is lost" not in celery.log()


@pytest.mark.promise("A Celery prefork worker without that handler is told, once in a process, what it will lose")
def test_a_prefork_worker_without_the_handler_is_told_what_it_will_lose(tmp_path):
    (tmp_path / "bare").mkdir()
    source = (servers.EXAMPLES / "celery_app" / "app.py").read_text(encoding="utf-8")
    (tmp_path / "bare" / "app.py").write_text(source.replace("@worker_process_shutdown.connect\n", ""))
    with servers.collector(tmp_path) as collector, worker(tmp_path, collector.url, folder=tmp_path / "bare") as celery:
        collector.hold(but="mail")
        send(tmp_path, collector.url, 10)
        servers.wait_until(lambda: collector.waiting() == 20, "the work that is held")
        celery.signal(signal.SIGTERM)
        assert celery.wait() == 0, celery.log()

        lines = [line for line in celery.log().splitlines() if "is lost" in line]
        assert 1 <= len(lines) <= 2, celery.log()
        assert all("Celery ends this process" in line and "worker_process_shutdown" in line for line in lines)
        # As it says.
        assert {key.split("/")[0] for key in collector.arrived()} == {"mail"}


@pytest.mark.long
@pytest.mark.promise("Processes that Celery recycles (`--max-tasks-per-child`) are drained by the same handler")
def test_recycling_processes_with_max_tasks_per_child_drains_each(tmp_path):
    with (
        servers.collector(tmp_path) as collector,
        worker(tmp_path, collector.url, "--max-tasks-per-child=5") as celery,
    ):
        # Longer than Celery itself lets its processes linger.
        collector.let_in(slowly=2, but="mail")
        send(tmp_path, collector.url, 20)
        celery.signal(signal.SIGTERM)

        assert celery.wait() == 0, celery.log()
        servers.assert_all_arrived_once(collector.arrived(), range(1, 21))
