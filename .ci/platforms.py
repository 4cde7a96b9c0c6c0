"""
Writes what the sessions came to into the table of docs/reference/platforms.md: `platforms.py JUNIT_FOLDER`, after a run of tox.

A row is that of a session if its third column names it, `bare` say, and its second the version of Python that ran it. The counts, and the
rest of the version, are taken from the session's junit XML; everything else on the page is written by hand.
"""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "platforms.md"


def outcome(report: Path) -> tuple[str, str]:
    """The Python that ran, and what came out."""
    suite = ET.parse(report).getroot().find("testsuite")
    numbers = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = numbers["failures"] + numbers["errors"]
    passed = numbers["tests"] - failed - numbers["skipped"]
    python = next(it.get("value") for it in suite.iter("property") if it.get("name") == "python")
    return python, f"{passed:,} passed, {failed} failed, {numbers['skipped']} skipped, {suite.get('timestamp')[:10]}"


def written(line: str, folder: Path) -> str:
    """A line of the page, with what the session of its row came to, if *folder* has that."""
    cells = line.split("|")
    if len(cells) != 7 or not (report := folder / f"{cells[3].strip(' `')}.xml").is_file():
        return line
    python, came_out = outcome(report)
    if re.match(r" \w+ \d+\.\d+", cells[2])[0] == re.match(r" \w+ \d+\.\d+", f" {python}")[0]:
        cells[2], cells[4] = f" {python} ", f" {came_out} "
    return "|".join(cells)


if __name__ == "__main__":
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    PAGE.write_text("".join(written(line, Path(sys.argv[1])) for line in lines), encoding="utf-8")
