"""Says at the end how many schedules were explored, and which mutants were found."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = [report for report in terminalreporter.getreports("passed") if "interleavings" in report.nodeid]
    found = [(report.nodeid, value) for report in passed for name, value in report.user_properties if name == "mutant"]
    explored = [
        (report.nodeid, value) for report in passed for name, value in report.user_properties if name == "explored"
    ]
    if not explored and not found:
        return
    terminalreporter.section("interleavings")
    for nodeid, value in explored:
        terminalreporter.write_line(f"{nodeid.partition('::')[2]}: {value}")
    schedules = sum(value.schedules for _, value in explored)
    terminalreporter.write_line(f"{schedules:,} schedules hold; {len(found)} mutants found")
