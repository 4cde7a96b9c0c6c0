"""Tests that are interrupted leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from children import child_environment

TESTS = Path(__file__).parents[1]

SERVER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {real!r}]
from servers import process
server = "import os, sys, time; print(os.getpid(), os.fork(), flush=True); time.sleep(600)"
with process([sys.executable, "-c", server], Path("log"), Path.cwd()) as running:
    running.wait_for_log("\\n", 2)
    print("ready", flush=True)
    input()
"""

CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import guardian
from children import run_child
watch = guardian.watch
guardian.watch = lambda child: (watch(child), print("ready", flush=True))
run_child("import os, time; mine, other = os.getpid(), os.fork(); other and open('log', 'w').write(f'{{mine}} {{other}}'); time.sleep(600)", timeout=600)
"""


def is_there(pid):
    try:
        # One that nobody has reaped yet is gone all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("program", [SERVER, CHILD], ids=["a real server", "a child interpreter"])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_what_a_test_has_started_is_gone_when_the_tests_are_whatever_ended_them(program, how, tmp_path):
    """A gunicorn was still there twelve minutes after its tests were killed."""
    tests = subprocess.Popen(
        [sys.executable, "-c", program.format(tests=str(TESTS), real=str(TESTS / "real"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=child_environment(),
    )
    with tests:
        assert tests.stdout.readline() == b"ready\n"
        until = time.monotonic() + 30
        while not (started := (tmp_path / "log").exists() and (tmp_path / "log").read_text().split()):
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(tests.pid, getattr(signal, how))
        tests.wait(timeout=30)

    left = [int(pid) for pid in started if int(pid)]
    assert left
    until = time.monotonic() + 30
    while any(map(is_there, left)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not list(filter(is_there, left))
