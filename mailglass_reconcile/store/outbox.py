"""The handlers' outbox: a row for each event that they run on, written by the statement that attaches it.

A row is `waiting` until all its handlers are done (`dispatched`) or it has failed for the last time (`dead`). An
attempt is counted when its row is claimed, so one that ends with its process counts too. Which handlers are done is
noted in the transactions in which they run, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.rules.events import Bounce
from mailglass_reconcile.store.database import Transaction, array_literal, columns

DELAYS_SECONDS = (5, 30, 120, 600, 3_600, 14_400, 43_200, 86_400)
"""Seconds from each attempt to the next, of which up to a quarter more is drawn by lot."""
MOST_ATTEMPTS = len(DELAYS_SECONDS) + 1
LAST_SECONDS = 300
"""When a row is declared dead whose last attempt ended with its process."""
UNFINISHED = "Unfinished"
"""As a row's error: its last attempt still runs, or has ended with its process."""
ROLLED_BACK = "RolledBack"
"""As a row's error: a handler returned, but its work was rolled back."""

FAILING_ATTEMPTS = 3
"""After so many attempts, minutes after the first, an event is not failing by chance."""

_FACTS = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead,
       coalesce(extract(epoch FROM now()::timestamp - min(next_at) FILTER (WHERE state = 'waiting')), 0)::float8
         AS overdue_seconds,
       count(*) FILTER (WHERE state = 'waiting' AND attempts >= :attempts) AS failing
  FROM {schema}.mailglass_handler_outbox WHERE state <> 'dispatched'
"""

_DEAD = """
SELECT event_id::text, delivery_id::text, type, attempts, done, error, to_json(finished_at) #>> '{}' AS finished_at
  FROM {schema}.mailglass_handler_outbox AS o WHERE state = 'dead' ORDER BY o.finished_at DESC, o.event_id LIMIT :size
"""

RETRY = """
UPDATE {schema}.mailglass_handler_outbox
   SET state = 'waiting', attempts = CASE WHEN state = 'dead' THEN 0 ELSE attempts END,
       next_at = now()::timestamp, finished_at = NULL
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_handler_outbox
          WHERE state <> 'dispatched'
            AND (CAST(:event_id AS uuid) IS NULL OR event_id = CAST(:event_id AS uuid))
            -- Failing ones that are due already are left out, except for the one that is named.
            AND (state = 'dead' OR attempts > 0)
            AND (state = 'dead' OR next_at > now()::timestamp OR event_id = CAST(:event_id AS uuid))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: make rows that are dead or fail, or one of them, due now; handlers that are done stay done.

A dead one begins with its first attempt again, a failing one keeps its count.
"""

DELETE_DISPATCHED = """
DELETE FROM {schema}.mailglass_handler_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_handler_outbox
          WHERE state = 'dispatched' AND finished_at < now()::timestamp - make_interval(days => :days)
          ORDER BY finished_at LIMIT :size))
"""

DELETE_DEAD = """
DELETE FROM {schema}.mailglass_handler_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_handler_outbox
          WHERE state = 'dead' AND finished_at < now()::timestamp - make_interval(days => :days)
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""

# By type, because rows of a type without a handler may wait in front of all others.
_CLAIM = """
WITH due AS (
  SELECT d.event_id
    FROM unnest(CAST(:types AS text[])) AS t (type)
   CROSS JOIN LATERAL (
           SELECT event_id FROM {schema}.mailglass_handler_outbox
            WHERE state = 'waiting' AND type = t.type AND least(attempts, 1) = :tried
              AND next_at <= now()::timestamp
            ORDER BY next_at LIMIT :size FOR UPDATE SKIP LOCKED) AS d
   LIMIT :size
)
UPDATE {schema}.mailglass_handler_outbox AS o
   SET attempts = least(o.attempts + 1, :most), error = :unfinished,
       state = CASE WHEN o.attempts >= :most THEN 'dead' ELSE 'waiting' END,
       finished_at = CASE WHEN o.attempts >= :most THEN clock_timestamp()::timestamp END,
       next_at = clock_timestamp()::timestamp
                 + make_interval(secs => coalesce((CAST(:delays AS float8[]))[o.attempts + 1], :last)
                                         * (1 + random() / 4))
  FROM due
 WHERE o.event_id = due.event_id
RETURNING o.event_id::text, o.attempts, o.type, o.state = 'dead' AS dead
"""

