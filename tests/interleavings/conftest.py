"""Says at the end how many schedules were explored, and which mutants were found."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for report in terminalreporter.getreports("passed") if "interleavings/" in report.nodeid]
    told = [(report.nodeid.partition("::")[2], dict(report.user_properties)) for report in reports]
    if not any(told):
        return
    terminalreporter.section("interleavings")
    for name, properties in told:
        if told_of := properties.get("explored") or properties.get("orders"):
            terminalreporter.write_line(f"{name}: {told_of}")
    schedules = sum(properties.get("schedules", 0) for _, properties in told)
    mutants = sum("mutant" in properties for _, properties in told)
    terminalreporter.write_line(f"{schedules:,} schedules hold; {mutants} mutants found")
