"""The status of linking, for one tenant or all: open orphans, the last runs, and whether a person has to act."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import checks, deliveries, orphans, runs, time_series
from mailglass_reconcile.ops.checks import ERROR, WARNING, CheckContext, Finding
from mailglass_reconcile.ops.deliveries import RecentLink
from mailglass_reconcile.ops.lock_holders import LockHolder
from mailglass_reconcile.ops.runs import FirstRunState, ListedRun
from mailglass_reconcile.ops.time_series import TimeBucket
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries import selection
from mailglass_reconcile.store.queries.orphan_lists import Cause
from mailglass_reconcile.store.tables.runs import OpenGroup

LAST_RUNS = 5
OVERVIEW_ROWS = 10
"""The last runs and the latest links of the overview."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of linking, of all tenants or of one; then what is known of all together only is None.

    Attributes:
        tenant_id: The tenant; None is all.
        open: `eligible` and `newer` together.
        eligible: Open orphans at `as_of` that a full sweep checks.
        newer: Open orphans that arrived later than what was counted at `as_of`, at most 100,000.
        at_least: True if `open` and `newer` are lower bounds.
        lag_seconds: Seconds for which the oldest open orphan could have been linked: its delivery exists, or it is past
            its grace period and nothing has checked it. 0 if there is none. None for one tenant.
        as_of: When the eligible ones were counted, in ISO 8601: at the end of the last full sweep, or now.
        groups: The eligible ones by `state`, `tenant_id` and `provider`, the largest first.
        last_success: When a run of each kind last succeeded, in ISO 8601. None for one tenant.
        last_runs: The last runs, the newest first, without recent sweeps that linked nothing. None for one tenant.
        jobs_waiting: Jobs of handlers that wait: one for each handler and event. None for one tenant.
        jobs_dead: Jobs that have failed for the last time. None for one tenant.
        totals: `linked`, `expired` and `failed_runs` since the history began. None for one tenant.
        triggers: True if the triggers that maintain the table of open orphans are enabled.
        healthy: True if there are no problems, of whatever tenant.
        problems: A sentence for each error: the check's name, the cause, the remedy.
        warnings: The same for each warning.
    """

    tenant_id: str | None
    open: int
    eligible: int
    newer: int
    at_least: bool
    lag_seconds: float | None
    as_of: str
    groups: list[OpenGroup]
    last_success: dict[str, str] | None
    last_runs: list[ListedRun] | None
    jobs_waiting: int | None
    jobs_dead: int | None
    totals: dict[str, int] | None
    triggers: bool
    healthy: bool
    problems: list[str]
    warnings: list[str]


class Health(NamedTuple):
    """The findings of the fast checks.

    Attributes:
        findings: The errors, then the warnings.
        first_run: The state of a new installation before its first run; None after it.
    """

    findings: list[Finding]
    first_run: FirstRunState | None

    @property
    def errors(self) -> list[Finding]:
        """The errors that a person should look at; before its first run, an installation needs no sweep yet."""
        unneeded = {"sweeps"} if self.first_run else set[str]()
        return [finding for finding in self.findings if finding.status == ERROR and finding.check not in unneeded]

    @property
    def warnings(self) -> list[Finding]:
        """The warnings."""
        return [finding for finding in self.findings if finding.status == WARNING]


@dataclass(frozen=True, slots=True)
class Overview:
    """The dashboard's overview: the status of all tenants and recent activity, from one snapshot.

    Attributes:
        status: The status; its groups are empty until a full sweep has counted.
        counted_at: When a full sweep last counted the open orphans; None if none has.
        states: Eligible open orphans at `counted_at` by state, the most frequent first.
        causes: The same by state, tenant and provider, the largest first.
        links: The latest links among the newest `ledger.NEWEST_EVENTS` events.
        series: Backlog and lag over time, the oldest first.
        health: The findings of the fast checks.
        holder: The session that holds up the oldest event that could be linked; None without one, or with an error.
        repeated: The newest open orphans of a wrong tenant whose webhook has reached its delivery since.
    """

    status: Status
    counted_at: str | None
    states: list[tuple[str, int]]
    causes: list[Cause]
    links: list[RecentLink]
    series: list[TimeBucket]
    health: Health
    holder: LockHolder | None
    repeated: int


def load_findings(database: Database, max_lag_seconds: float = LATE_SECONDS) -> list[Finding]:
    """Return the findings of the fast checks, the most severe first, at a cost independent of the open orphans."""
    with database.reading(database.limits.fast_timeout_ms) as tx:
        return checks.run_fast(CheckContext(tx, max_lag_seconds))


def load_problems(database: Database) -> list[str]:
    """Return a sentence for each error of the fast checks."""
    return sentences(load_findings(database), ERROR)


def sentences(findings: Iterable[Finding], status: str) -> list[str]:
    """Return the findings of one level as sentences, each with its remedy."""
    return [finding.sentence for finding in findings if finding.status == status]


def load_status(
    database: Database,
    *,
    tenant_id: str | None = None,
    max_lag_seconds: float = LATE_SECONDS,
) -> Status:
    """Load the state of linking, of one tenant or, with None, of all, in a read-only transaction.

    If no full sweep has counted them, open orphans are counted now, at a cost that grows with their number.
    """
    runtime.load_imports(only_warn=True)
    with database.reading() as tx:
        installed.require_migrated(tx)
        context = CheckContext(tx, max_lag_seconds)
        counted = _count_of_last_sweep(context, tenant_id) or _count_now(context, tenant_id)
        return _status(context, checks.run_fast(context), counted, tenant_id, LAST_RUNS)


def load_overview(database: Database, *, seconds: int) -> Overview:
    """Return the overview, with charts of the last *seconds*; at a cost independent of the open orphans."""
    with database.reading(database.limits.fast_timeout_ms) as tx:
        installed.require_migrated(tx)
        context = CheckContext(tx)
        health = _health(context)
        is_healthy = not sentences(health.findings, ERROR)
        counted = _count_of_last_sweep(context, None) or CountedGroups(context.history.now, [], None)
        return Overview(
            status=_status(context, health.findings, counted, None, OVERVIEW_ROWS),
            counted_at=context.history.counted_at,
            states=runs.count_by_state(counted.groups).most_common(),
            causes=orphans.break_down(tx, counted.groups),
            links=deliveries.load_recent_links(tx, OVERVIEW_ROWS),
            series=time_series.load_series(tx, seconds),
            health=health,
            holder=context.late_holder if is_healthy else None,
            repeated=sum(group.orphans for group in context.newest_orphans if group.is_repeated) if is_healthy else 0,
        )


def load_health(database: Database) -> Health:
    """Run the fast checks; their cost does not depend on the number of open orphans."""
    with database.reading(database.limits.fast_timeout_ms) as tx:
        installed.require_migrated(tx)
        return _health(CheckContext(tx))


def _health(context: CheckContext) -> Health:
    findings = checks.run_fast(context)
    lacks_sweeps = any(finding.check == "sweeps" and finding.status == ERROR for finding in findings)
    return Health(findings, runs.load_first_run(context.tx) if lacks_sweeps else None)


class CountedGroups(NamedTuple):
    """The groups of eligible orphans, when they were counted, and until which arrival."""

    as_of: str
    groups: list[OpenGroup]
    covered_until: str | None


def _count_of_last_sweep(context: CheckContext, tenant_id: str | None) -> CountedGroups | None:
    """Return the groups that the last full sweep counted; None if they do not show this tenant alone."""
    counted_at, groups = context.history.counted_at, context.history.groups
    if groups is None or counted_at is None:
        return None
    # Small groups are stored together, without their tenants.
    if tenant_id is not None and any(group["tenant_id"] is None for group in groups):
        return None
    shown = [group for group in groups if tenant_id in (None, group["tenant_id"])]
    return CountedGroups(counted_at, shown, context.history.covered_until)


def _count_now(context: CheckContext, tenant_id: str | None) -> CountedGroups:
    opened = selection.open_window(context.tx, counted=True)
    selected = selection.select_orphans(context.tx, opened, tenant_id)
    return CountedGroups(context.history.now, selection.as_groups(selected.open), opened.until)


def _status(
    context: CheckContext,
    findings: list[Finding],
    counted: CountedGroups,
    tenant_id: str | None,
    last_runs: int,
) -> Status:
    eligible = sum(group["orphans"] for group in counted.groups)
    is_as_in_context = tenant_id is None and counted.covered_until == context.history.covered_until
    newer = context.newer if is_as_in_context else selection.load_newer(context.tx, counted.covered_until, tenant_id)
    problems, of_all = sentences(findings, ERROR), tenant_id is None
    return Status(
        tenant_id=tenant_id,
        open=eligible + newer.orphans,
        eligible=eligible,
        newer=newer.orphans,
        at_least=newer.at_least,
        lag_seconds=context.lag_seconds if of_all else None,
        as_of=counted.as_of,
        groups=counted.groups,
        last_success=context.history.last_success if of_all else None,
        last_runs=runs.load_newest(context.tx, size=last_runs) if of_all else None,
        jobs_waiting=context.outbox.waiting if of_all else None,
        jobs_dead=context.outbox.dead if of_all else None,
        totals=runs.load_totals(context.tx) if of_all else None,
        triggers=context.has_triggers,
        healthy=not problems,
        problems=problems,
        warnings=sentences(findings, WARNING),
    )
