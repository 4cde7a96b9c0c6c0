"""Every example runs as a user would run it, says what it promises, and leaves nothing on stderr."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from children import child_environment, without_remarks

pytest.importorskip("aiohttp")

EXAMPLES = Path(__file__).parents[2] / "examples"

EXPECTED = {
    "fire_and_forget": (
        r"registered 1,000, arrived 1,000\n"
        r"the 1,000 calls took the script [\d.]+ ms\n"
        r"the drain took [\d.]+ s, after the script's last line\n"
    ),
    "run_forever_daemon": (
        "main is done, and does not wait for the heartbeat\nheartbeat stopped cleanly, every beat written: True\n"
    ),
    "periodic": "reported: the second turn fails\nfive turns, the latest (less|more) than one interval late\n",
    "blocking_functions": r"(file-\d [0-9a-f]{8}\n){4}met in the barrier: \[0, 1, 2, 3\]\n",
    "keep_the_handle": (
        r"done\? False\nnot yet: patient was not done after 0.05 s.*\nresult: the result\n"
        r"error: no such account\nasked to end: True\ncancelled: True\n"
    ),
    "await_from_another_loop": (
        r"hello from omniloop - to MainThread\n\['first', 'second'\] - and this loop went on meanwhile: True\n"
        r"the server has closed its sockets\n"
    ),
    "background_decorator": (
        r"the service has: 201\n"
        r"the service has: 202 - and the checksum begins with 734194ed\n"
        r"Audit\.record failed: ClientResponseError\n"
    ),
    "component_with_group": (
        r"every channel came: True\nopen connections: 3\n"
        r"(closed (sport|weather|world)\n){3}unfinished tasks: 0\nopen connections: 0\n"
    ),
    "sync_client_over_async": (
        r"200 calls from 20 threads, each answered \{15\}\nconnections no more than threads: True\nafter the report: 21\n"
        r"after the end: 22\n"
    ),
    "stream_lines": (
        r"stopped at: line 1000\nclient: connection closed\n"
        r"(server: the reader has gone\n)?the other way: 499500\n(server: the reader has gone\n)?"
    ),
    "outlives_the_process": (
        r"refused here, and not in a worker: send_receipt\(\): missing a required argument: 'order'\n"
        r"refused: a set would not arrive as one\n(receipt for order \d\n|the broker has: 3\n|"
        r"the last one: receipt for order 2, attempt 1\n){8}"
    ),
    "cpu_bound": (
        r"all right: True\nelsewhere: True\nawaited: True\n"
        r"crashed: The process that ran crash ended before it was done: .*\n"
        r"the other one is not touched: True\nasked to end: True\nthe next one: True\n"
    ),
}


# Three interpreters, and a thousand connections on a machine that may be busy.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_does_what_it_says(name, tmp_path):
    if name == "outlives_the_process":
        pytest.importorskip("taskiq")
    ended = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=child_environment({"TMPDIR": str(tmp_path)}),
        timeout=50,
        check=False,
    )

    assert (without_remarks(ended.stderr), ended.returncode) == ("", 0)
    assert re.fullmatch(EXPECTED[name], ended.stdout), ended.stdout
