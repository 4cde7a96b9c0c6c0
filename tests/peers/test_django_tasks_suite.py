"""Django's own tests of its immediate task backend, over ours. On demand, see `suites.py`."""

import re
import subprocess
import sys

import pytest
from suites import on_demand, only_by_design, source_of

from children import child_environment

pytestmark = on_demand

pytest.importorskip("django", minversion="6.0")

# The tests look at the result as soon as they have it: here it is waited for.
SETTINGS = """
from test_sqlite import *

import asyncio

import django.tasks.backends.immediate as immediate

import omniloop
from omniloop.ext.django import OmniloopBackend


class ImmediateBackend(OmniloopBackend):
    def enqueue(self, task, args, kwargs):
        result = super().enqueue(task, args, kwargs)
        omniloop.flush()
        return result

    async def aenqueue(self, task, args, kwargs):
        result = await super().aenqueue(task, args, kwargs)
        await asyncio.to_thread(omniloop.flush)
        return result


immediate.ImmediateBackend = ImmediateBackend
"""

_RESULTS = "this backend finds results by their ids"
BY_DESIGN = {
    "test_cannot_get_result": _RESULTS,
    "test_cannot_refresh_result": _RESULTS,
    "test_throws_keyboard_interrupt": "what a task raises, whatever it is, is its own failure: the caller is gone",
}


@pytest.mark.promise(
    "Of Django's own tests of its task backends, over ours, fails by design what fails", section="Django's tasks"
)
def test_of_djangos_own_tests_only_that_fails_which_is_meant_to(tmp_path):
    tests = source_of("django", tmp_path) / "tests"
    (tests / "twin_settings.py").write_text(SETTINGS)

    ended = subprocess.run(
        [sys.executable, "runtests.py", "--settings=twin_settings", "--parallel=1", "--verbosity=2", "tasks"],
        cwd=tests,
        env={**child_environment(), "PYTHONPATH": f"{tests}:{child_environment()['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    # A test's first line of documentation comes between its name and its outcome.
    said = re.findall(r"^(test_\w+) \(.*\)(?:\n.*)? \.\.\. (ok|FAIL|ERROR)?", ended.stderr, re.MULTILINE)
    # One with subtests says nothing behind its name if one of them fails.
    failed = {name for name, word in said if word != "ok"} | set(
        re.findall(r"^(?:FAIL|ERROR): (test_\w+)", ended.stderr, re.MULTILINE)
    )
    passed = {name for name, word in said if word == "ok"} - failed
    assert len(passed) >= 40, ended.stderr
    only_by_design(passed, dict.fromkeys(failed).keys(), BY_DESIGN)
