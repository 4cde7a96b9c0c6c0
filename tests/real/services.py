"""
Message brokers and a database of the tests' own: started on free ports of loopback, in a temporary directory, and gone at the end.

RabbitMQ, NATS, PostgreSQL and Redis are packages of Debian; where one is missing its tests are skipped, with the command that installs it.
"""

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from servers import Process, free_port, process, wait_until

# An Erlang machine on a busy one.
START = 60.0

PACKAGES = {
    "rabbitmq": "rabbitmq-server",
    "nats": "nats-server",
    "postgres": "postgresql",
    "redis": "redis-server",
}
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"


def program(name: str) -> str:
    """The path of a server's program; skips the test if it is not there."""
    if name == "postgres":
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
        path = found[-1] if found else shutil.which("postgres")
    elif name == "rabbitmq":
        path = RABBITMQ if os.path.exists(RABBITMQ) else None
    else:
        path = shutil.which(f"{name}-server")
    if path is None:
        pytest.skip(f"{name} is not installed: bash .ci/servers, or apt-get install {PACKAGES[name]}")
    return path


def answers(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


class Service:
    """A server that can be killed, and started again on the same port with the same files."""

    def __init__(self, url: str, start: Callable[[], contextlib.AbstractContextManager[Process]]) -> None:
        self.url = url
        self._start = start
        self._stack = contextlib.ExitStack()
        self._process: Process | None = None

    def start(self) -> None:
        self._process = self._stack.enter_context(self._start())

    def stop(self) -> None:
        """In order, as an administrator does."""
        assert self._process is not None
        self._process.stop()
        self._stack.close()

    def kill(self) -> None:
        """As a power cut does."""
        self._stack.close()

    def log(self) -> str:
        assert self._process is not None
        return self._process.log()


@contextlib.contextmanager
def nats(
    folder: Path, config: str = "", address: str = "127.0.0.1", inside: Sequence[str] = (), tls: Path | None = None
) -> Iterator[Service]:
    """
    *inside* is what a command begins with that runs in another namespace, where *address* is.

    With *tls*, here and below, a folder with `ca.pem`, `server.pem` and `server.key`, it listens for TLS alone.
    """
    port = free_port()
    command: list[object] = [*inside, program("nats"), "-a", address, "-p", port, "-js", "-sd", folder / "jetstream"]
    if tls is not None:
        command += ["--tls", "--tlscert", tls / "server.pem", "--tlskey", tls / "server.key"]
    if config:
        (folder / "nats.conf").write_text(config)
        command += ["-c", folder / "nats.conf"]

    @contextlib.contextmanager
    def start() -> Iterator[Process]:
        with process(command, folder / "nats.log", folder) as running:
            wait_until(lambda: answers(port, address), running.log, START)
            yield running

    yield from _service(f"nats://{address}:{port}" if tls is None else f"tls://localhost:{port}", start)


@contextlib.contextmanager
def redis(
    folder: Path, address: str = "127.0.0.1", inside: Sequence[str] = (), tls: Path | None = None
) -> Iterator[Service]:
    port = free_port()
    command = [*inside, program("redis"), "--bind", address, "--dir", folder, "--appendonly", "yes"]
    command += ["--port", port] if tls is None else ["--port", 0, "--tls-port", port, "--tls-auth-clients", "no"]
    if tls is not None:
        command += ["--tls-cert-file", tls / "server.pem", "--tls-key-file", tls / "server.key"]
        command += ["--tls-ca-cert-file", tls / "ca.pem"]
    command += ["--protected-mode", "no"]

    @contextlib.contextmanager
    def start() -> Iterator[Process]:
        with process(command, folder / "redis.log", folder) as running:
            wait_until(lambda: answers(port, address), running.log, START)
            yield running

    yield from _service(f"redis://{address}:{port}" if tls is None else f"rediss://localhost:{port}", start)


@contextlib.contextmanager
def rabbitmq(folder: Path, tls: Path | None = None) -> Iterator[Service]:
    server = program("rabbitmq")
    port, between_nodes, names = free_port(), free_port(), free_port()
    folder = folder / "rabbitmq"
    folder.mkdir()
    (folder / "plugins").write_text("[].\n")
    env = {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"tests{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(between_nodes),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        # A limit that a test can go over, instead of 128 MB.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -rabbit max_message_size 1048576",
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }

    if tls is not None:
        (folder / "tls.conf").write_text(
            f"listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {tls / 'ca.pem'}\n"
            f"ssl_options.certfile = {tls / 'server.pem'}\nssl_options.keyfile = {tls / 'server.key'}\n"
        )
        env["RABBITMQ_CONFIG_FILE"] = str(folder / "tls")
        # It would be that of a listener without.
        del env["RABBITMQ_NODE_PORT"], env["RABBITMQ_NODE_IP_ADDRESS"]

    @contextlib.contextmanager
    def start() -> Iterator[Process]:
        with process([server], folder / "rabbitmq.log", folder, env) as running:
            wait_until(lambda: "Server startup complete" in running.log() and answers(port), running.log, START)
            yield running

    # Erlang's register of names: else the first node would leave one behind.
    with process([shutil.which("epmd") or "epmd", "-port", names], folder / "epmd.log", folder, env):
        url = f"amqp://guest:guest@127.0.0.1:{port}/" if tls is None else f"amqps://guest:guest@localhost:{port}/"
        yield from _service(url, start)


@contextlib.contextmanager
def postgres(_folder: Path) -> Iterator[Service]:
    server = program("postgres")
    port = free_port()
    # It refuses to be root, and pytest's own folders are for the user alone that runs the tests.
    folder = Path(tempfile.mkdtemp(prefix="omniloop-postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    try:
        initdb = [*as_user, str(Path(server).with_name("initdb")), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync"]  # fmt: skip
        subprocess.run(initdb, check=True, capture_output=True, timeout=START, cwd=folder)
        command = [*as_user, server, "-D", folder / "data", "-p", port, "-k", folder, "-h", "127.0.0.1"]

        @contextlib.contextmanager
        def start() -> Iterator[Process]:
            with process(command, folder.with_suffix(".log"), folder) as running:
                wait_until(lambda: "ready to accept connections" in running.log(), running.log, START)
                yield running

        yield from _service(f"postgresql://postgres@127.0.0.1:{port}/postgres", start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def _service(url: str, start: Callable[[], contextlib.AbstractContextManager[Process]]) -> Iterator[Service]:
    service = Service(url, start)
    service.start()
    try:
        yield service
    finally:
        service.kill()


KINDS = {"rabbitmq": rabbitmq, "nats": nats, "postgres": postgres, "redis": redis}
