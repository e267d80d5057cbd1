"""The table of open orphans: its rows as everything else reads them, and how they close.

A trigger on the ledger adds the rows. What selects orphans (a sweep's window, a list, a writer's message ids) yields
event ids; `read` turns them into rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.rules.states import MatchState
from mailglass_reconcile.store.database import (
    Function,
    Reading,
    SessionTransaction,
    Transaction,
    array_literal,
    text_or_none,
)

MAX_TENANT_LENGTH = 1_000
"""Orphans of a tenant with a longer name are not in the table: such names could exhaust a sweep's memory."""

# OFFSET 0, so that each row is probed for; one without keys has no ids.
_READ = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.state, o.provider,
       CASE WHEN o.ids > 0
            THEN ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
                        WHERE i.event_id = o.event_id ORDER BY i.position) END AS ids,
       o.recipient, o.rank, o.recipient_lost
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
 CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = k.id OFFSET 0) AS o
"""

# What was pruned has neither keys nor a state.
_READ_EXPIRED = """
SELECT e.id::text, e.tenant_id, least(e.inserted_at, now()::timestamp)::text
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE e.needs_reconciliation AND e.delivery_id IS NULL AND length(e.tenant_id) <= :max_tenant_length
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id))
"""

# No more of one id than asked for, because a hundred thousand may be open for it; the recipient first, or those of
# others would fill that number.
_WITH_MESSAGE_IDS = """
SELECT DISTINCT i.event_id::text
  FROM unnest(CAST(:message_ids AS text[])) AS c (id)
 CROSS JOIN LATERAL (
         SELECT k.event_id
           FROM {schema}.mailglass_open_orphan_ids AS k
          CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id OFFSET 0) AS o
          WHERE k.candidate_id = c.id AND o.tenant_id = :tenant_id AND o.refused = 0
            AND (CAST(:recipients AS text[]) IS NULL OR o.recipient IS NULL
                 OR o.recipient = ANY (CAST(:recipients AS text[])))
            AND o.arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
          LIMIT :size) AS i
 LIMIT :size
"""

AFTER_COMMIT = Function("mailglass_reconcile_after_commit_v1", ("recorded_ids", "message_ids", "event_ids"))

# What an orphan waits for since when: its grace, or its delivery if that came later.
_LINKABLE_SINCE = """
SELECT min(greatest(o.arrived_at + make_interval(secs => :grace_seconds),
                    least(d.inserted_at, now()::timestamp)))::text
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS k (event_id, delivery_id)
 CROSS JOIN LATERAL (SELECT arrived_at FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id) AS o
 CROSS JOIN LATERAL (SELECT inserted_at FROM {schema}.mailglass_deliveries WHERE id = k.delivery_id) AS d
"""

# Retention deletes expired orphans only if no session holds them. A statement of its own, so that the next one sees
# what has been deleted.
_HOLD_EXPIRED = "SELECT {schema}.mailglass_reconcile_hold_expired_v1()"

# Only for a moment: the prune removes again what is not linked then, and linking closes what was linked before.
_REOPEN = """
INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
SELECT e.id, e.tenant_id, least(e.inserted_at, now()::timestamp)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
    ON CONFLICT DO NOTHING
"""

_MARK_FAILED = """
UPDATE {schema}.mailglass_open_orphans AS o SET refused = least(o.refused + 1, 32767)
  FROM (SELECT h.event_id FROM {schema}.mailglass_open_orphans AS h
         WHERE h.event_id = ANY (CAST(:event_ids AS uuid[])) FOR UPDATE SKIP LOCKED) AS held
 WHERE o.event_id = held.event_id
"""

# Each is looked up by its id: with statistics from a time when few had a state, a join would begin there. What another
# session has locked, or has stored other keys with, keeps its state until the next sweep.
_STORE_STATES = """
UPDATE {schema}.mailglass_open_orphans AS o SET state = held.state
  FROM (SELECT k.event_id, k.state
          FROM unnest(CAST(:event_ids AS uuid[]), CAST(:states AS text[]), CAST(:ranks AS bigint[]))
               AS k (event_id, state, rank)
         CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphans
                              WHERE event_id = k.event_id AND rank IS NOT DISTINCT FROM k.rank
                                FOR UPDATE SKIP LOCKED) AS h) AS held
 WHERE o.event_id = held.event_id
