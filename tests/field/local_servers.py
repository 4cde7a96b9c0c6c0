"""Servers for the programs of this folder: each on a free port of loopback, in the current directory, and stopped at the end."""

import contextlib
import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"Nothing listens on port {port} after 30 s.")


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Its DSN. PostgreSQL refuses to run as root, so it runs as Debian's user for it there."""
    port = free_port()
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="omniloop-field-pg-", ignore_cleanup_errors=True) as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = f"{folder}/data"

        def pg_ctl(*arguments: str) -> None:
            subprocess.run(
                ["pg_ctl", "-D", data, "-s", "-w", *arguments], check=True, user=user, cwd=folder, timeout=60
            )

        pg_ctl("init", "-o", "-A trust -U postgres -N")
        pg_ctl("start", "-l", f"{folder}/log", "-o", f"-p {port} -h 127.0.0.1 -k {folder} -F")
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            pg_ctl("stop", "-m", "immediate")
