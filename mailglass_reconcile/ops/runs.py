"""The history of runs, for people: the newest runs, what it says of sweeps and beat, totals, and the sweeps' lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.rules.states import OpenState, RunStatus
from mailglass_reconcile.rules.thresholds import LATE_SECONDS, SWEEP_INTERVAL_SECONDS
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.store.tables.runs import OpenGroup, Origin, RunKind

if TYPE_CHECKING:
    from mailglass_reconcile.singleton.lock import Holder

TIMEOUT_MS = 10_000

# The fields of `RunHistory`, then those of `LastSweep`.
# The last full sweeps of all tenants. One that was cut into ranges is over when all of them have added their counts.
# What it left although it could be linked is late until sweeps of some tenants or events have linked as many. One that
# broke off, by its deadline or Ctrl-C, has not succeeded.
_HISTORY = """
SELECT {schema}.mailglass_reconcile_iso_v1(now()::timestamp) AS now,
       extract(epoch FROM now()::timestamp - success.finished_at)::float8 AS success_age,
       success.origin AS success_origin,
       greatest(0, CASE WHEN greatest(1, ok.skipped + ok.failed)
                 > (SELECT coalesce(sum(linked), 0) FROM {schema}.mailglass_reconcile_runs
                     WHERE id > ok.id AND (kind = 'targeted' OR kind = 'full' AND tenant_id IS NOT NULL))
            THEN extract(epoch FROM now()::timestamp - ok.linkable_since)::float8 END) AS lag_seconds,
       {schema}.mailglass_reconcile_iso_v1(counted.finished_at) AS counted_at, counted.open_groups AS groups,
       counted.covered_until::text,
       coalesce(extract(epoch FROM now()::timestamp - uncovered.since)::float8, 0) AS uncovered_seconds,
       extract(epoch FROM now()::timestamp - beat.finished_at)::float8 AS beat_age, celery.app,
       CASE WHEN schedule.finished_at > now()::timestamp - make_interval(secs => 2 * schedule.interval_seconds + 900)
            THEN schedule.interval_seconds END AS interval_seconds,
       other.quarters AS other_quarters,
       pruned.finished_at IS NOT NULL AS pruned,
       coalesce(extract(epoch FROM now()::timestamp - coalesce(pruned.finished_at, first.started_at))::float8, 0)
         AS unpruned_seconds,
       (SELECT coalesce(jsonb_object_agg(k.kind, s.at), '{}')
          FROM unnest(ARRAY['full', 'recent', 'range', 'targeted', 'prune']) AS k (kind)
         CROSS JOIN LATERAL (
                 SELECT {schema}.mailglass_reconcile_iso_v1(finished_at) AS at FROM {schema}.mailglass_reconcile_runs
                  WHERE kind = k.kind AND status IN ('ok', 'partial') AND covered AND ranges_done >= coalesce(ranges, 0)
                    AND (kind <> 'full' OR tenant_id IS NULL)
                  ORDER BY id DESC LIMIT 1) AS s) AS last_success,
       last.status, last.error, extract(epoch FROM now()::timestamp - last.finished_at)::float8 AS age,
       last.linked, last.failed, last.published, last.publish_failed
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial')
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS ok ON true
  LEFT JOIN LATERAL (
         SELECT finished_at, origin FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial') AND covered
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS success ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND open_groups IS NOT NULL
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS counted ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status <> 'duplicate' ORDER BY id DESC LIMIT 1) AS last ON true
  LEFT JOIN LATERAL (
         SELECT min(started_at) AS since FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND NOT covered AND remaining IS NOT NULL
            AND id > coalesce((SELECT id FROM {schema}.mailglass_reconcile_runs
                                WHERE kind = 'full' AND tenant_id IS NULL AND covered AND status <> 'duplicate'
                                ORDER BY id DESC LIMIT 1), 0)) AS uncovered ON true
  -- Each kind by itself, because an index has them in order. Dispatches count: then beat is alive.
  LEFT JOIN LATERAL (
         SELECT max(b.finished_at) AS finished_at
           FROM unnest(ARRAY['full', 'recent', 'range', 'dispatch', 'prune']) AS k (kind)
          CROSS JOIN LATERAL (SELECT finished_at FROM {schema}.mailglass_reconcile_runs
                               WHERE kind = k.kind AND origin = 'beat' ORDER BY id DESC LIMIT 1) AS b) AS beat ON true
  LEFT JOIN LATERAL (
         SELECT a.app
           FROM unnest(ARRAY['full', 'recent', 'dispatch', 'prune']) AS k (kind)
          CROSS JOIN LATERAL (SELECT id, app FROM {schema}.mailglass_reconcile_runs
                               WHERE kind = k.kind AND app IS NOT NULL ORDER BY id DESC LIMIT 1) AS a
          ORDER BY a.id DESC LIMIT 1) AS celery ON true
  -- A schedule whose sweeps have stopped does not make those of cron late.
  LEFT JOIN LATERAL (
         SELECT finished_at, interval_seconds FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND app IS NOT NULL ORDER BY id DESC LIMIT 1) AS schedule ON true
  -- Manual sweeps while Celery is down are not in each quarter of an hour. 100 rows: cron may sweep each minute.
  LEFT JOIN LATERAL (
         SELECT count(DISTINCT floor(extract(epoch FROM now()::timestamp - f.finished_at) / 900)) AS quarters
           FROM (SELECT finished_at, origin, status, covered FROM {schema}.mailglass_reconcile_runs
                  WHERE kind = 'full' AND tenant_id IS NULL ORDER BY id DESC LIMIT 100) AS f
          WHERE f.origin NOT IN ('beat', 'call') AND f.status IN ('ok', 'partial') AND f.covered
            AND f.finished_at > now()::timestamp - interval '1 hour') AS other ON true
  LEFT JOIN LATERAL (
         SELECT finished_at FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'prune' AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1) AS pruned ON true
  LEFT JOIN LATERAL (
         SELECT started_at FROM {schema}.mailglass_reconcile_runs ORDER BY id LIMIT 1) AS first ON true