"""


NO_KEYS = Keys(None, (), None)


class Cursor(NamedTuple):
    """A cursor in the order of arrival."""

    arrived_at: str
    event_id: str


LAST = Cursor("infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff")


class OrphanRow(NamedTuple):
    """An open orphan as its own row has it.

    Times and ids are strings as Postgres writes them: the ledger may hold times that no Python datetime can. Without
    stored keys, `keys` has what the event's writer knew. `state` is what a sweep or the writer has stored; None if
    it was not checked yet.
    """

    event_id: str
    tenant_id: str
    arrived_at: str
    keys: Keys
    state: MatchState | None = None


def read(reading: Reading, event_ids: Iterable[str]) -> list[OrphanRow]:
    """Return the open orphans among *event_ids*, in about their order, with their keys as stored, current or not."""
    parameters = {"event_ids": array_literal(event_ids)}
    with reading() as tx:
        rows = tx.execute(_READ, parameters).all()
    return [
        OrphanRow(
            event_id,
            tenant_id,
            arrived_at,
            Keys(provider, tuple(ids or ()), recipient, rank, lost),
            state,
        )
        for event_id, tenant_id, arrived_at, state, provider, ids, recipient, rank, lost in rows
    ]


def read_of_any_age(reading: Reading, event_ids: Collection[str]) -> list[OrphanRow]:
    """Return the orphans among *event_ids* that are open, or that a prune has removed as expired."""
    orphans = read(reading, event_ids)
    missing = {str(UUID(event_id)) for event_id in event_ids} - {orphan.event_id for orphan in orphans}
    if missing:
        parameters = {"event_ids": array_literal(missing), "max_tenant_length": MAX_TENANT_LENGTH}
        with reading() as tx:
            rows = tx.execute(_READ_EXPIRED, parameters).all()
        orphans += [OrphanRow(event_id, tenant_id, arrived_at, NO_KEYS) for event_id, tenant_id, arrived_at in rows]
    return orphans


def with_message_ids(
    tx: Transaction, tenant_id: str, message_ids: Collection[str], recipients: Collection[str] | None = None
) -> list[str]:
    """Return a tenant's open orphans that have one of *message_ids* among their stored ids; at most a batch.

    Orphans in their grace are included; expired ones, and those that the database has refused before, are not.

    Args:
        tx: A transaction.
        tenant_id: The tenant.
        message_ids: Message ids as deliveries carry them.
        recipients: Only of these recipients, normalised, or of an unknown one; None is any.
    """
    parameters = {
        "message_ids": array_literal(message_ids),
        "tenant_id": tenant_id,
        "recipients": None if recipients is None else array_literal(recipients),
        "max_age_minutes": tx.settings.max_age_minutes,
        "size": tx.settings.batch_size,
    }
    return list(tx.execute(_WITH_MESSAGE_IDS, parameters).scalars())


def after_commit(
    tx: SessionTransaction, recorded_ids: Collection[str], message_ids: Collection[str], event_ids: Collection[str]
) -> tuple[set[str], bool]:
    """Read what is visible after the commits of writers, with one statement.

    Returns:
        The *recorded_ids* that the ledger has; and True if an orphan may be open for *message_ids*, or a delivery
        stored for the ids of the open *event_ids*.
    """
    parameters = {
        "recorded_ids": array_literal(recorded_ids),
        "message_ids": array_literal(message_ids),
        "event_ids": array_literal(event_ids),
    }
    ((present, may_match),) = tx.call(AFTER_COMMIT, parameters)
    return set(present), bool(may_match)


def linkable_since(tx: Transaction, pairs: Sequence[tuple[str, str]]) -> str | None:
    """Return since when, in UTC, the first of *pairs* of orphan and delivery that is still open could be linked."""
    parameters = {
        "event_ids": array_literal(event_id for event_id, _ in pairs),
        "delivery_ids": array_literal(delivery_id for _, delivery_id in pairs),
        "grace_seconds": tx.settings.grace_seconds,
    }
    since: str | None = tx.execute(_LINKABLE_SINCE, parameters).scalar_one()
    return since


def mark_failed(tx: Transaction, event_ids: Collection[str]) -> None:
    """Note that the database refused to read or link orphans: later sweeps check them last."""
    tx.execute(_MARK_FAILED, {"event_ids": array_literal(event_ids)})


def store_states(tx: Transaction, states: Mapping[str, tuple[str, int | None]]) -> None:
    """Store states, each with the rank of the keys that have led to it: it is left out if others are stored by now."""
    parameters = {
        "event_ids": array_literal(states),
        "states": array_literal(state for state, _ in states.values()),
        "ranks": array_literal(text_or_none(rank) for _, rank in states.values()),
    }
    tx.execute(_STORE_STATES, parameters)


def reopen(tx: Transaction, event_ids: Collection[str]) -> None:
    """Put expired orphans back, which the caller has read, so that a batch can claim them; retention waits for it.

    The transaction must be READ COMMITTED: another one may have a snapshot in which a deleted orphan is still there.
    """
    tx.execute(_HOLD_EXPIRED)
    tx.execute(_REOPEN, {"event_ids": array_literal(event_ids)})
