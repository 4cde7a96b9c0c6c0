"""Programs that are looked at from outside, each in an interpreter of its own."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import guardian
from children import child_environment
from programs import source_of


@contextlib.contextmanager
def place() -> Iterator[dict[str, str]]:
    """An environment whose sockets are in a directory of their own. Not pytest's, whose names are too long for a socket."""
    folder = tempfile.mkdtemp(prefix="omni-")
    try:
        yield {"XDG_RUNTIME_DIR": folder}
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def target(program: Callable[..., object], env: dict[str, str], *command: str) -> Iterator["subprocess.Popen[str]"]:
    """*program*, which prints a line when it can be looked at, and then reads its stdin to the end."""
    child = subprocess.Popen(
        [*(command or (sys.executable,)), "-c", source_of(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(env),
        start_new_session=True,
    )
    guardian.watch(child)
    try:
        assert child.stdout.readline() == "ready\n", child.communicate(timeout=5)
        yield child
    finally:
        child.kill()
        child.communicate()
        guardian.forget(child)


def omniloop(*arguments: object, env: dict[str, str], timeout: float = 20) -> "subprocess.CompletedProcess[str]":
    """``python -m omniloop …``"""
    return subprocess.run(
        [sys.executable, "-m", "omniloop", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=child_environment({**env, "COLUMNS": "120"}),
        check=False,
    )


def sockets(env: dict[str, str]) -> set[str]:
    folder = os.path.join(env["XDG_RUNTIME_DIR"], "omniloop")
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()
