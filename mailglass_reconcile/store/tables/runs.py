"""The history of runs: one row each, but recent sweeps of one minute share a row, and so do dispatches of one hour."""

from __future__ import annotations

import json
import math
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from mailglass_reconcile.rules import states
from mailglass_reconcile.rules.states import OpenState, RunStatus
from mailglass_reconcile.store.database import OpenConnection, Transaction

RunKind = Literal["full", "recent", "range", "targeted", "prune", "dispatch"]
KINDS: tuple[str, ...] = get_args(RunKind)
Origin = Literal["beat", "call", "command", "python", "follow"]

RETENTION_DAYS = 30
"""Older rows are added up into one per kind, origin and status, so that totals never shrink."""

COUNTS = (
    "scanned",
    *states.OUTCOMES,
    "linked_unchecked",
    "published",
    "publish_failed",
    "expired",
    "events",
    "deliveries",
    "duration_ms",
)
"""The columns that add up; the statements are written from this list."""


_ZERO_COUNTS = dict.fromkeys(COUNTS, 0)


def _for_each_count(statement: str) -> str:
    """Return *statement* with what stands in brackets written out for each of `COUNTS`, in place of `#`."""
    return re.sub(r"\[(.*#.*)\]", lambda form: ", ".join(form[1].replace("#", name) for name in COUNTS), statement)


_ADD = _for_each_count("""
INSERT INTO {schema}.mailglass_reconcile_runs AS r
       (started_at, finished_at, kind, origin, app, interval_seconds, tenant_id, status, error, runs, [#],
        remaining, linkable_since, open_groups, covered_until, covered, ranges)
VALUES (now()::timestamp - make_interval(secs => :age_ms / 1000.0), now()::timestamp, :kind, :origin, :app,
        :interval_seconds, :tenant_id, :status, :error, :runs, [:#],
        :remaining, CAST(:linkable_since AS timestamp), CAST(:open_groups AS jsonb),
        CAST(:covered_until AS timestamp), :covered, :ranges)
    ON CONFLICT (kind, origin, status, coalesce(tenant_id, ''),
                 date_trunc(CASE kind WHEN 'dispatch' THEN 'hour' ELSE 'minute' END, started_at))
          WHERE kind IN ('recent', 'dispatch')
    DO UPDATE
   SET finished_at = excluded.finished_at, error = excluded.error, app = excluded.app, runs = r.runs + excluded.runs,
       [# = r.# + excluded.#],
       remaining = excluded.remaining, linkable_since = excluded.linkable_since
RETURNING id
""")

# A range adds its counts to the sweep that was cut; that one is over when all of its ranges have done so.
_ADD_RANGE = _for_each_count("""
UPDATE {schema}.mailglass_reconcile_runs
   SET finished_at = now()::timestamp, ranges_done = ranges_done + 1, error = coalesce(:error, error),
       status = CASE WHEN 'failed' IN (status, :status) THEN 'failed' WHEN 'partial' IN (status, :status) THEN 'partial'
                     ELSE status END,
       [# = # + :#],
       remaining = coalesce(remaining, 0) + coalesce(:remaining, 0),
       linkable_since = least(linkable_since, CAST(:linkable_since AS timestamp)),
       covered = covered AND :covered,
       open_groups = coalesce(open_groups, '[]') || coalesce(CAST(:open_groups AS jsonb), '[]')
 WHERE id = :id
""")

# One statement deletes and adds: a total is never counted twice, and never missing.
_FOLD = _for_each_count("""
WITH old AS (
  DELETE FROM {schema}.mailglass_reconcile_runs
   WHERE finished_at < now()::timestamp - make_interval(days => :days) RETURNING *
)
INSERT INTO {schema}.mailglass_reconcile_runs
       (started_at, finished_at, kind, origin, status, runs, [#])
SELECT min(started_at), max(finished_at), kind, origin, status, sum(runs), [sum(#)]
  FROM old GROUP BY kind, origin, status
""")

# Rows that the prune has added up are among them: a pass over the table costs a few milliseconds.
_TOTALS = _for_each_count("""
SELECT kind, status, sum(runs)::bigint AS runs, [sum(#)::bigint AS #]
  FROM {schema}.mailglass_reconcile_runs GROUP BY kind, status
""")

_LINKS = """
SELECT coalesce(sum(linked), 0)::bigint AS linked, coalesce(sum(linked_unchecked), 0)::bigint AS unchecked
  FROM {schema}.mailglass_reconcile_runs WHERE finished_at > now()::timestamp - make_interval(secs => :seconds)
"""

