"""Issues for the top of the dashboard and the tab's title: the most severe first, one entry for each cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.ops.checks import ERROR, Finding
from mailglass_reconcile.ops.runs import FirstRunState
from mailglass_reconcile.ops.status import Health

SWEEPS = "sweeps"
_FULL_SWEEPS = ("runs?kind=full", "Last full sweeps")
_HANDLERS = ("handlers", "Handlers")

PAGES: Mapping[str, tuple[str, str]] = {
    SWEEPS: _FULL_SWEEPS,
    "beat": _FULL_SWEEPS,
    "linking": _FULL_SWEEPS,
    "tenants": ("orphans?state=tenant_mismatch", "These orphans"),
    "handlers": _HANDLERS,
    "handled_types": _HANDLERS,
    "nothing_links": ("orphans?state=unmatched", "These events"),
    "key_rules": ("orphans", "Open orphans"),
    "broadcasts": ("runs", "Runs"),
    "prune": ("runs?kind=prune", "Last prunes"),
}
"""By check: the page that shows more, and the words of its link."""


class HealthIssue(NamedTuple):
    """A finding, and the page that shows more, with the link's words."""

    finding: Finding
    page: str = ""
    link: str = ""


class HealthIssues(NamedTuple):
    """The issues that a person should look at.

    Attributes:
        errors: By these, links, live updates or handlers are lost or late.
        warnings: These cost no link.
        first_run: The state of a new installation before its first run, when nothing is expected yet.
    """

    errors: Sequence[HealthIssue]
    warnings: Sequence[HealthIssue] = ()
    first_run: FirstRunState | None = None


def issues(health: Health) -> HealthIssues:
    """Return the issues of what the fast checks found; a new installation needs no sweep yet."""
    listed = [
        HealthIssue(finding, *PAGES.get(finding.check, ()))
        for finding in health.findings
        if not (health.first_run and finding.check == SWEEPS)
    ]
    errors = [issue for issue in listed if issue.finding.status == ERROR]
    return HealthIssues(errors, [issue for issue in listed if issue.finding.status != ERROR], health.first_run)
