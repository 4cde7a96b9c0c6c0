"""Starts real servers as processes of their own, loads them from another process, and counts what came of the accepted work."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import guardian
from children import child_environment

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
KINDS = ("mail", "audit", "webhook")

# For anything that a server does: it passes in far less, but the machine may be busy.
PATIENCE = 25.0


def variants(*values: Any) -> list[Any]:
    """For `parametrize`: the first runs whenever tests do, the others where there is time for what is long."""
    first, *others = values
    return [first, *(pytest.param(other, marks=pytest.mark.long) for other in others)]


def import_path(*folders: Path) -> str:
    """A `PYTHONPATH` with *folders* before the package under test."""
    return os.pathsep.join([*map(str, folders), child_environment()["PYTHONPATH"]])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(condition: Callable[[], Any], what: Callable[[], str] | str, timeout: float = PATIENCE) -> Any:
    """Look again and again, until *condition* returns something; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value


def get(url: str) -> str | None:
    """The body of a page, or None if it can't be had now."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()
    except urllib.error.HTTPError as answer:
        # Else 3.14 complains that its file was left open.
        answer.close()
        return None
    except (OSError, http.client.HTTPException):
        return None


def post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=PATIENCE):
        pass


class Process:
    """A process in a group of its own, whose output goes to a file that can be read while it runs."""

    def __init__(self, command: Sequence[object], log: Path, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=child_environment(env),
                start_new_session=True,
            )
        guardian.watch(self._popen)
        self.pid = self._popen.pid

    def log(self) -> str:
        return self._log.read_text(errors="backslashreplace")

    def wait_for_log(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= times, lambda: f"{times} of {text!r} in the log:\n{self.log()}")

    def wait_for_page(self, url: str) -> str:
        def page() -> str | None:
            assert self._popen.poll() is None, f"the server ended:\n{self.log()}"
            return get(url)

        return wait_until(page, lambda: f"an answer from {url}:\n{self.log()}")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def ended(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        wait_until(self.ended, lambda: f"the end of the process:\n{self.log()}")
        return self._popen.returncode

    def stop(self) -> int:
        """Ask it to end, as a supervisor does, and wait for that."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE)
        guardian.forget(self._popen)


@contextlib.contextmanager
def process(command: Sequence[object], log: Path, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A `Process` that is gone at the end, with whatever it has started."""
    running = Process(command, log, cwd, env)
    try:
        yield running
    finally:
        running.kill()


class Collector:
    """The service that counts what arrives, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def hold(self, but: str = "") -> None:
        """Let all that arrives from now on wait, but for one kind."""
        post(f"{self.url}/gate/shut?but={but}")

    def let_in(self, slowly: float = 0, but: str = "") -> None:
        """
        Answer all that waits, *slowly* seconds from now; and what comes then after as long, but for one kind.

        So that a worker that does not wait for its work is gone before: without that it might seem to have waited.
        """
        post(f"{self.url}/gate/open?delay={slowly}&but={but}")

    def waiting(self) -> int:
        return self._show()["waiting"]

    def arrived(self) -> dict[str, int]:
        """How often each piece of work has arrived."""
        return self._show()["arrived"]

    def _show(self) -> dict[str, Any]:
        return json.loads(get(f"{self.url}/arrived") or "the collector is gone")


@contextlib.contextmanager
def collector(tmp_path: Path) -> Iterator[Collector]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, EXAMPLES / "flask_app" / "collector.py", port]
    with process(command, tmp_path / "collector.log", tmp_path) as running:
        running.wait_for_page(f"{url}/arrived")
        yield Collector(url)


class Load(NamedTuple):
    """What the loading process saw: the accounts that the server said it had accepted, and what else came."""

    accepted: list[int]
    failed: list[str]


def load(url: str, count: int, tmp_path: Path) -> Load:
    """Send *count* registrations from another process."""
    with loading(url, count, tmp_path) as finish:
        return finish(stop=False)


@contextlib.contextmanager
def loading(url: str, count: int, tmp_path: Path) -> Iterator[Callable[..., Load]]:
    """Send registrations from another process meanwhile; call what is yielded to end that, and to see what came of it."""
    stop_file = tmp_path / "stop-loading"
    with process([sys.executable, HERE / "load.py", url, count, stop_file], tmp_path / "load.log", tmp_path) as running:

        def finish(*, stop: bool = True) -> Load:
            if stop:
                stop_file.touch()
            wait_until(running.ended, "the end of the load", timeout=45)
            return Load(**json.loads(running.log()))

        yield finish


def assert_all_arrived_once(arrived: Mapping[str, int], accepted: Sequence[int]) -> None:
    """Every accepted request's forgotten work has arrived, none twice, and nothing that nobody sent."""
    assert accepted, "nothing was accepted: the test shows nothing"
    assert len(set(accepted)) == len(accepted)
    expected = {f"{kind}/{account}" for account in accepted for kind in KINDS}
    lost = sorted(expected - set(arrived))
    assert not lost, f"{len(lost)} of {len(expected)} lost: {lost[:10]}"
    assert {key: times for key, times in arrived.items() if times > 1} == {}
