"""Finds the monitored processes of the user, and asks them for what their loops are doing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any, Final, Self

from .._report import shown, shown_lines
from . import sockets

# Seconds to wait for an answer. A process whose interpreter is blocked by C code gives none.
TIMEOUT: Final = 5.0
_LOOK_EVERY: Final = 0.01
_LONGEST_COMMAND: Final = 100


class NoAnswerError(Exception):
    """The process can't be asked; the message says why, and what to do."""


class Connection:
    """
    A connection to the monitor of one process.

    Raises:
        NoAnswerError: of `omniloop._monitor.client`, if the process can't be asked.
    """

    def __init__(self, pid: int, timeout: float = TIMEOUT) -> None:
        self.pid = pid
        self._timeout = timeout
        self._socket = _connected(pid, timeout)
        self._file = self._socket.makefile("rwb")

    def ask(self, question: str, **details: object) -> dict[str, Any]:
        """
        Ask, wait for the answer, and return it.

        Raises:
            NoAnswerError: of `omniloop._monitor.client`, if the process is gone, does not answer in time, or answers with an error.
        """
        try:
            self._file.write(json.dumps({"ask": question, **details}).encode() + b"\n")
            self._file.flush()
            line = self._file.readline()
        except TimeoutError:
            raise NoAnswerError(
                f"The process {self.pid} did not answer within {self._timeout:g} s: it is stopped, or something in C holds its "
                "interpreter. `py-spy dump --pid` looks into such a one from outside."
            ) from None
        except OSError as error:
            raise NoAnswerError(f"The process {self.pid} is gone: {error}") from None
        if not line.endswith(b"\n"):
            raise NoAnswerError(f"The process {self.pid} has ended, or has closed the connection.")
        try:
            answer: dict[str, Any] = _printable(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise NoAnswerError(f"What the process {self.pid} answered can't be read: {error}") from None
        if "error" in answer:
            raise NoAnswerError(f"The process {self.pid} answered: {answer['error']}")
        return answer

    def close(self) -> None:
        # Writes nothing: each question was flushed.
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def asked(pid: int, question: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Ask the process *pid* once: see `Connection`."""
    with Connection(pid, timeout) as connection:
        return connection.ask(question)


def _printable(told: Any) -> Any:
    """Escape unprintable characters in *told*, which could move a terminal's cursor, or worse."""
    if isinstance(told, str):
        return shown_lines(told)
    if isinstance(told, list):
        return [_printable(item) for item in told]
    if isinstance(told, dict):
        return {key: _printable(item) for key, item in told.items()}
    return told


def _connected(pid: int, timeout: float) -> socket.socket:
    refused: str | None = None
    me, owner = os.geteuid(), sockets.owner(pid)
    # Root may ask the processes of any user.
    user = owner if me == 0 and owner is not None else me
    for directory in sockets.directories(user):
        try:
            sockets.check(directory, user)
            paths = [path for number, path in sockets.in_directory(directory) if number == pid]
        except FileNotFoundError:
            continue
        except OSError as error:
            refused = str(error)
            continue
        for path in paths:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            try:
                _connect(connection, path)
                # Another user's process could listen here, and the user would believe what it says.
                peer = sockets.check_peer(connection, user)
                if peer in (None, pid) or not exists(pid):
                    return connection
                refused = f"{path} is the socket of a process in another container, which has the same number there."
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            except PermissionError as error:
                refused = f"{path} is not yours: {error}"
            except OSError as error:
                refused = str(error)
            connection.close()
    if refused is None:
        if not exists(pid):
            raise NoAnswerError(f"There is no process {pid}.")
        if owner not in (None, me):
            whose = f"it is of the user {owner}"
            raise NoAnswerError(
                f"The process {pid} can't be asked: {whose}, whose monitors answer that user and root alone. Ask as that user."
                if me
                else f"The process {pid} can't be asked: {whose}, and has no socket in {' or '.join(sockets.directories(user))}. It has "
                "no monitor, or another XDG_RUNTIME_DIR: ask as that user, with that one."
            )
        refused = (
            "it has no monitor. Turn it on with configure(monitor=True) or OMNILOOP_MONITOR=1; in a process that runs already, on "
            f"Python 3.14 and later: python -m omniloop attach {pid}"
        )
    raise NoAnswerError(f"The process {pid} can't be asked: {refused}")


def processes() -> list[dict[str, Any]]:
    """Ask all processes that can be asked for a description, in order of pid. Removes the sockets of dead processes."""
    user = os.geteuid()
    pids: set[int] = set()
    for directory in sockets.directories(user):
        # An error means that the directory does not exist or is not the user's: no process is there.
        with contextlib.suppress(OSError):
            sockets.check(directory, user)
            pids.update(pid for pid, path in sockets.in_directory(directory) if not sockets.remove_dead(path))
    found: list[dict[str, Any]] = []
    for pid in sorted(pids):
        try:
            found.append(asked(pid, "hello", timeout=1))
        except NoAnswerError as error:
            found.append({"pid": pid, "problem": str(error)})
    return found


def _connect(connection: socket.socket, path: str) -> None:
    deadline = time.monotonic() + (connection.gettimeout() or 0)
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:
            # The backlog is full: other connections wait to be accepted.
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_EVERY)
        else:
            return


def command_of(hello: dict[str, Any]) -> str:
    """The command line of the process, on one line and shortened: with `python -c` it holds a whole program."""
    line = " ".join(" ".join(hello["command"]).split())
    if len(line) > _LONGEST_COMMAND:
        # Cut between two words, unless the first word is longer than the limit.
        start = line[:_LONGEST_COMMAND].rpartition(" ")[0] or line[:_LONGEST_COMMAND]
        line = f"{start} …"
    return shown(line, 2 * _LONGEST_COMMAND)


def exists(pid: int) -> bool:
    """Whether there is a process *pid*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # The process belongs to another user.
        return True
    return True
