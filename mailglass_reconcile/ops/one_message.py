"""The deliveries and the events of one message: those that are linked, and those still open."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.ops import orphans, verdicts
from mailglass_reconcile.ops.orphans import Filters
from mailglass_reconcile.rules.matching import spellings_of
from mailglass_reconcile.store.database import Database, array_literal

EVENTS = 20
"""At most so many of either kind: one id may name a hundred thousand deliveries."""
TIMEOUT_MS = 24_000

# A `reconciled` event stands for the orphan that it links.
_OF_DELIVERIES = """
SELECT coalesce(CASE WHEN e.type = 'reconciled'
                      AND e.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                 THEN CAST(substr(e.idempotency_key, 12) AS uuid) END, e.id)::text
  FROM unnest(CAST(:ids AS uuid[])) AS d (id)
 CROSS JOIN LATERAL (SELECT id, type, idempotency_key FROM {schema}.mailglass_events
                      WHERE delivery_id = d.id ORDER BY occurred_at LIMIT :events) AS e
 LIMIT :events
"""

_DELIVERIES = """
SELECT d.id::text
  FROM unnest(CAST(:ids AS text[])) AS c (id)
  JOIN {schema}.mailglass_deliveries AS d
    ON hashtextextended(d.provider_message_id, 0) = hashtextextended(c.id, 0) AND d.provider_message_id = c.id
 LIMIT :size
"""

_STATES = """
SELECT d.id::text, left(d.tenant_id, 1000), left(d.last_event_type, 512), to_json(d.last_event_at) #>> '{}' || 'Z',
       d.terminal, left(d.provider_message_id, 1000)
  FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS k (id, place)
  JOIN {schema}.mailglass_deliveries AS d ON d.id = k.id
 ORDER BY k.place
"""


class DeliveryState(NamedTuple):
    """A delivery as its projection has it; no address.

    Attributes:
        delivery_id: The delivery.
        tenant_id: Its tenant.
        type: The type of the event that it shows, such as `delivered`; None if it shows none.
        since: When that happened, in ISO 8601, UTC.
        final: Whether it has come to an end: delivered, bounced and so on.
        message_id: The provider's id of the message.
        verdict: What happened to it, in one sentence, without an address.
        command: The command that shows more; None if there is none.
    """

    delivery_id: str
    tenant_id: str
    type: str | None
    since: str | None
    final: bool
    message_id: str | None
    verdict: str = ""
    command: str | None = None


def states_of(database: Database, deliveries: Sequence[UUID]) -> list[DeliveryState]:
    """Return the states of deliveries, in their order; without those that are not there."""
    with database.reading(TIMEOUT_MS) as tx:
        found = [DeliveryState(*row) for row in tx.execute(_STATES, {"ids": array_literal(map(str, deliveries))})]
        of = verdicts.of(tx, [one.delivery_id for one in found])
    return [one._replace(verdict=of[one.delivery_id].sentence, command=of[one.delivery_id].command) for one in found]


def deliveries_of(database: Database, message_id: str) -> list[UUID]:
    """Return the deliveries that carry a message's id, in any spelling, at most 20."""
    parameters = {"ids": array_literal(sorted(spellings_of(message_id))), "size": EVENTS}
    with database.reading(TIMEOUT_MS) as tx:
        return [UUID(delivery_id) for delivery_id in tx.execute(_DELIVERIES, parameters).scalars()]


def events_of(database: Database, deliveries: Sequence[UUID], message_id: str | None) -> list[UUID]:
    """Return the events of some deliveries, and then the open orphans of a message, at most 20 of each kind.

    Without a *message_id*, no open orphan is looked for.
    """
    parameters = {"ids": array_literal(map(str, deliveries)), "events": EVENTS}
    with database.reading(TIMEOUT_MS) as tx:
        found = [*tx.execute(_OF_DELIVERIES, parameters).scalars()]
    if message_id:  # what has no keys yet is looked at too
        open_ones = orphans.judged_now(database, Filters(message_id=message_id))
        found += [one.event_id for one in islice(open_ones, EVENTS)]
    return [UUID(event_id) for event_id in dict.fromkeys(found)]
