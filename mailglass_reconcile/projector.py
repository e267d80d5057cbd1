"""What an event does to its delivery's columns, and the message about it after the commit.

The result does not depend on the order or the batches in which events are projected: each column is a maximum,
a minimum or an OR over the events, and over what the row itself holds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from mailglass_reconcile.store import projection
from mailglass_reconcile.store.database import Transaction, array_literal, columns
from mailglass_reconcile.store.ledger import Entry, LinkedEvent
from mailglass_reconcile.store.stored_keys import Known

TERMINAL_TYPES = ("delivered", "bounced", "complained", "rejected", "failed", "suppressed")

_LOCK = """
SELECT id::text FROM {schema}.mailglass_deliveries
 WHERE id = ANY (CAST(:delivery_ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
"""

NOW = "now"
"""As a report's arrival: Postgres reads it as the time at which the transaction began."""


def lock(tx: Transaction, delivery_ids: Collection[str]) -> set[str]:
    """Lock deliveries for the caller's transaction, in the order of their ids, and return those that are there."""
    if not delivery_ids:
        return set()
    return set(tx.execute(_LOCK, {"delivery_ids": array_literal(delivery_ids)}).scalars())


def append_webhook(tx: Transaction, entries: Sequence[Entry], known: Sequence[Known]) -> dict[str, LinkedEvent | None]:
    """Append a webhook's events, each with its delivery or as an orphan; project and hand over what is attached.

    Orphans are stored with the keys and states that are *known* of them. What is new is returned by id: with its
    delivery, or None for an orphan.
    """
    events = list(map(_as_json, entries, known))
    attaches = any(entry.delivery_id for entry in entries)
    statement = projection.APPEND_AND_PROJECT if attaches else projection.APPEND
    delivery_ids = dict(tx.call(statement, {"events": json.dumps(events)}, last=True))
    return {entry.id: _attached(entry, delivery_ids[entry.id]) for entry in entries if entry.id in delivery_ids}


def _as_json(entry: Entry, known: Known) -> dict[str, Any]:
    keys = known.keys
    return {
        **entry._asdict(),
        "provider": keys.provider,
        "recipient": keys.recipient,
        "rule": keys.rule,
        "ids": keys.candidate_ids,
        "lost": keys.lost,
        "state": known.state,
        "standing": projection.STANDING.get(entry.type),
        "terminal": entry.type in TERMINAL_TYPES,
    }


def _attached(entry: Entry, delivery_id: str | None) -> LinkedEvent | None:
    if delivery_id is None:
        return None
    return LinkedEvent(None, entry.id, delivery_id, entry.tenant_id, entry.type, entry.occurred_at, arrived_at=NOW)


def project(tx: Transaction, events: Sequence[LinkedEvent]) -> int:
    """Bring deliveries up to date with *events*, hand these to handlers, and return how many deliveries changed.

    Each delivery's row should be locked by the caller's transaction. `lock_version` and `updated_at` move when,
    and only when, something else did. A type outside `OWN_TYPES` and `PROVIDER_TYPES` moves nothing.
    """
    if not events:
        return 0
    return tx.execute(projection.PROJECT, columns(_COLUMNS, map(_row, events))).rowcount


_COLUMNS = ("event_ids", "delivery_ids", "types", "occurred_at", "arrived_at", "standings", "terminal")


def _row(event: LinkedEvent) -> tuple[str | None, ...]:
    standing = str(projection.STANDING[event.type]) if event.type in projection.STANDING else None
    terminal = str(event.type in TERMINAL_TYPES)
    return event.event_id, event.delivery_id, event.type, event.occurred_at, event.arrived_at, standing, terminal


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
