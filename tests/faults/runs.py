"""The number of runs of each fault, and of violations: the table of `make faults`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict

import pytest

FULL = os.environ.get("MAILGLASS_FAULTS") == "full"
"""True if everything runs (`make faults`), False for a selection (`make test`)."""


class Table:
    """A pytest plugin that collects what tests record with `record_property("fault", (name, runs))`."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.violations: dict[str, set[str]] = defaultdict(set)
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a finished test's counts, and the name of a failed one."""
        if report.when == "call" and report.passed:
            user_properties = [value for name, value in report.user_properties if name == "fault"]
            for fault, count in user_properties or [(_fault(report.nodeid), 1)]:
                self.runs[fault] += count
        if report.failed:
            self.violations[_fault(report.nodeid)].add(report.nodeid)
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[_fault(report.nodeid)] = report.longrepr[2]

    def lines(self) -> list[str]:
        """Return the table as Markdown."""
        faults = sorted({*self.runs, *self.violations})
        rows = [f"| {fault} | {self.runs[fault]} | {len(self.violations[fault])} |" for fault in faults]
        return [
            "| fault | runs | violations |",
            "|---|---|---|",
            *rows,
            f"| all | {self.runs.total()} | {sum(map(len, self.violations.values()))} |",
            *(f"- not run: {fault}: {why}" for fault, why in sorted(self.skipped.items())),
        ]


def _fault(nodeid: str) -> str:
    return nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
