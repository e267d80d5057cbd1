"""The handlers' outbox: a row for each event that they run on, written in the transaction that attaches it.

A row is `waiting` until all its handlers are done (`dispatched`) or it has failed for the last time (`dead`). An
attempt is counted when its row is claimed, so one that ends with its process counts too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.rules.events import Bounce
from mailglass_reconcile.store.database import Transaction, array_literal, columns
from mailglass_reconcile.store.ledger import LinkedEvent

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

# Without a conflict target, which would need the right to read. Sorted: two transactions wait one way only.
_ADD = """
INSERT INTO {schema}.mailglass_hook_outbox (event_id, delivery_id, type, next_at, inserted_at)
SELECT n.event_id, n.delivery_id, n.type, now()::timestamp, now()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]))
       AS n (event_id, delivery_id, type)
 ORDER BY n.event_id
    ON CONFLICT DO NOTHING
"""

_FACTS = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead,
       coalesce(extract(epoch FROM now()::timestamp - min(next_at) FILTER (WHERE state = 'waiting')), 0)::float8
         AS overdue_seconds,
       count(*) FILTER (WHERE state = 'waiting' AND attempts >= :attempts) AS failing
  FROM {schema}.mailglass_hook_outbox WHERE state <> 'dispatched'
"""

_DEAD = """
SELECT event_id::text, delivery_id::text, type, attempts, done, error, to_json(finished_at) #>> '{}' AS finished_at
  FROM {schema}.mailglass_hook_outbox AS o WHERE state = 'dead' ORDER BY o.finished_at DESC, o.event_id LIMIT :size
"""

RETRY = """
UPDATE {schema}.mailglass_hook_outbox
   SET state = 'waiting', attempts = 0, next_at = now()::timestamp, finished_at = NULL
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state = 'dead' AND (CAST(:event_id AS uuid) IS NULL OR event_id = CAST(:event_id AS uuid))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: let dead rows, or one of them, be tried again; what was done of them stays done."""

DELETE_DISPATCHED = """
DELETE FROM {schema}.mailglass_hook_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state = 'dispatched' AND finished_at < now()::timestamp - make_interval(days => :days)
          ORDER BY finished_at LIMIT :size))
"""

DELETE_DEAD = """
DELETE FROM {schema}.mailglass_hook_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state = 'dead' AND finished_at < now()::timestamp - make_interval(days => :days)
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""

# By type, because rows of a type without a handler may wait in front of all others.
_CLAIM = """
WITH due AS (
  SELECT d.event_id
    FROM unnest(CAST(:types AS text[])) AS t (type)
   CROSS JOIN LATERAL (
           SELECT event_id FROM {schema}.mailglass_hook_outbox
            WHERE state = 'waiting' AND type = t.type AND least(attempts, 1) = :tried
              AND next_at <= now()::timestamp
            ORDER BY next_at LIMIT :size FOR UPDATE SKIP LOCKED) AS d
   LIMIT :size
)
UPDATE {schema}.mailglass_hook_outbox AS o
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

# CASE, which the planner cannot estimate: with statistics from a time when nothing waited, `state = 'waiting'` looks
# like one row, and each batch would begin with all that wait.
_IS_CLAIMED = "CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END"

# A claim that somebody else has made since has another number of attempts. A time that Python cannot hold is replaced.
# Waits: another dispatcher's claim may hold the row for the moment in which it finds it taken, and skipping it would
# cost the event an attempt, and seconds.
_LOCK = """
SELECT o.event_id::text, o.attempts, o.type, o.done, o.delivery_id::text, e.tenant_id, e.reject_reason,
       CASE WHEN e.occurred_at BETWEEN '0001-01-01' AND '9999-12-31' THEN e.occurred_at
            ELSE o.inserted_at END AS occurred_at,
       coalesce(CASE jsonb_typeof(e.metadata -> 'provider') WHEN 'string' THEN e.metadata ->> 'provider' END,
                CASE jsonb_typeof(e.normalized_payload -> 'provider')
                     WHEN 'string' THEN e.normalized_payload ->> 'provider' END,
                d.provider) AS provider,
       d.provider_message_id AS message_id, d.recipient,
       CASE WHEN e.metadata ->> 'bounce' IN ('hard', 'soft') THEN e.metadata ->> 'bounce' END AS bounce,
       left(e.metadata ->> 'smtp_status', 100) AS smtp_status, pg_current_xact_id()::text AS xact_id
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[])) AS c (event_id, attempts)
  JOIN {schema}.mailglass_hook_outbox AS o ON o.event_id = c.event_id
  JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
  LEFT JOIN {schema}.mailglass_deliveries AS d ON d.id = o.delivery_id
 WHERE {is_claimed}
   FOR UPDATE OF o
""".replace("{is_claimed}", _IS_CLAIMED)

# Not the connection's own, if those are stricter; older servers have no limit for a whole transaction.
_LIMIT = """
SELECT name, setting, set_config(name, :milliseconds, true) FROM pg_settings
 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
   AND (setting::bigint = 0 OR setting::bigint > CAST(:milliseconds AS bigint))
"""