# Here and below, CASE, which the planner cannot estimate: with statistics from a time when nothing waited,
# `state = 'waiting'` looks like one row, and each batch would begin with all that wait.
# A later claim, of another process, has another number of attempts. A time that Python cannot hold is replaced.
_READ = """
SELECT o.event_id::text, o.attempts, o.type, o.done, o.delivery_id::text, e.tenant_id, e.reject_reason,
       CASE WHEN e.occurred_at BETWEEN '0001-01-01' AND '9999-12-31' THEN e.occurred_at
            ELSE o.inserted_at END AS occurred_at,
       coalesce(CASE jsonb_typeof(e.metadata -> 'provider') WHEN 'string' THEN e.metadata ->> 'provider' END,
                CASE jsonb_typeof(e.normalized_payload -> 'provider')
                     WHEN 'string' THEN e.normalized_payload ->> 'provider' END,
                d.provider) AS provider,
       d.provider_message_id AS message_id, d.recipient,
       CASE WHEN e.metadata ->> 'bounce' IN ('hard', 'soft') THEN e.metadata ->> 'bounce' END AS bounce,
       left(e.metadata ->> 'smtp_status', 100) AS smtp_status
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[])) AS c (event_id, attempts)
  JOIN {schema}.mailglass_handler_outbox AS o ON o.event_id = c.event_id
  JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
  LEFT JOIN {schema}.mailglass_deliveries AS d ON d.id = o.delivery_id
 WHERE CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END
"""

# Limits that are stricter stay, and older servers have none for a whole transaction. This statement and the next two
# run in the handler's scope and not in ours, so functions are named with their schema.
_LIMIT = """
SELECT l.name, pg_catalog.current_setting(l.name) AS setting, pg_catalog.set_config(l.name, :limit, true)
  FROM (VALUES ('statement_timeout'), ('idle_in_transaction_session_timeout'), ('transaction_timeout')) AS l (name)
 WHERE CAST(pg_catalog.current_setting(l.name, true) AS interval)
       NOT BETWEEN interval '1 microsecond' AND CAST(:limit AS interval)
"""
_UNLIMIT = "SELECT pg_catalog.set_config(:name, :setting, true)"

# Waits for what another transaction does to the row: a dispatcher that finds it taken, or a COMMIT without an answer.
# If all other handlers of the event are done, the event is.
_NOTE = """
UPDATE {schema}.mailglass_handler_outbox AS o
   SET done = pg_catalog.array_append(o.done, c.handler),
       state = CASE WHEN o.done OPERATOR(pg_catalog.@>) c.others THEN 'dispatched' ELSE 'waiting' END,
       error = CASE WHEN o.done OPERATOR(pg_catalog.@>) c.others THEN NULL ELSE o.error END,
       finished_at = CASE WHEN o.done OPERATOR(pg_catalog.@>) c.others
                          THEN pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()) END
  FROM (SELECT CAST(:event_id AS uuid) AS event_id, CAST(:attempts AS integer) AS attempts,
               CAST(:handler AS text) AS handler, CAST(:others AS text[]) AS others) AS c
 WHERE o.event_id = c.event_id
   AND CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END AND c.handler <> ALL (o.done)
"""

# Locks the rows, so it waits for a COMMIT whose result is unknown.
_OUTCOMES = """
SELECT event_id::text, attempts, state, done FROM {schema}.mailglass_handler_outbox
 WHERE event_id = ANY (CAST(:event_ids AS uuid[])) ORDER BY event_id FOR UPDATE
"""

_SETTLE = """
UPDATE {schema}.mailglass_handler_outbox AS o
   SET error = c.error,
       state = CASE WHEN c.error IS NULL THEN 'dispatched' WHEN o.attempts >= :most THEN 'dead' ELSE 'waiting' END,
       finished_at = CASE WHEN c.error IS NULL OR o.attempts >= :most THEN clock_timestamp()::timestamp END,
       next_at = CASE WHEN o.attempts >= :most THEN o.next_at
                      ELSE clock_timestamp()::timestamp
                           + make_interval(secs => (CAST(:delays AS float8[]))[o.attempts] * (1 + random() / 4)) END
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:errors AS text[]))
       AS c (event_id, attempts, error)
 WHERE o.event_id = c.event_id AND CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END
RETURNING o.event_id::text, o.state
"""

_GIVE_BACK = """
UPDATE {schema}.mailglass_handler_outbox AS o
   SET attempts = o.attempts - 1, error = NULL, next_at = clock_timestamp()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[])) AS c (event_id, attempts)
 WHERE o.event_id = c.event_id AND CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END
"""


