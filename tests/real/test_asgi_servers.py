"""Under real ASGI servers, what an accepted request has left to `go` is done before its process is gone."""

import contextlib
import importlib.util
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("fastapi")

import servers

# A server with its workers, a service and a load, each in interpreters of their own, on a machine that may be busy.
pytestmark = pytest.mark.timeout(90)

# How each is started; and the module that must be there.
SERVERS = {
    "uvicorn": ("uvicorn", "-m uvicorn --port {port} asgi_app:{app}"),
    "uvicorn --workers": ("uvicorn", "-m uvicorn --port {port} --workers=2 asgi_app:{app}"),
    "uvicorn --reload": ("uvicorn", "-m uvicorn --port {port} --reload --reload-dir={folder} asgi_app:{app}"),
    "gunicorn, UvicornWorker": (
        "uvicorn.workers",
        "-m gunicorn --bind=127.0.0.1:{port} --no-control-socket --workers=2 --worker-class={worker} asgi_app:{app}",
    ),
    # One worker: gunicorn loses a SIGTERM that meets a worker which does not listen yet, and waits for that until it kills.
    "gunicorn, asgi": (
        "gunicorn.asgi",
        "-m gunicorn --bind=127.0.0.1:{port} --no-control-socket --worker-class=asgi asgi_app:{app}",
    ),
    "hypercorn": ("hypercorn", "-m hypercorn --bind=127.0.0.1:{port} asgi_app:{app}"),
    "granian": ("granian", "-m granian --interface=asgi --port={port} asgi_app:{app}"),
}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def serving(tmp_path: Path, service: str, name: str, app: str) -> Iterator[tuple[servers.Process, str]]:
    module, command = SERVERS[name]
    worker = "uvicorn.workers.UvicornWorker"
    if module == "uvicorn.workers":
        module = "gunicorn"
        if not installed("uvicorn.workers"):
            module, worker = "uvicorn_worker", "uvicorn_worker.UvicornWorker"
    if not installed(module):
        pytest.skip(f"{module} is not installed")
    port = servers.free_port()
    (tmp_path / "watched").mkdir(exist_ok=True)
    line = command.format(port=port, app=app, folder=tmp_path / "watched", worker=worker)
    env = {"SERVICE": service, "PYTHONPATH": servers.import_path(servers.HERE / "apps")}
    with servers.process([sys.executable, *line.split()], tmp_path / "server.log", tmp_path, env) as server:
        url = f"http://127.0.0.1:{port}"
        server.wait_for_page(f"{url}/pid")
        yield server, url


@pytest.mark.promise(
    "Under uvicorn (plain, `--workers`, `--reload`, gunicorn's `UvicornWorker`), gunicorn's own ASGI worker, hypercorn and granian, with the lifespan, a graceful stop under load drains"
)
@pytest.mark.parametrize("name", servers.variants(*SERVERS))
def test_a_graceful_stop_under_load_drains(tmp_path, name):
    with (
        servers.collector(tmp_path) as collector,
        serving(tmp_path, collector.url, name, "app") as (server, url),
    ):
        collector.hold()
        load = servers.load(url, 8, tmp_path)
        assert not load.failed
        with servers.loading(url, 100_000, tmp_path) as finish:
            servers.wait_until(lambda: collector.waiting() >= 24 + 24, "some of the second load")
            server.signal(signal.SIGTERM)
            collector.let_in(slowly=1)
            server.wait()
            more = finish()
        servers.assert_all_arrived_once(collector.arrived(), [*load.accepted, *more.accepted])
        assert "Traceback" not in server.log()
        assert "is lost" not in server.log()


@pytest.mark.promise("The lifespan goes with one's own, whose end comes first, and with an application that is wrapped")
@pytest.mark.parametrize("app", servers.variants("own", "inside", "wrapped"))
def test_the_lifespan_goes_with_ones_own_whose_end_comes_first(tmp_path, app):
    with servers.collector(tmp_path) as collector, serving(tmp_path, collector.url, "uvicorn", app) as (server, url):
        collector.hold()
        load = servers.load(url, 4, tmp_path)
        server.signal(signal.SIGTERM)
        server.wait_for_log("mine ends")
        collector.let_in(slowly=0.5)
        server.wait()

        arrived = collector.arrived()
        assert arrived.pop("mail/at-the-end") == 1
        servers.assert_all_arrived_once(arrived, load.accepted)
        assert server.log().count("mine begins") == 1


@pytest.mark.promise("uvicorn without the lifespan is told of once, with what to add")
@pytest.mark.parametrize("name", servers.variants("uvicorn", "gunicorn, UvicornWorker"))
def test_uvicorn_without_the_lifespan_is_told_of_once_with_what_to_add(tmp_path, name):
    with servers.collector(tmp_path) as collector, serving(tmp_path, collector.url, name, "bare") as (server, url):
        collector.hold()
        servers.load(url, 8, tmp_path)
        server.signal(signal.SIGTERM)
        server.wait()

        lines = [line for line in server.log().splitlines() if "is lost" in line]
        assert 1 <= len(lines) <= (1 if name == "uvicorn" else 2)
        assert "FastAPI(lifespan=omniloop.ext.asgi.lifespan)" in lines[0]
        # As it says.
        assert collector.arrived() == {}


@pytest.mark.parametrize("name", servers.variants("uvicorn", "hypercorn"))
def test_sigint_drains_as_well(tmp_path, name):
    with servers.collector(tmp_path) as collector, serving(tmp_path, collector.url, name, "app") as (server, url):
        collector.hold()
        load = servers.load(url, 8, tmp_path)
        server.signal(signal.SIGINT)
        server.wait_for_log("Shutting down" if name == "uvicorn" else "Running on")
        collector.let_in(slowly=0.5)
        server.wait()

        servers.assert_all_arrived_once(collector.arrived(), load.accepted)


@pytest.mark.promise("The application of the page on FastAPI drains")
def test_the_application_of_the_page_drains(tmp_path):
    if not installed("uvicorn"):
        pytest.skip("uvicorn is not installed")
    page = (servers.EXAMPLES.parent / "docs" / "how-to" / "fastapi.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    first = next(block for block in blocks if "FastAPI(lifespan=lifespan)" in block)
    second = next(block for block in blocks if "FastAPI(lifespan=lifespan(mine))" in block)
    (tmp_path / "page.py").write_text(f"{first}\nfirst_app = app\n{second}")
    for app in ("first_app", "app"):
        port = servers.free_port()
        command = [sys.executable, "-m", "uvicorn", f"--port={port}", f"page:{app}"]
        with servers.process(command, tmp_path / f"{app}.log", tmp_path) as server:
            server.wait_for_page(f"http://127.0.0.1:{port}/openapi.json")
            if app == "first_app":
                servers.post(f"http://127.0.0.1:{port}/accounts/ada")
            server.stop()
            assert ("welcome, ada" if app == "first_app" else "welcome, the end") in server.log()