"""


# A full sweep that was cut into ranges has their counts once they have ended. A recent sweep that found nothing to do,
# and a dispatch, which is noted once an hour, say no more than that they run.
_RUNS = """
SELECT r.id, {schema}.mailglass_reconcile_iso_v1(r.started_at) AS started_at,
       {schema}.mailglass_reconcile_iso_v1(r.finished_at) AS finished_at,
       r.kind, r.origin, r.tenant_id,
       CASE WHEN r.ranges_done < r.ranges THEN 'partial' ELSE r.status END AS status, r.error, r.runs, r.scanned,
       r.linked, r.unmatched, r.unmatchable, r.ambiguous, r.tenant_mismatch, r.recipient_mismatch, r.skipped, r.failed,
       r.published, r.publish_failed, r.expired, r.events, r.deliveries, r.duration_ms, r.remaining,
       r.ranges, r.ranges_done
  FROM {schema}.mailglass_reconcile_runs AS r
 WHERE r.id < coalesce(CAST(:before AS bigint), 9223372036854775807)
   AND (CAST(:kind AS text) IS NULL OR r.kind = :kind) AND (CAST(:status AS text) IS NULL OR r.status = :status)
   AND (:idle OR r.kind NOT IN ('recent', 'dispatch') OR r.status <> 'ok' OR r.linked > 0 OR r.failed > 0)
 ORDER BY r.id DESC LIMIT :size
"""


_FIRST_RUN = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_reconcile_runs) AS has_run,
       EXISTS (SELECT FROM {schema}.mailglass_deliveries) AS has_delivery,
       EXISTS (SELECT FROM {schema}.mailglass_events WHERE delivery_id IS NULL) AS has_orphan,
       EXISTS (SELECT FROM {schema}.mailglass_open_orphans
                WHERE arrived_at < now()::timestamp - make_interval(secs => :late_seconds)) AS is_late
"""


class LastSweep(NamedTuple):
    """The last full sweep of all tenants, unless it was a duplicate."""

    status: str
    error: str | None
    age: float
    linked: int
    failed: int
    published: int
    publish_failed: int


class RunHistory(NamedTuple):
    """The history of runs; one statement reads it, at a cost that does not depend on the number of open orphans.

    Attributes:
        now: The database's time, in ISO 8601, UTC.
        success_age: Seconds since a full sweep last succeeded; None if none has.
        success_origin: The origin of that sweep, one of `store.tables.runs.Origin`.
        lag_seconds: Seconds for which the oldest orphan that a full sweep left has been open although its delivery
            exists; 0 if there is none.
        counted_at: When a full sweep last counted the open orphans; None if none has.
        groups: The open orphans at that time by `state`, `tenant_id` and `provider`, the largest group first.
        covered_until: The upper end of that sweep's window, as Postgres writes it: what arrived later is not counted.
        uncovered_seconds: Seconds for which no full sweep has checked everything; 0 if the last one has.
        beat_age: Seconds since the end of the last run that beat had queued; None without one.
        app: The name of the Celery app that ran the last task; None if none has run, or its row is too old.
        interval_seconds: Seconds from the last full sweep of a Celery app to the next in its schedule; None if that is
            not known, or has stopped.
        other_quarters: The number of the last four quarters of an hour, of `now`, in which a full sweep succeeded that
            Celery had not run.
        pruned: True if a prune has ever succeeded.
        unpruned_seconds: Seconds since the last successful prune; without one, since the first run of the history.
        last_success: When a run of each kind last succeeded.
        last: The last full sweep.
    """

    now: str
    success_age: float | None
    success_origin: str | None
    lag_seconds: float
    counted_at: str | None
    groups: list[OpenGroup] | None
    covered_until: str | None
    uncovered_seconds: float
    beat_age: float | None
    app: str | None
    interval_seconds: int | None
    other_quarters: int
    pruned: bool
    unpruned_seconds: float
    last_success: dict[str, str]
    last: LastSweep | None

    def late_after(self, seconds: float) -> float:
        """Return the seconds after which a full sweep is late: *seconds*, or more if sweeps are scheduled so."""
        interval = self.interval_seconds or 0
        return seconds if interval <= SWEEP_INTERVAL_SECONDS else max(seconds, interval + SWEEP_INTERVAL_SECONDS)


