"""Storing sends: for each that is new, its first event and its delivery, in one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Kept, Transaction, array_literal
from mailglass_reconcile.store.deliveries import CREDIBLE
from mailglass_reconcile.store.ledger import Entry
from mailglass_reconcile.store.open_orphans import MAY_BE_OPEN
from mailglass_reconcile.store.schema import MADE_BY_MAILGLASS, made_by_parameters

# One row per provider and id is what a unique index allows; deliveries of an id that has several recipients have no
# provider. Sorted, so that two transactions wait for each other one way only. A delivery is stored as projecting its
# event would leave it. IN as a value and a scalar subquery, because the planner makes a join of an EXISTS, with what
# its statistics advise; num_nulls, because another index serves IS NULL and would read every delivery of the id.
# `status`, `idempotency_key` and `last_error` are left out: not every Mailglass has them.
STORE = Kept(
    "mailglass_reconcile_store_sends",
    "key text, delivery_id text, open boolean",
    """
WITH sent AS MATERIALIZED (
  SELECT s.*, {credible} AS reported_at
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
                CAST(:occurred_at AS timestamp[]), CAST(:keys AS text[]), CAST(:entries AS jsonb[]),
                CAST(:recipients AS text[]), CAST(:domains AS text[]), CAST(:message_ids AS text[]),
                CAST(:shared AS boolean[]), CAST(:terminal AS boolean[]))
         AS s (event_id, delivery_id, type, occurred_at, key, entry, recipient, domain, message_id, shared, terminal)
   CROSS JOIN LATERAL (SELECT s.occurred_at, now()::timestamp AS arrived_at) AS r
