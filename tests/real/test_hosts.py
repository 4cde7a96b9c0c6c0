"""How hosts end their processes, row by row of docs/how-to/hosts.md: what is done of forgotten work, and what is not."""

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers

from children import child_environment

pytestmark = pytest.mark.timeout(90)

# Each piece of work adds a line to a file when it is done: what a host's own output says depends on its logging.
WORK = """
import asyncio, os, sys
import omniloop

async def late(number, seconds=0.5):
    await asyncio.sleep(seconds)
    with open(os.environ["DONE"], "a") as file:
        file.write(f"{number}\\n")
"""


class Host:
    """A folder with programs of a test's own, and what their forgotten work has done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("work", WORK)

    def write(self, name: str, source: str) -> None:
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    @property
    def env(self) -> dict[str, str]:
        return {"DONE": str(self.folder / "done"), "PYTHONPATH": servers.import_path(self.folder)}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=child_environment(self.env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended
        return ended

    def start(self, *arguments: str) -> "contextlib.AbstractContextManager[servers.Process]":
        return servers.process([sys.executable, *arguments], self.folder / "log", self.folder, self.env)

    def done(self) -> list[str]:
        path = self.folder / "done"
        return sorted(path.read_text().split()) if path.exists() else []


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server")
    port = servers.free_port()
    command = [program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    with servers.process(command, folder / "redis.log", folder) as running:
        running.wait_for_log("Ready to accept connections")
        yield f"redis://127.0.0.1:{port}/0"


# --- WSGI -------------------------------------------------------------------------------------------------------------

WSGI = """
import work

def application(environ, start_response):
    work.omniloop.go(work.late(environ["PATH_INFO"].strip("/"), 1))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"left"]
