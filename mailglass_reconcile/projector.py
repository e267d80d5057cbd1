"""The pub/sub announcement after a commit: the message about an event and its delivery.

The projection of events onto a delivery is SQL: `mailglass_reconcile_project_v1` in
`alembic/schema/projection.sql`.
"""

from __future__ import annotations

import json
from functools import lru_cache

from mailglass_reconcile.store.tables.ledger import ClaimedEvent

# Types and tenants are few, and ids need no quoting: an encoder costs three times as much as a template.
_to_json = lru_cache(maxsize=1_000)(json.dumps)
_LINKED = (
    '{"event":"delivery_updated","delivery_id":"%s","event_type":"reconciled","meta":{"event_id":"%s",'
    '"reconciled_from_event_id":"%s","type":%s,"occurred_at":"%s","tenant_id":%s}}'
)
_ATTACHED = (
    '{"event":"delivery_updated","delivery_id":"%s","event_type":%s,"meta":{"event_id":"%s",'
    '"type":%s,"occurred_at":"%s","tenant_id":%s}}'
)


def format_payload(event: ClaimedEvent) -> str:
    """Return the JSON payload of a broadcast: ids, type and time, never an address or a subject."""
    type_, at, tenant_id = _to_json(event.type), _with_utc_suffix(event.occurred_at), _to_json(event.tenant_id)
    if event.reconciled_id is None:
        return _ATTACHED % (event.delivery_id, type_, event.event_id, type_, at, tenant_id)
    return _LINKED % (event.delivery_id, event.reconciled_id, event.event_id, type_, at, tenant_id)


def _with_utc_suffix(time: str) -> str:
    """Return a time in UTC with `Z` appended; `infinity` and years BC stay as Postgres writes them."""
    return f"{time}Z" if time[-1].isdigit() else time


def make_message(event: ClaimedEvent) -> tuple[str, str, str]:
    """Return the broadcast of a committed event: `(tenant id, delivery id, payload)`."""
    return event.tenant_id, event.delivery_id, format_payload(event)
