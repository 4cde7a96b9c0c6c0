"""
Kills what the tests have started once they themselves are gone, whatever ended them: SIGKILL, a time limit, a second Ctrl-C.

No `finally` runs then. So a process of its own reads a pipe that only the tests can write to; when it comes to the end of that, they
are gone, and it kills the process groups that were not taken off its list.
"""

import atexit
import os
import subprocess
import sys
from typing import Any

_PROGRAM = """
import os, signal, sys
# Of the terminal's Ctrl-C it is no part.
os.setsid()
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
"""

_guardian: "subprocess.Popen[str] | None" = None


def watch(child: "subprocess.Popen[Any]") -> None:
    """Kill the group that *child* leads should this process end before `forget`."""
    global _guardian
    if os.name != "posix":
        # Windows has no groups of processes that could be killed so.
        return
    if _guardian is None:
        _guardian = subprocess.Popen([sys.executable, "-I", "-c", _PROGRAM], stdin=subprocess.PIPE, text=True)
        atexit.register(_end)
    _tell(f"+{child.pid}\n")


def forget(child: "subprocess.Popen[Any]") -> None:
    """The group that *child* led is gone."""
    if _guardian is None:
        return
    _tell(f"-{child.pid}\n")


def _tell(line: str) -> None:
    assert _guardian is not None and _guardian.stdin is not None
    _guardian.stdin.write(line)
    _guardian.stdin.flush()


def _end() -> None:
    assert _guardian is not None and _guardian.stdin is not None
    _guardian.stdin.close()
    _guardian.wait(10)
