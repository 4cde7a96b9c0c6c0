"""Under real uWSGI, which forks in C and calls no fork hook: what an accepted request has left to `go` is done before its worker is gone."""

import asyncio
import shutil
import signal
import sys
import sysconfig
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("flask")

import servers

from children import run_child

UWSGI = shutil.which("uwsgi", path=sysconfig.get_path("scripts"))

# A server with its workers, a service and a load, each in processes of their own, on a machine that may be busy.
pytestmark = pytest.mark.timeout(90)


@contextmanager
def uwsgi(tmp_path: Path, service: str, *options: str, app: str = "app:app") -> Iterator[tuple[servers.Process, str]]:
    port = servers.free_port()
    command = [UWSGI, "--http-socket", f"127.0.0.1:{port}", "--master", "--die-on-term", "--need-app", "--module", app]
    environment = {
        "SERVICE": service,
        "DATABASE": str(tmp_path / "accounts.sqlite"),
        "PYTHONPATH": servers.import_path(
            servers.EXAMPLES / "flask_app", servers.HERE / "apps", Path(sysconfig.get_path("purelib"))
        ),
    }
    with servers.process([*command, *options], tmp_path / "uwsgi.log", tmp_path, environment) as running:
        url = f"http://127.0.0.1:{port}"
        running.wait_for_page(f"{url}/pid")
        yield running, url


@pytest.mark.promise(
    "Under uWSGI, which forks in C, a graceful stop drains; used in the master it needs `--lazy-apps` or `--py-call-uwsgi-fork-hooks`"
)
@pytest.mark.skipif(UWSGI is None, reason="uWSGI is not installed: pip install uwsgi compiles it")
@pytest.mark.parametrize(
    ("app", "options"),
    [
        ("app:app", ""),
        ("app:app", "--threads=2"),
        ("used_in_master:app", "--lazy-apps"),
        # Without this option uWSGI forks while another thread may hold the interpreter's lock; see docs/how-to/uwsgi.md.
        ("used_in_master:app", "--py-call-uwsgi-fork-hooks --threads=2"),
    ],
)
def test_a_graceful_stop_drains(tmp_path, app, options):
    with (
        servers.collector(tmp_path) as collector,
        uwsgi(tmp_path, collector.url, "--processes=2", "--enable-threads", *options.split(), app=app) as running,
    ):
        server, url = running
        collector.hold()
        load = servers.load(url, 30, tmp_path)
        assert not load.failed
        assert collector.arrived() == {}
        server.signal(signal.SIGTERM)
        server.wait_for_log("SIGTERM")
        collector.let_in(slowly=1.5)

        server.wait()
        servers.assert_all_arrived_once(collector.arrived(), load.accepted)
        assert "Traceback" not in server.log()


@pytest.mark.promise("Where uWSGI has no threads, a warning says what to do")
def test_a_warning_says_what_to_do_where_uwsgi_has_no_threads():
    """Up to 2.0.21 they were off by default: 2 of 2 forgotten tasks ran at the stop only. The uWSGI of today can't be had without."""

    def program():
        # What the server puts there.
        sys.modules["uwsgi"] = types.ModuleType("uwsgi")
        sys.modules["uwsgi"].has_threads = 0
        import omniloop

        omniloop.run(asyncio.sleep(0))

    child = run_child(program)

    assert (child.stdout, child.code) == ("", 0)
    assert child.stderr.count("RuntimeWarning: uWSGI runs without threads") == 1
    assert "Start uWSGI with --enable-threads" in child.stderr
