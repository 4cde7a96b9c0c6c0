# /// script
# requires-python = "==3.14.*"
# dependencies = ["pytest==9.2.0", "pytest-randomly==5.1.0", "pytest-rerunfailures==16.7", "pytest-timeout==2.4.0"]
# ///
"""
A suite that uses `go` and `run`, with pytest-randomly, pytest-rerunfailures and pytest-timeout, in both of its methods; a test that hangs in `run`.

Differs: `--timeout-method=thread` ends the whole process by `os._exit`, as it says itself: no exit hook of anybody runs then, so forgotten work of earlier tests is lost. Where it counts, use the default, `signal`.
"""

import subprocess
import sys
from pathlib import Path

from ending import right

Path("test_it.py").write_text(
    """\
import asyncio, omniloop, pytest
async def double(number):
    await asyncio.sleep(0.01)
    return 2 * number
@pytest.mark.parametrize("number", range(20))
def test_double(number):
    assert omniloop.run(double(number)) == 2 * number
runs = []
def test_second_time():
    runs.append(omniloop.run(double(1)))
    assert len(runs) == 2
""",
    encoding="utf-8",
)
Path("test_hangs.py").write_text(
    """\
import asyncio, omniloop, pytest
ended = []
async def never():
    try:
        await asyncio.sleep(3600)
    finally:
        ended.append("cancelled")
def test_a():
    omniloop.run(never())
def test_b():
    assert ended == ["cancelled"]
""",
    encoding="utf-8",
)


def pytest(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
    )


for seed in ("1", "2"):
    ran = pytest(f"--randomly-seed={seed}", "--reruns=1", "--timeout=60", "test_it.py")
    assert ran.returncode == 0 and "21 passed, 1 rerun" in ran.stdout, ran
ran = pytest("-p", "no:randomly", "--timeout=1", "--timeout-method=signal", "test_hangs.py")
assert "1 failed, 1 passed" in ran.stdout and "Timeout" in ran.stdout, ran
ran = pytest("-p", "no:randomly", "--timeout=1", "--timeout-method=thread", "test_hangs.py")
assert (
    ran.returncode == 1
    and "never" not in ran.stdout.partition("Stack of MainThread")[0]
    and "omniloop" in ran.stderr + ran.stdout
), ran
right(
    "Tests in any order, and again after a failure; a timeout by signal fails the test that hangs in `run`, cancels its coroutine, and the next test goes on; one by thread shows the stacks of omniloop's threads."
)
