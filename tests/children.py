"""Runs a program in an interpreter of its own: the only way to see what happens at exit, at fork and on signals."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import guardian
from programs import source_of

SRC = Path(__file__).resolve().parent.parent / "src"


# By the second and third a program is told what a stop will lose; by the others Python has its tracebacks in colours.
_TOLD_OF = ("OMNILOOP_", "KUBERNETES_SERVICE_HOST", "SYSTEMD_EXEC_PID", "FORCE_COLOR", "PYTHON_COLORS")


class Result(NamedTuple):
    """What came out of a child: its streams, its exit code (negative: the signal it died of), and how long it took."""

    stdout: str
    stderr: str
    code: int
    seconds: float


def child_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The parent's environment, with the package under test importable, and *env* on top; nothing that we go by leaks in but `OMNILOOP_LOOP`; with `OMNILOOP_LAZY_CHILDREN` all their imports are lazy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_TOLD_OF)}
    if "OMNILOOP_LOOP" in os.environ:
        inherited["OMNILOOP_LOOP"] = os.environ["OMNILOOP_LOOP"]
    if "OMNILOOP_LAZY_CHILDREN" in os.environ:
        inherited["PYTHON_LAZY_IMPORTS"] = "all"
    path = [str(SRC), os.environ.get("PYTHONPATH", "")]
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    inherited["PYTHONUNBUFFERED"] = "1"
    # Its thread of the kernel's, of uvloop 0.22, counts for CPython, which warns of threads at a fork.
    inherited["UV_USE_IO_URING"] = "0"
    return {**inherited, **(env or {})}


# What is said where the machine is busy: by asyncio's debug mode, by a drain that takes longer than two seconds, and by the watchdog of a
# loop whose thread gets no core.
_REMARKS = [
    r"Executing <.*> took [\d.]+ seconds\n",
    r".*: waits for \d+ unfinished (for \d+ s more at the most|without a limit): .*\n",
    r".*: The loop has not come on for [\d.]+ s, because its thread got too little time, .*\n",
]


def without_remarks(stderr: str) -> str:
    """*stderr* less what it says only because the machine is busy."""
    return re.sub(rf"^({'|'.join(_REMARKS)})", "", stderr, flags=re.MULTILINE)


# Comes before a program, in its first line. A line is one write: unbuffered, `print` makes one of each argument and of the line's end, and what
# two threads or processes print into one stream would be mixed within a line.
_PRELUDE = "__import__('sys').stdout.reconfigure(line_buffering=True, write_through=False)"
_CHANGES = ""
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    # Two threads mix their lines in the stream itself.
    _CHANGES += """
import builtins, sys

def _print(*values, sep=" ", end="\\n", file=None, flush=False):
    file = file or sys.stdout
    file.write(sep.join(map(str, values)) + end)
    if flush:
        file.flush()

builtins.print = _print
"""
if sys.platform == "win32":
    # There `os.kill` ends a process, whatever handles the signal. A program means what it says: a signal for itself.
    _CHANGES += """
import os, signal

def _signal_or_kill(pid, number, kill=os.kill):
    handled = pid == os.getpid() and signal.getsignal(number) not in (None, signal.SIG_DFL)
    signal.raise_signal(number) if handled else kill(pid, number)

os.kill = _signal_or_kill
"""
if _CHANGES:
    # In a dictionary of their own: that of the program's names is to go when the program ends.
    _PRELUDE += f"; exec({_CHANGES!r}, {{'__name__': '__main__'}})"
_PRELUDE += "\n"


def run_child(
    *programs: Callable[..., object] | str,
    env: Mapping[str, str] | None = None,
    timeout: float = 40,
    flags: Sequence[str] = (),
    remarks: bool = False,
) -> Result:
    """
    Run *programs* in a fresh interpreter, without stdin, and wait until it and all that hold its streams ended.

    Args:
        programs: Functions of the test's file, whose bodies are the program's top level: see `programs.source_of`. Or a text,
            where a function can't say it.
        env: Set on top of the parent's environment.
        timeout: Seconds, for what hangs: the child is killed then, and the test fails with what it had said until then.
        flags: For the interpreter: `["-X", "dev"]`.
        remarks: Whether stderr is to hold what a busy machine makes it say.

    Raises:
        AssertionError: if *timeout* passed.
    """
    source = textwrap.dedent(programs[0]) if isinstance(programs[0], str) else source_of(*programs)
    source = _PRELUDE + source
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *flags, "-c", source],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=child_environment(env),
        # A group of its own, so that what the child started ends with it: a grandchild would hold the streams open.
        start_new_session=True,
    )
    try:
        guardian.watch(child)
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(child)
        stdout, stderr = child.communicate()
        raise AssertionError(
            f"the child did not end within {timeout} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        ) from None
    except BaseException:
        # pytest-timeout, or Ctrl-C.
        _kill(child)
        child.communicate()
        raise
    finally:
        guardian.forget(child)
    code = child.returncode
    if sys.platform == "win32":
        # As `os.kill` ends a process there, and Ctrl-C that nobody has caught.
        code = -signal.SIGINT if code == 0xC000013A else -code if code in (signal.SIGTERM, signal.SIGBREAK, 9) else code
    return Result(stdout, stderr if remarks else without_remarks(stderr), code, time.monotonic() - started)


def _kill(child: "subprocess.Popen[str]") -> None:
    if os.name == "posix":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