_ATTEMPTS = {"most": MOST_ATTEMPTS, "delays": array_literal(map(str, DELAYS_SECONDS))}
_CLAIMED = {"last": LAST_SECONDS, "unfinished": UNFINISHED}


class Facts(NamedTuple):
    """How many rows wait and are dead, by how long the first is overdue, and how many have failed several times."""

    waiting: int
    dead: int
    overdue_seconds: float
    failing: int


class Claim(NamedTuple):
    """A row that a dispatcher may try; `dead` if its last attempt had ended with its process."""

    event_id: str
    attempts: int
    type: str
    dead: bool


class Held(NamedTuple):
    """A claimed row, and what its handlers want to know of event and delivery."""

    event_id: str
    attempts: int
    type: str
    done: list[str]
    delivery_id: str
    tenant_id: str
    reject_reason: str | None
    occurred_at: Any
    provider: str | None
    message_id: str | None
    recipient: str | None
    bounce: Bounce | None
    smtp_status: str | None


class Outcome(NamedTuple):
    """What the database holds of a row after an attempt."""

    attempts: int
    state: str
    done: list[str]


class Settled(NamedTuple):
    """An attempt that has ended: with the class of an error, or with None if all handlers are done."""

    event_id: str
    attempts: int
    error: str | None


def facts(tx: Transaction) -> Facts:
    """Return what waits and what is dead, by one query over the rows that are not dispatched."""
    return Facts(*tx.execute(_FACTS, {"attempts": FAILING_ATTEMPTS}).one())


def dead(tx: Transaction, size: int) -> list[dict[str, Any]]:
    """Return the *size* dead rows that died last."""
    return [dict(row) for row in tx.execute(_DEAD, {"size": size}).mappings()]


def claim(tx: Transaction, types: Collection[str], size: int, *, tried: bool) -> list[Claim]:
    """Count an attempt of at most *size* rows of *types* that are due; of those that were *tried* before, or not."""
    parameters = {"types": array_literal(types), "tried": int(tried), "size": size, **_CLAIMED, **_ATTEMPTS}
    return list(map(Claim._make, tx.execute(_CLAIM, parameters)))


def read(tx: Transaction, claims: Sequence[Claim]) -> list[Held]:
    """Return claimed rows that are still this claim's, with what handlers want to know."""
    return list(map(Held._make, tx.execute(_READ, _of(claims)))) if claims else []


def limit(tx: Transaction, seconds: float) -> dict[str, str]:
    """Limit what a statement and the transaction may take; return the settings that this changes, as they were."""
    rows = tx.execute(_LIMIT, {"limit": f"{round(seconds * 1000)}ms"})
    return {row.name: row.setting for row in rows}


def unlimit(tx: Transaction, before: Mapping[str, str]) -> None:
    """Give a transaction the limits back that `limit` has returned."""
    for name, setting in before.items():
        tx.execute(_UNLIMIT, {"name": name, "setting": setting})


def note(tx: Transaction, row: Held, handler: str, others: Collection[str]) -> bool:
    """Note that a handler is done with an event, and whether all are, and lock the row.

    Return False if nothing was noted: another dispatcher has claimed the row since, or the handler is done already.
    """
    parameters = {"event_id": row.event_id, "attempts": row.attempts, "handler": handler}
    return tx.execute(_NOTE, {**parameters, "others": array_literal(others)}).rowcount == 1


def outcomes(tx: Transaction, event_ids: Sequence[str]) -> dict[str, Outcome]:
    """Lock the rows of events, and return what the database holds of each."""
    rows = tx.execute(_OUTCOMES, {"event_ids": array_literal(event_ids)})
    return {row.event_id: Outcome(row.attempts, row.state, row.done) for row in rows}


def settle(tx: Transaction, attempts: Sequence[Settled]) -> dict[str, str]:
    """Note how attempts ended, and return the new state of each row that is still this attempt's, by its event."""
    if not attempts:
        return {}
    rows = [(one.event_id, str(one.attempts), one.error) for one in attempts]
    found = tx.execute(_SETTLE, {**columns(("event_ids", "attempts", "errors"), rows), **_ATTEMPTS})
    return {row.event_id: row.state for row in found}


def give_back(tx: Transaction, claims: Sequence[Held]) -> None:
    """Take back the attempt of claimed rows that were not tried."""
    if claims:
        tx.execute(_GIVE_BACK, _of(claims))


def _of(claims: Sequence[Claim] | Sequence[Held]) -> dict[str, str]:
    return columns(("event_ids", "attempts"), [(claim.event_id, str(claim.attempts)) for claim in claims])
