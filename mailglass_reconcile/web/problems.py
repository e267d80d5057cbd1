"""What is wrong, for the top of the page and the tab's title: the gravest first, one entry for each cause."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from mailglass_reconcile.ops import health
from mailglass_reconcile.ops.beginning import Beginning, beginning
from mailglass_reconcile.schedule import LATE_SECONDS
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Database

TIMEOUT_MS = 10_000
SWEEPS = "sweeps"


class Cause(NamedTuple):
    """What several findings may come from, how they are worded, and the page that shows more, with the link's words."""

    name: str
    words: re.Pattern[str]
    page: str = ""
    link: str = ""


CAUSES = (
    Cause("triggers", re.compile(r"trigger")),
    Cause(SWEEPS, re.compile(r"full sweep|although its delivery exists"), "runs?kind=full", "Last full sweeps"),
    Cause("refused", re.compile(r"refused"), "runs?kind=full", "Last full sweeps"),
    Cause("tenant", re.compile(r"another tenant"), "orphans?state=tenant_mismatch", "These orphans"),
    Cause("handlers", re.compile(r"handler|failed \d+ times"), "handlers", "Handlers"),
    Cause("silence", re.compile(r"no webhook")),
    Cause("keys", re.compile(r"id that can be used"), "orphans?state=unmatchable", "Orphans without a usable id"),
    Cause("redis", re.compile(r"Redis"), "runs", "Runs"),
    Cause("prune", re.compile(r"prune"), "runs?kind=prune", "Last prunes"),
)
"""The gravest first."""
OTHER = Cause("other", re.compile(""))


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: a sentence, what to do, and what else comes from the same cause."""

    cause: Cause
    sentence: str
    remedy: str
    also: list[str] = field(default_factory=list)


class Problems(NamedTuple):
    """What is wrong; `beginning` is what a new installation has, of which nothing is expected yet."""

    found: list[Problem]
    beginning: Beginning | None = None


def problems(database: Database) -> Problems:
    """Return what is wrong, by a few queries whose cost does not depend on what is open.

    Raises:
        MailglassReconcileError: The database refused, cannot be reached, or is not migrated.
    """
    with database.reading(TIMEOUT_MS) as tx:
        facts = health.facts(tx)
        schema.require_current(facts.version)
        new = beginning(tx)
    found = by_cause(health.problems(facts, LATE_SECONDS))
    return Problems([one for one in found if not (new and one.cause.name == SWEEPS)], new)


def by_cause(findings: list[str]) -> list[Problem]:
    """Return findings, each a sentence with a remedy after its last colon, together by cause, the gravest first."""
    found: dict[str, Problem] = {}
    for finding in findings:
        sentence, _, remedy = finding.rpartition(": ")
        cause = next((one for one in CAUSES if one.words.search(sentence)), OTHER)
        name = cause.name if cause is not OTHER else finding
        if name in found:
            found[name].also.append(sentence)
        else:
            found[name] = Problem(cause, sentence, remedy)
    return sorted(found.values(), key=lambda one: (*CAUSES, OTHER).index(one.cause))