"""


@pytest.mark.promise(
    "Under waitress forgotten work is done on Ctrl-C, and on SIGTERM if that drains", section="Frameworks and servers"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waitress(host, number):
    needs("waitress")
    host.write("site_", WSGI)
    port = servers.free_port()
    host.write(
        "serve",
        f"""
        import omniloop, waitress
        from site_ import application
        # waitress has no handler of SIGTERM.
        omniloop.configure(sigterm="drain")
        waitress.serve(application, listen="127.0.0.1:{port}")
        """,
    )
    with host.start("serve.py") as server:
        server.wait_for_page(f"http://127.0.0.1:{port}/1")
        server.signal(number)
        server.wait()

    assert host.done() == ["1"]


@pytest.mark.promise("A reload of `flask run --debug` drains", section="Frameworks and servers")
def test_flask_run_debug_drains_at_a_reload(host):
    needs("flask")
    port = servers.free_port()
    host.write(
        "app",
        f"""
        import work
        from flask import Flask
        app = Flask(__name__)

        @app.get("/<number>")
        def leave(number):
            work.omniloop.go(work.late(number, 1))
            return "left"

        @app.get("/pid")
        def pid():
            return str(work.os.getpid())

        # As `flask run --debug`, which would choose another way to watch where the package watchdog is installed.
        app.run(debug=True, port={port}, reloader_type="stat")
        """,
    )
    with host.start("app.py") as server:
        first = server.wait_for_page(f"http://127.0.0.1:{port}/pid")
        servers.get(f"http://127.0.0.1:{port}/1")
        path = host.folder / "app.py"

        def reloaded() -> bool:
            if "Detected change" not in server.log():
                path.write_text(path.read_text() + "\n")
            return servers.get(f"http://127.0.0.1:{port}/pid") not in (None, first)

        servers.wait_until(reloaded, server.log)
        assert host.done() == ["1"]


# --- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "RQ ends each work horse without Python's exit: `flush()` at the end of the job saves what it left",
    section="Frameworks and servers",
)
@pytest.mark.parametrize("ending", ["nothing", "flush", "SimpleWorker"])
def test_rq(host, ending):
    needs("rq")
    host.write(
        "jobs",
        f"""
        import work
        def job(number):
            work.omniloop.go(work.late(number))
            if {ending == "flush"}:
                work.omniloop.flush()
        """,
    )
    host.write(
        "feed",
        """
        import sys, jobs, redis, rq
        for number in range(3):
            rq.Queue(connection=redis.Redis.from_url(sys.argv[1])).enqueue(jobs.job, number)
        """,
    )
    with redis(host.folder) as url:
        host.run("feed.py", url)
        kind = ["--worker-class", "rq.SimpleWorker"] if ending == "SimpleWorker" else []
        host.run("-m", "rq.cli", "worker", "--burst", "--url", url, *kind)

    assert host.done() == ([] if ending == "nothing" else ["0", "1", "2"])


@pytest.mark.promise("Dramatiq's workers drain on a graceful stop", section="Frameworks and servers")
def test_dramatiq(host):
    needs("dramatiq")
    with redis(host.folder) as url:
        host.write(
            "actors",
            f"""
            import dramatiq, work
            from dramatiq.brokers.redis import RedisBroker
            dramatiq.set_broker(RedisBroker(url="{url}"))

            @dramatiq.actor
            def job(number):
                work.omniloop.go(work.late(number, 2))
                print("taken", number, flush=True)
            """,
        )
        host.write("feed", "import actors\nfor number in range(3):\n    actors.job.send(number)\n")
        host.run("feed.py")
        with host.start("-m", "dramatiq", "actors", "--processes=1", "--threads=2") as workers:
            workers.wait_for_log("taken", times=3)
            workers.stop()

    assert host.done() == ["0", "1", "2"]


@pytest.mark.promise(
    "Huey's consumer drains on a graceful stop, with threads and with processes", section="Frameworks and servers"
)
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_huey(host, kind):
    needs("huey")
    host.write(
        "tasks",
        """
        import work
        from huey import SqliteHuey
        huey = SqliteHuey(filename="huey.sqlite")

        @huey.task()
        def job(number):
            work.omniloop.go(work.late(number, 2))
            print("taken", number, flush=True)
        """,
    )
    host.write("feed", "import tasks\nfor number in range(3):\n    tasks.job(number)\n")
    host.run("feed.py")
    with host.start("-m", "huey.bin.huey_consumer", "tasks.huey", "--workers=2", f"--worker-type={kind}") as consumer:
        consumer.wait_for_log("taken", times=3)
        # SIGINT is its graceful stop.
        consumer.signal(signal.SIGINT)
        consumer.wait()

    assert host.done() == ["0", "1", "2"]


@pytest.mark.promise(
    "What a job of APScheduler has left is done at the end of the program", section="Frameworks and servers"
)
def test_apscheduler(host):
    needs("apscheduler.schedulers") if importlib.util.find_spec("apscheduler") else needs("apscheduler")
    host.write(
        "program",
        """
        import threading, work
        from apscheduler.schedulers.background import BackgroundScheduler
        ran = threading.Event()
        def job():
            work.omniloop.go(work.late(1))
            ran.set()
        scheduler = BackgroundScheduler()
        scheduler.start()
        scheduler.add_job(job)
        ran.wait(20)
        scheduler.shutdown()
        """,
    )
    host.run("program.py")

    assert host.done() == ["1"]


# --- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "What the workers of a `ProcessPoolExecutor` have left is done before they end", section="Frameworks and servers"
)
def test_concurrent_futures(host):
    host.write(
        "program",
        """
        import concurrent.futures, work
        def leave(number):
            work.omniloop.go(work.late(number))
        if __name__ == "__main__":
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                list(pool.map(leave, range(4)))
        """,
    )
    host.run("-W", "ignore", "program.py")

    assert host.done() == ["0", "1", "2", "3"]


@pytest.mark.promise("So is what those of joblib's loky have left", section="Frameworks and servers")
def test_joblib(host):
    needs("joblib")
    host.write(
        "program",
        """
        import joblib, work
        def leave(number):
            work.omniloop.go(work.late(number))
        if __name__ == "__main__":
            joblib.Parallel(n_jobs=2)(joblib.delayed(leave)(number) for number in range(4))
        """,
    )
    host.run("-W", "ignore", "program.py")
    # The workers outlast the program that started them, by a little.
    servers.wait_until(lambda: len(host.done()) == 4, lambda: str(host.done()))

    assert host.done() == ["0", "1", "2", "3"]


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A program that PyInstaller has frozen drains at its end", section="Frameworks and servers")
def test_pyinstaller(host):
    needs("PyInstaller")
    # A dump is of what is loaded on its first use.
    host.write(
        "program", "import os, work\nwork.omniloop.dump(open(os.devnull, 'w'))\nwork.omniloop.go(work.late(1))\n"
    )
    source = child_environment()["PYTHONPATH"].split(":")[0]
    host.run("-m", "PyInstaller", "--log-level=ERROR", f"--paths={source}", "program.py")
    subprocess.run(
        [host.folder / "dist" / "program" / "program"], env=child_environment(host.env), timeout=30, check=True
    )

    assert host.done() == ["1"]


@pytest.mark.promise(
    "A handler whose host freezes the process after the response flushes at its end", section="Frameworks and servers"
)
def test_a_process_that_is_frozen_after_the_response(host):
    host.write(
        "program",
        """
        import sys, work
        def handler(event, context):
            work.omniloop.go(work.late(event, 0.2))
            if event == "flushed":
                work.omniloop.flush(timeout=10)
            return "response"
        print(handler(sys.argv[1], None), flush=True)
        # As such a host does, which then only kills it.
        os = work.os
        os.kill(os.getpid(), 19)
        """,
    )
    for event in ("left", "flushed"):
        with host.start("program.py", event) as process:
            process.wait_for_log("response")
            threading.Event().wait(0.5)

    assert host.done() == ["flushed"]