# Runs in the handler's scope and not in ours, so functions are named with their schema.
_NOTE = """
UPDATE {schema}.mailglass_hook_outbox
   SET done = pg_catalog.array_append(pg_catalog.array_remove(done, CAST(:handler AS text)), CAST(:handler AS text))
 WHERE event_id = CAST(:event_id AS uuid)
"""

# A handler that ran without an error and is not noted as done was rolled back: its own work, and its note with it. One
# that failed although it is noted has committed, and is tried again. In the transaction in which the handlers ran, if
# one of them may have ended it.
_SETTLE = """
UPDATE {schema}.mailglass_hook_outbox AS o
   SET done = ARRAY(SELECT d.name FROM unnest(o.done) WITH ORDINALITY AS d (name, place)
                     WHERE d.name <> ALL (CAST(c.failed AS text[])) ORDER BY d.place),
       error = coalesce(c.error, CASE WHEN NOT o.done @> CAST(c.ran AS text[]) THEN :rolled_back END),
       state = CASE WHEN c.error IS NULL AND o.done @> CAST(c.ran AS text[]) THEN 'dispatched'
                    WHEN o.attempts >= :most THEN 'dead' ELSE 'waiting' END,
       finished_at = CASE WHEN c.error IS NULL AND o.done @> CAST(c.ran AS text[]) OR o.attempts >= :most
                          THEN clock_timestamp()::timestamp END,
       next_at = CASE WHEN o.attempts >= :most THEN o.next_at
                      ELSE clock_timestamp()::timestamp
                           + make_interval(secs => (CAST(:delays AS float8[]))[o.attempts] * (1 + random() / 4)) END
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:ran AS text[]), CAST(:failed AS text[]),
              CAST(:errors AS text[])) AS c (event_id, attempts, ran, failed, error)
 WHERE o.event_id = c.event_id AND {is_claimed}
   AND (CAST(:xact_id AS text) IS NULL OR pg_current_xact_id()::text = :xact_id)
RETURNING o.event_id::text, o.state, o.done
""".replace("{is_claimed}", _IS_CLAIMED)

_GIVE_BACK = """
UPDATE {schema}.mailglass_hook_outbox AS o
   SET attempts = o.attempts - 1, error = NULL, next_at = clock_timestamp()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:attempts AS integer[])) AS c (event_id, attempts)
 WHERE o.event_id = c.event_id AND {is_claimed}
""".replace("{is_claimed}", _IS_CLAIMED)


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
    """A claimed row, locked, and what its handlers want to know of event and delivery."""

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
    xact_id: str


class Attempt(NamedTuple):
    """How an attempt ended: the handlers that ran without an error, those that failed, and the last error's class."""

    event_id: str
    attempts: int
    ran: tuple[str, ...]
    failed: tuple[str, ...] = ()
    error: str | None = None


class Settled(NamedTuple):
    """A row after an attempt: its state, and the handlers that are done with its event."""

    state: str
    done: list[str]


def add(tx: Transaction, events: Sequence[LinkedEvent]) -> None:
    """Give events, at least one, to handlers; an event is added once."""
    rows = [(event.event_id, event.delivery_id, event.type) for event in events]
    tx.execute(_ADD, columns(("event_ids", "delivery_ids", "types"), rows))


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


def lock(tx: Transaction, claims: Sequence[Claim]) -> list[Held]:
    """Lock claimed rows that are still this claim's."""
    return list(map(Held._make, tx.execute(_LOCK, _of(claims))))


def limit(tx: Transaction, milliseconds: int) -> dict[str, str]:
    """Limit what a statement and the transaction may take; return the settings that this changes, as they were."""
    rows = tx.execute(_LIMIT, {"milliseconds": str(milliseconds)})
    return {row.name: row.setting for row in rows}


def unlimit(tx: Transaction, before: Mapping[str, str]) -> None:
    """Give a transaction the limits back that `limit` has returned."""
    for name, setting in before.items():
        tx.execute("SELECT set_config(:name, :setting, true)", {"name": name, "setting": setting})


def note(tx: Transaction, event_id: str, handler: str) -> None:
    """Note that a handler is done with an event, which is locked."""
    tx.execute(_NOTE, {"event_id": event_id, "handler": handler})


def settle(tx: Transaction, attempts: Sequence[Attempt], xact_id: str | None = None) -> dict[str, Settled]:
    """Note how attempts, at least one, ended, and return each row that is changed, by its event.

    Nothing is changed if *xact_id* is given and is not the id of the current transaction.
    """
    names = ("event_ids", "attempts", "ran", "failed", "errors")
    parameters = columns(names, map(_settled, attempts)) | _ATTEMPTS
    parameters |= {"rolled_back": ROLLED_BACK, "xact_id": xact_id}
    return {event_id: Settled(state, done) for event_id, state, done in tx.execute(_SETTLE, parameters)}


def _settled(one: Attempt) -> tuple[str | None, ...]:
    return one.event_id, str(one.attempts), array_literal(one.ran), array_literal(one.failed), one.error


def give_back(tx: Transaction, claims: Sequence[Held]) -> None:
    """Take back the attempt of claimed rows that were not tried."""
    if claims:
        tx.execute(_GIVE_BACK, _of(claims))


def _of(claims: Sequence[Claim] | Sequence[Held]) -> dict[str, str]:
    return columns(("event_ids", "attempts"), [(claim.event_id, str(claim.attempts)) for claim in claims])
