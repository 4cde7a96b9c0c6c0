"""The example of an SDK with both faces: it runs, its tests pass, its types are current, and the type checkers agree."""

import subprocess
import sys
from pathlib import Path

import pytest

from children import child_environment, without_remarks

pytest.importorskip("aiohttp")

SDK = Path(__file__).parents[2] / "examples" / "sync_sdk"


def python(*args, **env):
    ended = subprocess.run(
        [sys.executable, *args],
        cwd=SDK,
        env=child_environment({"PYTHONDONTWRITEBYTECODE": "1", **env}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.stdout, without_remarks(ended.stderr), ended.returncode


def with_sdk(**env):
    path = child_environment()["PYTHONPATH"]
    return {"PYTHONPATH": f"{SDK / 'src'}:{path}", **env}


def test_the_demo_uses_both_faces():
    expected = (
        "one client, 8 threads: 25 notes\n"
        "stopped at: 6\n"
        "streamed: 25 lines\n"
        "not there: 99\n"
        "async: 0 25\n"
        "pages that were asked for: 8\n"
    )

    assert python("demo.py") == (expected, "", 0)


@pytest.mark.timeout(150)
def test_one_set_of_tests_passes_for_both_faces():
    out, err, code = python(
        "-m", "pytest", "-q", "tests", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:asyncio"
    )

    assert code == 0, out + err
    assert "8 passed" in out


def test_its_types_are_current():
    assert python("-m", "omniloop", "stubs", "--check", "notes_sdk", **with_sdk()) == ("", "", 0)


@pytest.mark.timeout(150)
def test_its_types_are_exact():
    pytest.importorskip("mypy")

    out, err, code = python(
        "-m", "mypy", "--strict", "--cache-dir", "/dev/null", "src/notes_sdk", "demo.py", "service.py", MYPYPATH="src"
    )

    assert code == 0, out + err