_OF_A_TOTAL = ("kind", "status")


class Total(NamedTuple):
    """All runs of one kind that ended in one way, since the history began; `counts` has `runs` and `COUNTS`."""

    kind: str
    status: str
    counts: dict[str, int]


class LinkCounts(NamedTuple):
    """The links that runs have made, and those of them made by the message id alone."""

    linked: int
    unchecked: int


class OpenGroup(TypedDict):
    """The number of open orphans of a state, a tenant and a provider; small tenants together have no tenant."""

    state: OpenState
    tenant_id: str | None
    provider: str | None
    orphans: int


@dataclass(slots=True)
class Run:
    """One run, or several recent ones added up.

    Attributes:
        kind: One of `KINDS`.
        origin: The origin of the run: `beat`, `call`, `command`, `python` or `follow`.
        tenant_id: The tenant that was swept, or None for all.
        status: `ok`, `partial`, `failed`, or `duplicate` if the same sweep was already queued or running.
        counts: Orphans and messages by name, and `duration_ms`; missing counts are 0.
        remaining: Eligible orphans still open afterwards, or None if they were not counted.
        linkable_since: When the oldest orphan that is open although its delivery exists became linkable, or None.
        open_groups: The open orphans by state, tenant and provider; a group may be there several times.
        covered_until: The upper end of the window of a full sweep; `open_groups` has nothing that arrived later.
        covered: True if a sweep checked its whole window.
        ranges: The number of ranges into which a full sweep was divided; None if it was not.
        error: The class of the error that ended it; never its text, which may name people.
        runs: The number of runs that the row adds up.
        began: When the first of them began, in seconds of the monotonic clock.
    """

    kind: RunKind
    origin: Origin
    tenant_id: str | None = None
    status: RunStatus = "ok"
    counts: dict[str, int] = field(default_factory=dict)
    remaining: int | None = None
    linkable_since: str | None = None
    open_groups: list[OpenGroup] | None = None
    covered_until: str | None = None
    covered: bool = True
    ranges: int | None = None
    error: str | None = None
    runs: int = 1
    began: float = field(default_factory=time.monotonic)


class CeleryApp(NamedTuple):
    """The Celery app that runs a task of ours, and the seconds until its schedule has the next full sweep."""

    name: str
    interval_seconds: int | None


RUNNING_APP: ContextVar[CeleryApp | None] = ContextVar("mailglass_reconcile_running_app", default=None)
"""The app of the task that runs now, whose runs are stored with it."""


def add(tx: Transaction, run: Run) -> int:
    """Add a run to the history, and return its id; a recent sweep or a dispatch is added to its minute or hour."""
    app = RUNNING_APP.get()
    parameters = {
        **_parameters(run),
        "kind": run.kind,
        "origin": run.origin,
        "app": app and app.name,
        "interval_seconds": app and app.interval_seconds,
        "tenant_id": run.tenant_id,
        "runs": run.runs,
        "age_ms": math.ceil((time.monotonic() - run.began) * 1000),
        "covered_until": run.covered_until,
        "ranges": run.ranges,
    }
    return int(tx.execute(_ADD, parameters).scalar_one())


def add_range(tx: Transaction, run_id: int, run: Run) -> None:
    tx.execute(_ADD_RANGE, {**_parameters(run), "id": run_id})


def _parameters(run: Run) -> dict[str, Any]:
    return {
        **_ZERO_COUNTS,
        **run.counts,
        "status": run.status,
        "error": run.error,
        "remaining": run.remaining,
        "linkable_since": run.linkable_since,
        "open_groups": None if run.open_groups is None else json.dumps(run.open_groups),
        "covered": run.covered,
    }


def sum_by_status(tx: Transaction) -> list[Total]:
    """Return the totals of all runs by kind and status; they never shrink."""
    rows = tx.execute(_TOTALS).mappings().all()
    return [
        Total(row["kind"], row["status"], {name: row[name] for name in row if name not in _OF_A_TOTAL}) for row in rows
    ]


def count_links(tx: Transaction, seconds: float) -> LinkCounts:
    """Return the links of the runs that ended in the last *seconds*."""
    return LinkCounts(*tx.execute(_LINKS, {"seconds": seconds}).one())


def fold_old(connected: OpenConnection) -> int:
    """Add up the rows older than `RETENTION_DAYS` into one for each kind, origin and status; return their number.

    A concurrent prune waits, and then finds no old rows.
    """
    with connected.writing() as tx:
        return int(tx.execute(_FOLD, {"days": RETENTION_DAYS}).rowcount)
