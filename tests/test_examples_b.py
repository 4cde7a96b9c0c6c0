"""The examples of `iterate`, `resource` and `to_process` run as a user would run them, and say what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from children import child_environment

pytest.importorskip("aiohttp")

EXAMPLES = Path(__file__).parent.parent / "examples"

EXPECTED = {
    "sync_client_over_async": (
        r"200 calls from 20 threads, each answered \{15\}\nconnections no more than threads: True\nafter the report: 21\n"
    ),
    "stream_lines": (
        r"stopped at: line 1000\nclient: connection closed\n"
        r"(server: the reader has gone\n)?the other way: 499500\n(server: the reader has gone\n)?"
    ),
    "cpu_bound": (
        r"all right: True\nelsewhere: True\nawaited: True\n"
        r"crashed: The process that ran crash ended before it was done: .*\n"
        r"the other one is not touched: True\nasked to end: True\nthe next one: True\n"
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_does_what_it_says(name, tmp_path):
    ended = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        # An abort may leave a core file.
        cwd=tmp_path,
        env=child_environment(),
        timeout=50,
        check=False,
    )

    assert (ended.stderr, ended.returncode) == ("", 0)
    assert re.fullmatch(EXPECTED[name], ended.stdout), ended.stdout
