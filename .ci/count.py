"""
Adds up what tox did: `count.py RESULTS.json JUNIT_FOLDER`. The last line is `N passed, N failed`, and the exit code says it too.

A session's tests are counted from its junit XML. Where it has none, each of its commands counts; and a session that failed
without a failed test, in an installation for one, counts as one.
"""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def counts(name: str, session: dict, junit: Path) -> tuple[int, int]:
    if junit.exists():
        suite = ET.parse(junit).getroot().find("testsuite").attrib
        failed = int(suite["failures"]) + int(suite["errors"])
        passed = int(suite["tests"]) - failed - int(suite["skipped"])
    else:
        codes = [command["retcode"] for command in session.get("test", [])]
        passed, failed = codes.count(0), len(codes) - codes.count(0)
    result = session.get("result", {})
    if result.get("success"):
        return passed, 0
    return passed, failed or 1


def main() -> int:
    results, junit = Path(sys.argv[1]), Path(sys.argv[2])
    sessions = json.loads(results.read_text())["testenvs"] if results.exists() else {}
    total = [0, 0]
    for name, session in sessions.items():
        if "result" not in session:
            continue
        passed, failed = counts(name, session, junit / f"{name}.xml")
        total = [total[0] + passed, total[1] + failed]
        print(f"{name}: {passed} passed, {failed} failed, {session['result'].get('duration', 0):.0f} s")
    if not any("result" in session for session in sessions.values()):
        print("no session ran")
        total[1] += 1
    print(f"{total[0]} passed, {total[1]} failed")
    return int(total[1] > 0)


sys.exit(main())
