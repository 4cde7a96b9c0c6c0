# /// script
# requires-python = "==3.14.*"
# dependencies = ["pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-xdist==3.8.0", "anyio==4.16.0", "trio==0.35.0"]
# ///
"""
A suite with pytest-asyncio in its auto mode (a loop for each test, and one for a module) and anyio's own plugin on asyncio and trio, whose tests await `go` and call `run`; with pytest-xdist on two processes.
"""

import subprocess
import sys
from pathlib import Path

from ending import right

Path("test_asyncio.py").write_text(
    """\
import asyncio, omniloop, pytest
kept = omniloop.go(asyncio.sleep(0, "from the import"))
async def double(number):
    await asyncio.sleep(0.01)
    return 2 * number
@pytest.fixture
async def opened():
    handle = omniloop.go(asyncio.Event().wait())
    yield await omniloop.go(double(1))
    handle.cancel()
@pytest.mark.parametrize("number", range(20))
async def test_awaits(number, opened):
    assert opened == 2
    assert await asyncio.gather(*(omniloop.go(double(number)) for _ in range(5))) == [2 * number] * 5
    assert await kept == "from the import"
@pytest.mark.asyncio(loop_scope="module")
async def test_in_the_modules_loop():
    assert await omniloop.go(double(2)) == 4
def test_runs():
    assert omniloop.run(double(4)) == 8
""",
    encoding="utf-8",
)
Path("test_anyio.py").write_text(
    """\
import anyio, asyncio, omniloop, pytest
async def double(number):
    await asyncio.sleep(0.01)
    return 2 * number
@pytest.mark.anyio
async def test_awaits_on_each_backend():
    results = []
    async def one(number):
        results.append(await omniloop.go(double(number)))
    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)
    assert sorted(results) == [2 * number for number in range(10)]
    with anyio.move_on_after(0.05) as scope:
        await omniloop.go(asyncio.Event().wait())
    assert scope.cancelled_caught
""",
    encoding="utf-8",
)


AUTO = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]


def pytest(*arguments):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )


ran = pytest(*AUTO, "test_asyncio.py")
assert ran.returncode == 0 and "22 passed" in ran.stdout, ran
ran = pytest(*AUTO, "-n", "2", "test_asyncio.py")
assert ran.returncode == 0 and "22 passed" in ran.stdout, ran
ran = pytest("-p", "no:asyncio", "test_anyio.py")
assert ran.returncode == 0 and "2 passed" in ran.stdout, ran
right(
    "Handles awaited in tests and fixtures, on a loop that is new for each test; one made at the import is awaited by every test; trio's tests and anyio's scopes too."
)