class ListedRun(TypedDict):
    """A run of the history, or several recent ones added up; times are in ISO 8601, UTC."""

    id: int
    started_at: str
    finished_at: str
    kind: RunKind
    origin: Origin
    tenant_id: str | None
    status: RunStatus
    error: str | None
    runs: int
    scanned: int
    linked: int
    unmatched: int
    unmatchable: int
    ambiguous: int
    tenant_mismatch: int
    recipient_mismatch: int
    skipped: int
    failed: int
    published: int
    publish_failed: int
    expired: int
    events: int
    deliveries: int
    duration_ms: int
    remaining: int | None
    ranges: int | None
    ranges_done: int | None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """A filter for runs.

    Attributes:
        kind: One of `store.tables.runs.KINDS`; None is all.
        status: The status of the run; None is any.
        idle: Include recent sweeps that linked nothing, and dispatches.
    """

    kind: str | None = None
    status: str | None = None
    idle: bool = False


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first; `before` is the cursor of the next page, None at the end."""

    runs: list[ListedRun]
    before: int | None


@dataclass(frozen=True, slots=True)
class LockState:
    """The holder of the lock of all tenants' sweeps, None if it is free; or the fault for which it could not be read.

    `not_configured`: this process has no Redis of its own to ask, and none answers at the default address.
    """

    holder: Holder | None = None
    fault: str | None = None
    not_configured: bool = False


class FirstRunState(NamedTuple):
    """The state of a new installation before its first run: has it a delivery, and an event that needs one."""

    has_delivery: bool
    has_orphan: bool


def load_history(tx: Transaction) -> RunHistory:
    """Load the history of sweeps, of beat and of the prune."""
    row = tx.execute(_HISTORY).one()
    groups, size = None if row.groups is None else add_up(row.groups), len(LastSweep._fields)
    last = None if row.status is None else LastSweep._make(row[-size:])
    return RunHistory._make((*row[:-size], last))._replace(groups=groups)


def load_last_success(database: Database) -> dict[str, str]:
    """Return the time of the last successful run of each kind, in ISO 8601."""
    with database.reading(TIMEOUT_MS) as tx:
        return load_history(tx).last_success


def load_first_run(tx: Transaction) -> FirstRunState | None:
    """Return the state of a new installation; None after the first run, or if an orphan has waited too long for it."""
    row = tx.execute(_FIRST_RUN, {"late_seconds": LATE_SECONDS}).one()
    return None if row.has_run or row.is_late else FirstRunState(row.has_delivery, row.has_orphan)


def load_page(database: Database, filters: RunFilter, *, before: int | None = None, size: int = 50) -> RunPage:
    """Return the next *size* runs before the one with the id *before*, or the newest."""
    with database.reading(TIMEOUT_MS) as tx:
        newest = load_newest(tx, filters, before=before, size=size + 1)
    return RunPage(newest[:size], newest[size - 1]["id"] if len(newest) > size else None)


def load_newest(
    tx: Transaction, filters: RunFilter | None = None, *, before: int | None = None, size: int
) -> list[ListedRun]:
    """Return the newest runs that pass, at most *size*."""
    parameters = {**asdict(filters or RunFilter()), "before": before, "size": size}
    return [cast("ListedRun", dict(row)) for row in tx.execute(_RUNS, parameters).mappings()]


def load_totals(tx: Transaction) -> dict[str, int]:
    """Return `linked`, `expired` and `failed_runs` since the history began."""
    totals = runs.sum_by_status(tx)
    return {
        "linked": sum(total.counts["linked"] for total in totals),
        "expired": sum(total.counts["expired"] for total in totals),
        "failed_runs": sum(total.counts["runs"] for total in totals if total.status == "failed"),
    }


def load_sweep_lock() -> LockState:
    """Return the holder of the lock of the sweeps of all tenants."""
    from mailglass_reconcile.singleton.lock import load_sweep_holder  # noqa: PLC0415 - loading Redis takes a tenth of a second

    try:
        return LockState(load_sweep_holder())
    except MailglassReconcileError as error:
        return LockState(fault=str(error), not_configured=not runtime.is_redis_configured())


def count_by_state(groups: Iterable[OpenGroup]) -> Counter[str]:
    """Add up the open orphans of the groups by state."""
    counts: Counter[str] = Counter()
    for group in add_up(groups):
        counts[group["state"]] += group["orphans"]
    return counts


def add_up(groups: Iterable[OpenGroup]) -> list[OpenGroup]:
    """Return groups of open orphans, the largest first; the ranges of a fan-out have counted the same groups."""
    counts: Counter[tuple[OpenState, str | None, str | None]] = Counter()
    for group in groups:
        # What a later version stored in another form is left out.
        if isinstance(group, dict) and isinstance(group.get("state"), str) and isinstance(group.get("orphans"), int):
            counts[group["state"], group.get("tenant_id"), group.get("provider")] += group["orphans"]
    return [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in counts.most_common()
    ]
