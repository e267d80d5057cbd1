"""What is wrong, for the top of the page and the tab's title: the gravest first, one entry for each cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, Finding, Look
from mailglass_reconcile.ops.first_run import Beginning, beginning
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Database

TIMEOUT_MS = 10_000
SWEEPS = "sweeps"
_OF_SWEEPS = ("runs?kind=full", "Last full sweeps")
_OF_HANDLERS = ("handlers", "Handlers")

PAGES: Mapping[str, tuple[str, str]] = {
    SWEEPS: _OF_SWEEPS,
    "beat": _OF_SWEEPS,
    "linking": _OF_SWEEPS,
    "tenants": ("orphans?state=tenant_mismatch", "These orphans"),
    "handlers": _OF_HANDLERS,
    "handled_types": _OF_HANDLERS,
    "nothing_links": ("orphans?state=unmatched", "These events"),
    "key_rules": ("orphans?state=unmatchable", "Orphans without a usable id"),
    "broadcasts": ("runs", "Runs"),
    "prune": ("runs?kind=prune", "Last prunes"),
}
"""By check: the page that shows more, and the words of its link."""


class Problem(NamedTuple):
    """A finding, and the page that shows more, with the link's words."""

    finding: Finding
    page: str = ""
    link: str = ""


class Problems(NamedTuple):
    """What is wrong.

    Attributes:
        found: The errors.
        beginning: What a new installation has, of which nothing is expected yet.
        warnings: What needs a look and costs no link.
    """

    found: list[Problem]
    beginning: Beginning | None = None
    warnings: Sequence[Problem] = ()


def problems(database: Database) -> Problems:
    """Return what is wrong, by a few queries whose cost does not depend on what is open."""
    with database.reading(TIMEOUT_MS) as tx:
        schema.require_migrated(tx)
        findings = checks.cheap(Look(tx))
        new = beginning(tx) if any(one.check == SWEEPS and one.status == ERROR for one in findings) else None
    problems = [Problem(one, *PAGES.get(one.check, ())) for one in findings if not (new and one.check == SWEEPS)]
    errors = [problem for problem in problems if problem.finding.status == ERROR]
    return Problems(errors, new, [problem for problem in problems if problem.finding.status != ERROR])
