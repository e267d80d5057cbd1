"""The message about an event and its delivery, which is published after the commit.

The projection of events onto a delivery is SQL: `mailglass_reconcile_project_v1` in
`alembic/versions/0001_statements.sql`.
"""

from __future__ import annotations

import json

from mailglass_reconcile.store.ledger import LinkedEvent

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def payload(event: LinkedEvent) -> str:
    """Return the JSON message about an event and its delivery: ids, type and time; never an address or a subject."""
    reconciled = event.reconciled_id is not None
    return _to_json(
        {
            "event": "delivery_updated",
            "delivery_id": event.delivery_id,
            "event_type": "reconciled" if reconciled else event.type,
            "meta": {
                "event_id": event.reconciled_id or event.event_id,
                **({"reconciled_from_event_id": event.event_id} if reconciled else {}),
                "type": event.type,
                "occurred_at": _zulu(event.occurred_at),
                "tenant_id": event.tenant_id,
            },
        }
    )


def _zulu(time: str) -> str:
    """Return a time in UTC with its `Z`; `infinity` and years before Christ stay as Postgres writes them."""
    return f"{time}Z" if time[-1].isdigit() else time


def message(event: LinkedEvent) -> tuple[str, str, str]:
    """Return what is published of a committed event: `(tenant id, delivery id, payload)`."""
    return event.tenant_id, event.delivery_id, payload(event)
