"""Turns the monitor on in a running process, by `sys.remote_exec`, which CPython has since 3.14."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import sockets
from .client import Connection, NoAnswerError, exists

# Seconds for the main thread of the other process to run the script and for its monitor to listen, together.
_PATIENCE: Final = 5.0
_LOOK_EVERY: Final = 0.02

# Runs in the main thread of the other process, between two instructions of whatever runs there; so it only starts a thread.
_SCRIPT: Final = """
import contextvars, sys, threading
def turn_on(result={result!r}):
    try:
        if "omniloop" not in sys.modules:
            raise RuntimeError("it has not imported omniloop")
        sys.modules["omniloop"].configure(monitor=True)
        words = "on"
    except BaseException as error:
        words = f"{{type(error).__name__}}: {{error}}"
    with open(result, "w", encoding="utf-8") as file:
        file.write(words + "\\n")
open({result!r}, "w").close()
threading.Thread(target=turn_on, name="omniloop-attach", daemon=True, context=contextvars.Context()).start()
"""


def attach(pid: int) -> None:
    """
    Turn the monitor of the process *pid* on. Returns when it can be asked.

    Raises:
        NoAnswerError: of `omniloop._monitor.client`, if that can't be done; the message says what is missing.
    """
    with contextlib.suppress(NoAnswerError):
        Connection(pid).close()
        return
    if not exists(pid):
        raise NoAnswerError(f"There is no process {pid}.")
    if sys.version_info < (3, 14):
        raise NoAnswerError(
            f"attach needs Python 3.14 or later, of the same minor version in both processes, and this is {sys.version.partition(' ')[0]}. "
            "Start the process with OMNILOOP_MONITOR=1."
        )
    with tempfile.TemporaryDirectory(prefix="omniloop-attach-") as folder:
        script, result = Path(folder, "script.py"), Path(folder, "result")
        script.write_text(_SCRIPT.format(result=str(result)), encoding="utf-8")
        owner = sockets.owner(pid)
        if owner not in (None, os.geteuid()):
            raise NoAnswerError(
                f"The process {pid} is of the user {owner}, and its monitor answers that user (and root) alone: run this as that user."
            )
        _execute(pid, str(script))
        _wait(pid, result)
    Connection(pid).close()


def _execute(pid: int, script: str) -> None:
    # `sys.remote_exec` is new in 3.14; type checkers for older versions do not know it.
    execute: Callable[[int, str], None] = getattr(sys, "remote_exec")  # noqa: B009
    try:
        execute(pid, script)
    except ProcessLookupError:
        raise NoAnswerError(f"There is no process {pid}.") from None
    except PermissionError as error:
        raise NoAnswerError(
            f"The system does not let the process {pid} be attached to: {error}. It takes the same user and the capability "
            "CAP_SYS_PTRACE (or /proc/sys/kernel/yama/ptrace_scope at 0); in a container: --cap-add=SYS_PTRACE."
        ) from None
    except (RuntimeError, OSError) as error:
        raise NoAnswerError(
            f"The process {pid} can't be attached to: {error}. It has to be a CPython {sys.version_info[0]}.{sys.version_info[1]}, as "
            "this one is, and not be started with PYTHON_DISABLE_REMOTE_DEBUG or -X disable-remote-debug."
        ) from None


def _wait(pid: int, result: Path) -> None:
    """Wait for the other process's words in the file *result*, which is empty while the process turns its monitor on."""
    words: str | None = None
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            words = result.read_text(encoding="utf-8")
        if words == "on\n":
            return
        if words and words.endswith("\n"):
            raise NoAnswerError(f"The process {pid} can't turn its monitor on: {words.strip()}")
        time.sleep(_LOOK_EVERY)
    if words is not None:
        raise NoAnswerError(
            f"The process {pid} has begun to turn its monitor on, and is not done after {_PATIENCE:g} s."
        )
    raise NoAnswerError(
        f"The main thread of the process {pid} did not run any Python within {_PATIENCE:g} s: it is blocked, in a lock or a system call "
        "say, and what is attached runs there. It will listen when the main thread goes on; until then `py-spy dump --pid` looks into it."
    )
