"""The page on platforms has what the sessions came to."""

import importlib.util
import tomllib
from pathlib import Path

import not_on_pypy

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line.split("|")
    for line in (ROOT / "docs" / "reference" / "platforms.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
][2:]

REPORT = """<testsuites><testsuite tests="20" failures="1" errors="2" skipped="3" timestamp="2026-11-29T20:01:37+00:00">
<properties><property name="python" value="CPython 3.12.1" /></properties></testsuite></testsuites>"""


def test_each_row_of_a_session_names_one_that_there_is():
    tox = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tox"]

    sessions = {row[3].strip(" `") for row in ROWS} - {""}

    assert sessions <= {*tox["env"], *tox["env_list"]}


def test_what_a_session_came_to_is_written_into_the_row_of_its_python(tmp_path):
    spec = importlib.util.spec_from_file_location("platforms", ROOT / ".ci" / "platforms.py")
    platforms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(platforms)
    (tmp_path / "bare.xml").write_text(REPORT)

    row = "| Windows | CPython 3.12.0 | `bare` | not run yet | much |\n"

    written = "| Windows | CPython 3.12.1 | `bare` | 14 passed, 3 failed, 3 skipped, 2026-11-29 | much |\n"
    assert platforms.written(row, tmp_path) == written
    for other in (row.replace("3.12", "3.14"), row.replace("bare", "lazy"), "no row\n"):
        assert platforms.written(other, tmp_path) == other


def test_what_is_skipped_on_pypy_is_there():
    missing = [
        name
        for name in not_on_pypy.SKIPPED
        if not any(
            # Without the parameters, where only some of them are skipped.
            f"def {name.partition('::')[2].partition('[')[0]}(" in path.read_text(encoding="utf-8")
            for path in ROOT.glob(f"tests/*/{name.partition('::')[0]}")
        )
    ]

    assert missing == []
