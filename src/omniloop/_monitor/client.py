"""Finds the monitored processes of the user, and asks them for what their loops are doing."""

from __future__ import annotations

import contextlib
import errno
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

    def ask(self, question: str) -> dict[str, Any]:
        """
        Ask, wait for the answer, and return it.

        Raises:
            NoAnswerError: of `omniloop._monitor.client`, if the process is gone, does not answer in time, or answers with an error.
        """
        try:
            self._file.write(json.dumps({"ask": question}).encode() + b"\n")
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
    me, owner = os.geteuid(), sockets.owner(pid)
    # Root may ask the processes of any user.
    user = owner if me == 0 and owner is not None else me
    found, refused = sockets.find(user)
    for path in [path for number, path in found if number == pid]:
        connection = socket.socket(socket.AF_UNIX)
        try:
            _connect(connection, path, timeout)
            # Another user's process could listen here, and the user would believe what it says.
            if sockets.check_peer(connection, user) in (None, pid) or not exists(pid):
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
        if owner in (None, me):
            refused = (
                "it has no monitor. Turn it on with configure(monitor=True) or OMNILOOP_MONITOR=1; in a process that runs already, on "
                f"Python 3.14 and later: python -m omniloop attach {pid}"
            )
        elif me:
            refused = f"it is of the user {owner}, whose monitors answer that user and root alone. Ask as that user."
        else:
            refused = (
                f"it is of the user {owner}, and has no socket in {' or '.join(sockets.directories(user))}. It has no monitor, or "
                "another XDG_RUNTIME_DIR: ask as that user, with that one."
            )
    raise NoAnswerError(f"The process {pid} can't be asked: {refused}")


def _connect(connection: socket.socket, path: str, timeout: float) -> None:
    connection.settimeout(timeout)
    deadline = time.monotonic() + timeout
    # While the backlog is full, other connections wait to be accepted.
    while (code := connection.connect_ex(path)) == errno.EAGAIN and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
    if code:
        raise OSError(code, os.strerror(code))


def processes() -> list[dict[str, Any]]:
    """Ask all processes that can be asked for a description, in order of pid. Removes the sockets of dead processes."""
    # A directory that is not the user's is not looked into: no process is there.
    paths, _ = sockets.find(os.geteuid())
    found: list[dict[str, Any]] = []
    for pid in sorted({pid for pid, path in paths if not sockets.remove_dead(path)}):
        try:
            found.append(asked(pid, "hello", timeout=1))
        except NoAnswerError as error:
            found.append({"pid": pid, "problem": str(error)})
    return found


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
    except OSError as error:
        # Another error says that the process belongs to another user.
        return not isinstance(error, ProcessLookupError)
    return True
