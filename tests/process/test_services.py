"""The programs of the page on services, stopped as a service manager stops them."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from children import child_environment

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "services.md"
WAITS, HANDLES = re.findall(r"<!-- not run.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


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
        service.send_signal(signal.SIGTERM)
        stdout, stderr = service.communicate(timeout=20)
    finally:
        service.kill()
        service.wait()

    assert (stdout, stderr, service.returncode) == (said, "", code)
