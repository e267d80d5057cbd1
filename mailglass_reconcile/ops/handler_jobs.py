"""The waiting, failing and dead jobs of handlers, by handler and error, as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables import handler_jobs
from mailglass_reconcile.store.tables.handler_jobs import Facts

MAX_JOBS = 1_000
MAX_GROUPS = 100
TIMEOUT_MS = 24_000

State = Literal["waiting", "dead"]

# Waiting jobs: failing ones first, then by due time. Dead jobs: the latest first.
_JOBS = """
SELECT event_id::text, handler, delivery_id::text, type, attempts, error, state,
       {schema}.mailglass_reconcile_iso_v1(CASE state WHEN 'dead' THEN finished_at ELSE next_at END) AS at
  FROM {schema}.mailglass_handler_outbox AS j
 WHERE state = :state AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
 ORDER BY CASE state WHEN 'dead' THEN 0 ELSE least(attempts, 1) END DESC,
          CASE state WHEN 'dead' THEN j.finished_at END DESC, j.next_at, j.event_id, j.handler
 LIMIT :size
"""

_GROUPS = """
SELECT handler, type, error, count(*) AS number,
       {schema}.mailglass_reconcile_iso_v1(
         CASE WHEN min(state) = 'dead' THEN max(finished_at) ELSE min(next_at) END) AS at,
       sum(count(*)) OVER () AS total
  FROM {schema}.mailglass_handler_outbox
 WHERE state = :state AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
 GROUP BY handler, type, error, attempts > 0
 ORDER BY attempts > 0 DESC, number DESC, handler, type, error
 LIMIT :size
"""


@dataclass(frozen=True, slots=True)
class HandlerJob:
    """A job that waits or is dead.

    Attributes:
        event_id: The event.
        handler: The name of its handler.
        delivery_id: The event's delivery.
        type: The event's type.
        attempts: The number of attempts that have begun.
        error: The class of the last error; None if it was not tried yet.
        state: `waiting` or `dead`.
        at: The time of the next attempt or, if it is dead, of the last one. In ISO 8601, UTC.
    """

    event_id: str
    handler: str
    delivery_id: str
    type: str
    attempts: int
    error: str | None
    state: State
    at: str


@dataclass(frozen=True, slots=True)
class JobGroup:
    """Jobs of one handler and type that failed in the same way.

    Attributes:
        handler: The name of their handler.
        type: The type of their events.
        error: The class of the last error; None if they were not tried yet.
        number: The number of jobs.
        at: The time of the next attempt or, if they are dead, of the last one. In ISO 8601, UTC.
    """

    handler: str
    type: str
    error: str | None
    number: int
    at: str


@dataclass(frozen=True, slots=True)
class JobList:
    """The jobs of a state.

    Attributes:
        groups: At most 100 groups, by handler, type and error: failing jobs first, then the largest groups.
        jobs: The first 1,000 jobs.
        total: The number of all jobs of the state.
    """

    groups: list[JobGroup]
    jobs: list[HandlerJob]
    total: int


def load_jobs(database: Database, state: State, handler: str | None = None) -> JobList:
    """Return the waiting or the dead jobs, of one handler or of all."""
    selection = {"state": state, "handler": handler}
    with database.reading(TIMEOUT_MS) as tx:
        groups = tx.execute(_GROUPS, {**selection, "size": MAX_GROUPS}).all()
        jobs = tx.execute(_JOBS, {**selection, "size": MAX_JOBS}).all()
    total = int(groups[0].total) if groups else 0
    return JobList([JobGroup(*group[:5]) for group in groups], [HandlerJob(*job) for job in jobs], total)


def load_facts(database: Database) -> Facts:
    """Count the jobs that wait, fail or are dead."""
    with database.reading(TIMEOUT_MS) as tx:
        return handler_jobs.load_facts(tx)
