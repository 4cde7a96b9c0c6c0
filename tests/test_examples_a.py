"""The examples of `@background` and of `TaskGroup` run as a user would run them, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

EXAMPLES = Path(__file__).parent.parent / "examples"

EXPECTED = {
    "background_decorator": (
        r"the service has: 201\n"
        r"the service has: 202 - and the checksum begins with 734194ed\n"
        r"Audit\.record failed: ClientResponseError\n"
    ),
    "component_with_group": (
        r"every channel came: True\nopen connections: 3\n"
        r"(closed (sport|weather|world)\n){3}unfinished tasks: 0\nopen connections: 0\n"
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_does_what_it_says(name):
    ended = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent / "src"), os.environ.get("PYTHONPATH", "")]),
        },
        timeout=50,
        check=False,
    )

    assert (ended.stderr, ended.returncode) == ("", 0)
    assert re.fullmatch(EXPECTED[name], ended.stdout), ended.stdout
