"""The events of one message: those still open, and those of the deliveries that carry its id."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops.listed import Filters, spellings
from mailglass_reconcile.ops.page import page
from mailglass_reconcile.store.model import array_literal
from mailglass_reconcile.store.reading import reading

EVENTS = 20
"""At most so many of either kind: one id may name a hundred thousand deliveries."""

# A `reconciled` event stands for the orphan that it links.
_OF_DELIVERIES = """
SELECT CASE WHEN e.type = 'reconciled' AND e.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN substr(e.idempotency_key, 12) ELSE e.id::text END
  FROM unnest(CAST(:ids AS text[])) AS c (id)
 CROSS JOIN LATERAL (SELECT id FROM {schema}.mailglass_deliveries
                      WHERE provider_message_id = c.id LIMIT :events) AS d
 CROSS JOIN LATERAL (SELECT id, type, idempotency_key FROM {schema}.mailglass_events
                      WHERE delivery_id = d.id ORDER BY occurred_at LIMIT :events) AS e
 LIMIT :events
"""


_DELIVERIES = """
SELECT id::text FROM {schema}.mailglass_deliveries
 WHERE provider_message_id = ANY (CAST(:ids AS text[])) AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
 LIMIT :size
"""


def deliveries_of(engine: sa.Engine, message_id: str, tenant_id: str | None = None) -> list[UUID]:
    """Return the deliveries that carry a message's id, in any spelling, at most 20; None is all tenants.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    parameters = {"ids": array_literal(sorted(spellings(message_id))), "tenant_id": tenant_id, "size": EVENTS}
    with reading(engine, runtime.get_settings(), probes_only=True) as tx:
        return [UUID(delivery_id) for delivery_id in tx.execute(_DELIVERIES, parameters).scalars()]


def events_of(engine: sa.Engine, message_id: str) -> list[UUID]:
    """Return the events of a message, by its id in any spelling: the open orphans first, at most 20 of each kind.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    found = _open_ones(engine, Filters(message_id=message_id))
    parameters = {"ids": array_literal(sorted(spellings(message_id))), "events": EVENTS}
    with reading(engine, runtime.get_settings(), probes_only=True) as tx:
        found += tx.execute(_OF_DELIVERIES, parameters).scalars().all()
    return [UUID(event_id) for event_id in dict.fromkeys(found)]


def _open_ones(engine: sa.Engine, filters: Filters) -> list[str]:
    """Return the first open orphans that pass, on however many pages they are: those without keys are all looked at."""
    found: list[str] = []
    after: str | None = None
    while True:
        one = page(engine, filters, limit=EVENTS - len(found), after=after)
        found += [orphan.event_id for orphan in one.orphans]
        after = one.after
        if after is None or len(found) == EVENTS:
            return found