-- Whether something may be open for one of the message ids; then nothing is stored, unless it is wanted anyway.
), waiting AS MATERIALIZED (
  SELECT EXISTS (SELECT FROM sent AS s WHERE {may_be_open}) AS any_open
-- Once per key; what is left out was recorded before.
), appended AS (
  INSERT INTO {schema}.mailglass_events
         (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
  SELECT event_id, :tenant_id, delivery_id, type, occurred_at, key, entry, false, now()::timestamp
    FROM sent WHERE CAST(:anyway AS boolean) OR NOT (SELECT any_open FROM waiting) ORDER BY key COLLATE "C"
      ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
  RETURNING id
-- With the provider that its delivery gets: none if another delivery may carry the id already, or if Mailglass made the
-- table, whose ingest would find the delivery by it and keep the event to itself.
), new AS MATERIALIZED (
  SELECT s.*,
         CASE WHEN s.shared OR (SELECT {made_by_mailglass})
                   OR (SELECT true FROM {schema}.mailglass_deliveries AS d
                        WHERE hashtextextended(d.provider_message_id, 0) = hashtextextended(s.message_id, 0)
                          AND d.provider_message_id = s.message_id
                          AND (num_nulls(d.provider) = 1 OR d.provider = ANY (CAST(:spellings AS text[]))) LIMIT 1)
              THEN NULL ELSE CAST(:provider AS text) END AS provider
    FROM sent AS s WHERE (s.event_id IN (SELECT id FROM appended)) IS TRUE
), named AS (
  INSERT INTO {schema}.mailglass_deliveries
         (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
          last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
  SELECT delivery_id, :tenant_id, :mailable, :stream, recipient, domain, provider, message_id,
         type, reported_at, CASE WHEN type = 'dispatched' THEN reported_at END, terminal,
         CAST(:metadata AS jsonb), now()::timestamp, now()::timestamp
    FROM new WHERE provider IS NOT NULL ORDER BY message_id COLLATE "C"
      ON CONFLICT (provider, provider_message_id) WHERE provider_message_id IS NOT NULL DO NOTHING
  RETURNING id
), unnamed AS (
  INSERT INTO {schema}.mailglass_deliveries
         (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
          last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
  SELECT delivery_id, :tenant_id, :mailable, :stream, recipient, domain, message_id,
         type, reported_at, CASE WHEN type = 'dispatched' THEN reported_at END, terminal,
         CAST(:metadata AS jsonb), now()::timestamp, now()::timestamp
    FROM new WHERE delivery_id NOT IN (SELECT id FROM named)
-- Without a conflict target, which would need the right to read.
), handed_over AS (
  INSERT INTO {schema}.mailglass_hook_outbox (event_id, delivery_id, type, next_at, inserted_at)
  SELECT event_id, delivery_id, type, now()::timestamp, now()::timestamp
    FROM new WHERE type = ANY (ARRAY(SELECT type FROM {schema}.mailglass_handled_types)) ORDER BY event_id
      ON CONFLICT DO NOTHING
)
-- The deliveries of what was recorded before.
SELECT s.key, k.delivery_id::text, false AS open
  FROM sent AS s
  LEFT JOIN LATERAL (SELECT e.delivery_id FROM {schema}.mailglass_events AS e
                      WHERE e.idempotency_key = s.key OFFSET 0) AS k ON true
 WHERE s.event_id NOT IN (SELECT id FROM appended)
 UNION ALL
SELECT NULL, NULL, true FROM waiting WHERE any_open
""".replace("{credible}", CREDIBLE)
    .replace("{may_be_open}", MAY_BE_OPEN)
    .replace("{made_by_mailglass}", MADE_BY_MAILGLASS),
)

# For what another transaction committed while the statement above waited for it.
_DELIVERIES_OF_KEYS = """
SELECT k.key, e.delivery_id::text
  FROM unnest(CAST(:keys AS text[])) AS k (key)
  JOIN {schema}.mailglass_events AS e ON e.idempotency_key = k.key
"""


class Campaign(NamedTuple):
    """What the deliveries of one call have in common; `spellings` are those of the provider, its own one first."""

    tenant_id: str
    spellings: tuple[str, ...]
    mailable: str
    stream: str
    metadata: str


class New(NamedTuple):
    """A delivery to be stored, and its first event, which names it.

    `shared` if its message id has other recipients in the same call; `terminal` if its event's type is.
    """

    entry: Entry
    delivery_id: str
    recipient: str
    message_id: str | None
    shared: bool
    terminal: bool


class Stored(NamedTuple):
    """What storing found: the deliveries of what was recorded before, by key; and whether events may wait for one."""

    known: Mapping[str, str]
    may_be_open: bool


def store(tx: Transaction, campaign: Campaign, sent: Sequence[New]) -> Stored:
    """Store what is new of *sent*, each delivery with the projection of its event, and hand the events to handlers.

    If no event may wait for one of the deliveries, it is the last statement of the block.
    """
    parameters = {
        "tenant_id": campaign.tenant_id,
        "mailable": campaign.mailable,
        "stream": campaign.stream,
        "metadata": campaign.metadata,
        "spellings": array_literal(campaign.spellings),
        "provider": campaign.spellings[0],
        "event_ids": array_literal(one.entry.id for one in sent),
        "delivery_ids": array_literal(one.delivery_id for one in sent),
        "types": array_literal(one.entry.type for one in sent),
        "occurred_at": array_literal(one.entry.occurred_at for one in sent),
        "keys": array_literal(one.entry.idempotency_key for one in sent),
        "entries": array_literal(json.dumps(one.entry.metadata) for one in sent),
        "recipients": array_literal(one.recipient for one in sent),
        "domains": array_literal(one.recipient.rpartition("@")[2].lower() for one in sent),
        "message_ids": array_literal(one.message_id for one in sent),
        "shared": array_literal(str(one.shared) for one in sent),
        "terminal": array_literal(str(one.terminal) for one in sent),
        "anyway": "false",
        **made_by_parameters(tx),
    }
    rows = tx.call(STORE, parameters, last=True)
    may_be_open = any(is_open for _, _, is_open in rows)
    if may_be_open:
        rows = tx.call(STORE, {**parameters, "anyway": "true"})
    known = {key: delivery_id for key, delivery_id, is_open in rows if not is_open}
    unseen = [key for key, delivery_id in known.items() if delivery_id is None]
    if unseen:
        known |= dict(map(tuple, tx.execute(_DELIVERIES_OF_KEYS, {"keys": array_literal(unseen)})))
    return Stored(known, may_be_open)
