"""The programs of the page on services, stopped as a service manager stops them."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from children import child_environment

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "services.md"
WAITS, HANDLES = re.findall(r"<!-- not run.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def wait_until_it_sleeps(pid):
    """
    Wait until the main thread sleeps.

    Without a GIL CPython 3.13 loses a signal that comes in the moment before, in which it spins: until the wait is over the handler is not
    called. A plain program, stopped as soon as it says that it is ready, did not end in 8 of 40 runs.
    """
    looks = 0
    while looks < 3 and Path("/proc/self/stat").exists():
        time.sleep(0.01)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        looks = looks + 1 if state == "S" else 0


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can send a SIGTERM there: it ends a process at once")
@pytest.mark.timeout(30)
@pytest.mark.promise("The services of the page finish their work when they are stopped", section="Signals")
@pytest.mark.parametrize(
    ("program", "said", "code"),
    [(WAITS, "all is done\n", -signal.SIGTERM), (HANDLES, "worked\n", 0)],
    ids=["drains on SIGTERM", "handles SIGTERM"],
)
def test_the_services_of_the_page_finish_their_work_when_they_are_stopped(program, said, code):
    service = subprocess.Popen(
        [sys.executable, "-c", program],
        env=child_environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout.readline() == "ready\n"
        wait_until_it_sleeps(service.pid)
        service.send_signal(signal.SIGTERM)
        stdout, stderr = service.communicate(timeout=20)
    finally:
        service.kill()
        service.wait()

    assert (stdout, stderr, service.returncode) == (said, "", code)
