"""How linking is going: what the history of runs says, and whether a person has to act."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops import runs as listed_runs
from mailglass_reconcile.ops.checks import ERROR, WARNING, Finding, Look
from mailglass_reconcile.ops.runs import Wanted
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store import runs, schema, window
from mailglass_reconcile.store.database import Database, Transaction

LAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Status:
    """How linking is going.

    Attributes:
        open: `eligible` and `waiting` together.
        eligible: Open orphans at `as_of` that a sweep looks at.
        waiting: Open orphans that are in their grace now.
        lag_seconds: For how long the oldest one has been open although its delivery exists; 0 if none is.
        as_of: When the eligible ones were counted, in ISO 8601: at the end of the last full sweep, or now.
        groups: The eligible ones by `state`, `tenant_id` and `provider`, the largest first.
        last_success: When a run of each kind last ended well, in ISO 8601.
        last_runs: The last runs, the newest first, without recent sweeps that linked nothing.
        jobs_waiting: Jobs of handlers that wait: one for each handler and event.
        jobs_dead: Jobs that have failed for the last time.
        totals: `linked`, `expired` and `failed_runs` since the history began.
        triggers: Whether the triggers that keep the table of open orphans are at work.
        healthy: Whether nothing has to be done.
        problems: Why not: a sentence for each, with what to do.
        warnings: What needs a look and costs no link.
    """

    open: int
    eligible: int
    waiting: int
    lag_seconds: float
    as_of: str
    groups: list[dict[str, Any]]
    last_success: dict[str, str]
    last_runs: list[dict[str, Any]]
    jobs_waiting: int
    jobs_dead: int
    totals: dict[str, int]
    triggers: bool
    healthy: bool
    problems: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `status --json` prints them."""
        return asdict(self)


def check(database: Database, max_lag_seconds: float = LATE_SECONDS) -> list[str]:
    """Return what is wrong, a sentence for each, the gravest first; its cost does not depend on what is open."""
    with database.reading(10_000) as tx:
        return sentences(checks.cheap(Look(tx, max_lag_seconds)), ERROR)


def sentences(found: Iterable[Finding], status: str) -> list[str]:
    """Return the findings of one level as sentences, each with its remedy."""
    return [one.sentence for one in found if one.status == status]


def waiting(database: Database, tenant_id: str | None = None) -> int:
    """Return how many open orphans are in their grace, of one tenant or, with None, of all."""
    with database.reading() as tx:
        return window.waiting(tx, tenant_id)


def totals(tx: Transaction) -> dict[str, int]:
    """Return `linked`, `expired` and `failed_runs` since the history began."""
    found = runs.totals(tx)
    return {
        "linked": sum(total.counts["linked"] for total in found),
        "expired": sum(total.counts["expired"] for total in found),
        "failed_runs": sum(total.counts["runs"] for total in found if total.status == "failed"),
    }


def status(
    database: Database,
    *,
    tenant_id: str | None = None,
    max_lag_seconds: float = LATE_SECONDS,
) -> Status:
    """Return how linking is going, of one tenant or, with None, of all, in a read-only transaction."""
    runtime.load_imports(to_read=True)
    with database.reading() as tx:
        schema.require_migrated(tx)
        look = Look(tx, max_lag_seconds)
        past, found = look.history, checks.cheap(look)
        in_grace = window.waiting(tx, tenant_id)
        newest, added_up = listed_runs.newest(tx, Wanted(), size=LAST_RUNS), totals(tx)
        # Small groups are stored together, without their tenants.
        is_counted = past.groups is not None and (
            tenant_id is None or all(group["tenant_id"] is not None for group in past.groups)
        )
        if past.groups is None or past.counted_at is None or not is_counted:
            as_of, groups = past.now, window.as_groups(window.choose(tx, window.open_window(tx), tenant_id).open)
        else:
            as_of, groups = past.counted_at, [g for g in past.groups if tenant_id in (None, g["tenant_id"])]
        triggers = look.has_triggers
    eligible = sum(group["orphans"] for group in groups)
    problems = sentences(found, ERROR)
    return Status(
        open=eligible + in_grace,
        eligible=eligible,
        waiting=in_grace,
        lag_seconds=past.lag_seconds,
        as_of=as_of,
        groups=groups,
        last_success=past.last_success,
        last_runs=newest,
        jobs_waiting=look.outbox.waiting,
        jobs_dead=look.outbox.dead,
        totals=added_up,
        triggers=triggers,
        healthy=not problems,
        problems=problems,
        warnings=sentences(found, WARNING),
    )
