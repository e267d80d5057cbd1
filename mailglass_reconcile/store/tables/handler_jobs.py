"""The handlers' outbox: a job for each handler and event, written by the statement that attaches the event.

A job is `waiting` until its handler has succeeded (`done`) or failed for the last time (`dead`). An attempt is counted
when the job is claimed, so one that ends with its process counts too. A job is marked done in the transaction in which
its handler runs, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mailglass_reconcile.rules.events import Bounce
from mailglass_reconcile.store.database import Function, SessionTransaction, Transaction, array_literal, column_arrays

DELAYS_SECONDS = (5, 30, 120, 600, 3_600, 14_400, 43_200, 86_400)
"""Seconds from each attempt to the next, of which up to a quarter more is drawn by lot."""
MOST_ATTEMPTS = len(DELAYS_SECONDS) + 1
UNFINISHED = "Unfinished"
"""The error of a job whose last attempt still runs, or ended with its process."""
ROLLED_BACK = "RolledBack"
"""The error of a job whose handler returned, but whose work was rolled back."""
EVENT_MISSING = "EventMissing"
"""The error of a job whose event was deleted from the ledger."""

FAILING_ATTEMPTS = 3
"""After so many attempts, minutes after the first, a job is not failing by chance."""

CLAIM = Function(
    "mailglass_reconcile_claim_job_v1",
    (
        "handlers",
        "types",
        "delays",
        "unfinished",
        "synchronous",
        "last_event",
        "last_handler",
        "last_attempt",
        "last_error",
    ),
)
START = Function("mailglass_reconcile_start_job_v1", ("event", "handler_name", "attempt", "time_limit"))

_FACTS = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead,
       coalesce(extract(epoch FROM now()::timestamp - min(next_at) FILTER (WHERE state = 'waiting')), 0)::float8
         AS overdue_seconds,
       count(*) FILTER (WHERE state = 'waiting' AND attempts >= :attempts) AS failing
  FROM {schema}.mailglass_handler_outbox WHERE state <> 'done'
"""

RETRY = """
UPDATE {schema}.mailglass_handler_outbox
   SET state = 'waiting', attempts = CASE WHEN state = 'dead' THEN 0 ELSE attempts END,
       next_at = now()::timestamp, finished_at = NULL
 WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM {schema}.mailglass_handler_outbox
          WHERE state <> 'done'
            AND (CAST(:event_id AS uuid) IS NULL OR event_id = CAST(:event_id AS uuid))
            AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
            -- Failing ones that are due already are left out, except for those of the event that is named.
            AND (state = 'dead' OR attempts > 0)
            AND (state = 'dead' OR next_at > now()::timestamp OR event_id = CAST(:event_id AS uuid))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: make jobs that are dead or fail due now; all, those of one event, or those of one handler.

A dead one begins with its first attempt again, a failing one keeps its count.
"""

COUNT_OLD = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(finished_at)) AS oldest
  FROM {schema}.mailglass_handler_outbox
 WHERE {schema}.mailglass_reconcile_is_past_retention_v1(
         state, finished_at, CAST(:state AS text), CAST(:days AS integer))
"""
DELETE_OLD = """
DELETE FROM {schema}.mailglass_handler_outbox
 WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM {schema}.mailglass_handler_outbox
          WHERE {schema}.mailglass_reconcile_is_past_retention_v1(
                  state, finished_at, CAST(:state AS text), CAST(:days AS integer))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: delete jobs that have been `done` or `dead` for more than so many days."""

DELETE_WAITING = """
DELETE FROM {schema}.mailglass_handler_outbox
 WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM {schema}.mailglass_handler_outbox
          WHERE state = 'waiting'
            AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
            AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: delete waiting jobs of a type, or of a handler, or of both."""

_ENQUEUE = """
INSERT INTO {schema}.mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)
SELECT m.event_id, m.handler, m.delivery_id, m.type, now()::timestamp, now()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:handlers AS text[]), CAST(:delivery_ids AS uuid[]),
              CAST(:types AS text[])) AS m (event_id, handler, delivery_id, type)
 ORDER BY m.event_id, m.handler
    ON CONFLICT DO NOTHING
"""

_DELAYS = array_literal(map(str, DELAYS_SECONDS))


class Facts(NamedTuple):
    """Numbers of waiting, dead and repeatedly failed jobs, and the delay of the first due job."""

    waiting: int
    dead: int
    overdue_seconds: float
    failing: int


class Job(NamedTuple):
    """A claimed job, with the fields of event and delivery that its handler gets.

    `dead` if its last attempt had ended with its process; `tenant_id` is None if the ledger lacks the event.
    """

    event_id: str
    handler: str
    attempts: int
    dead: bool
    type: str
    delivery_id: str
    tenant_id: str | None
    reject_reason: str | None
    occurred_at: Any
    provider: str | None
    message_id: str | None
    recipient: str | None
    bounce: Bounce | None
    smtp_status: str | None


class Failure(NamedTuple):
    """A failed attempt of a job, whose transaction was not committed: the class of the error."""

    job: Job
    error: str


class Claim(NamedTuple):
    """The claimed job, if one is due, and the state of the job whose attempt failed before.

    The state is None if the attempt was committed, or if another dispatcher has claimed the job since.
    """

    job: Job | None
    failed_state: str | None


class NewJob(NamedTuple):
    """A job to enqueue."""

    event_id: str
    handler: str
    delivery_id: str
    type: str


def load_facts(tx: Transaction) -> Facts:
    """Count the waiting and the dead jobs, by one query over the jobs that are not done."""
    return Facts(*tx.execute(_FACTS, {"attempts": FAILING_ATTEMPTS}).one())


def claim(
    tx: SessionTransaction,
    registrations: Iterable[tuple[str, str]],
    *,
    synchronous: bool,
    failure: Failure | None = None,
) -> Claim:
    """Record a *failure* of the last attempt, and claim the next job.

    The *registrations*, each a handler and a type, are tried in order; the first one with a job that is due gets it.
    """
    handlers, types = tuple(zip(*registrations, strict=True)) or ((), ())
    row = tx.call(
        CLAIM,
        {
            "handlers": array_literal(handlers),
            "types": array_literal(types),
            "delays": _DELAYS,
            "unfinished": UNFINISHED,
            "synchronous": None if synchronous else "off",
            "last_event": failure.job.event_id if failure else None,
            "last_handler": failure.job.handler if failure else None,
            "last_attempt": str(failure.job.attempts) if failure else None,
            "last_error": failure.error if failure else None,
        },
    )[0]
    return Claim(Job(*row[1:]) if row.event_id else None, row.last_state)


def start(tx: SessionTransaction, job: Job, seconds: float) -> Mapping[str, str] | None:
    """Mark a job done, which its handler's transaction then commits or rolls back, and limit that transaction.

    Return the settings that this changes, as they were; None if another dispatcher has claimed the job since.
    """
    attempt = {"event": job.event_id, "handler_name": job.handler, "attempt": str(job.attempts)}
    rows = tx.call(START, {**attempt, "time_limit": f"{round(seconds * 1000)}ms"})
    return {row.name: row.setting for row in rows if row.name} if rows else None


def enqueue(tx: Transaction, jobs: Iterable[NewJob]) -> int:
    """Insert jobs, except those that exist in any state, and return the number of new ones."""
    rows = list(jobs)
    if not rows:
        return 0
    return tx.execute(_ENQUEUE, column_arrays(("event_ids", "handlers", "delivery_ids", "types"), rows)).rowcount
