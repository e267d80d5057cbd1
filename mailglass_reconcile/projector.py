"""What an event does to its delivery's columns, and the message about it after the commit.

The result does not depend on the order or the batches in which events are projected: each column is a maximum,
a minimum or an OR over the events, and over what the row itself holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from mailglass_reconcile.rules.event_types import OWN_TYPES, PROVIDER_TYPES
from mailglass_reconcile.store import handled, outbox
from mailglass_reconcile.store.database import Transaction, array_literal
from mailglass_reconcile.store.deliveries import CREDIBLE, NEXT_VERSION
from mailglass_reconcile.store.ledger import LinkedEvent

Outcome = TypeVar("Outcome")

TERMINAL_TYPES = ("delivered", "bounced", "complained", "rejected", "failed", "suppressed")

_PROJECT = """
WITH report AS (
  SELECT r.delivery_id, r.type, array_position(CAST(:standing AS text[]), r.type) AS standing,
         {credible} AS occurred_at
    FROM unnest(CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]), CAST(:occurred_at AS timestamp[]),
                CAST(:arrived_at AS timestamp[])) AS r (delivery_id, type, occurred_at, arrived_at)
   WHERE r.type = ANY (CAST(:standing AS text[]))
), summary AS (
  SELECT delivery_id,
         (array_agg(standing ORDER BY standing > :own DESC, occurred_at DESC, standing DESC))[1] AS standing,
         (array_agg(occurred_at ORDER BY standing > :own DESC, occurred_at DESC, standing DESC))[1] AS occurred_at,
         min(occurred_at) FILTER (WHERE type = 'dispatched') AS dispatched_at,
         min(occurred_at) FILTER (WHERE type = 'delivered') AS delivered_at,
         min(occurred_at) FILTER (WHERE type = 'bounced') AS bounced_at,
         min(occurred_at) FILTER (WHERE type = 'complained') AS complained_at,
         min(occurred_at) FILTER (WHERE type = 'suppressed') AS suppressed_at,
         bool_or(type = ANY (CAST(:terminal AS text[]))) AS terminal
    FROM report GROUP BY delivery_id
), projected AS (
  SELECT d.id, (CAST(:standing AS text[]))[s.standing] AS last_event_type, s.occurred_at AS last_event_at,
         (s.standing > :own, s.occurred_at, s.standing)
           > (held.standing > :own, d.last_event_at, held.standing) AS pointer,
         d.terminal OR s.terminal AS terminal,
         least(d.dispatched_at, s.dispatched_at) AS dispatched_at,
         least(d.delivered_at, s.delivered_at) AS delivered_at,
         least(d.bounced_at, s.bounced_at) AS bounced_at,
         least(d.complained_at, s.complained_at) AS complained_at,
         least(d.suppressed_at, s.suppressed_at) AS suppressed_at
    FROM summary AS s
    JOIN {schema}.mailglass_deliveries AS d ON d.id = s.delivery_id
   CROSS JOIN LATERAL (
           SELECT coalesce(array_position(CAST(:standing AS text[]), d.last_event_type), 0) AS standing) AS held
)
UPDATE {schema}.mailglass_deliveries AS d
   SET last_event_type = CASE WHEN p.pointer THEN p.last_event_type ELSE d.last_event_type END,
       last_event_at = CASE WHEN p.pointer THEN p.last_event_at ELSE d.last_event_at END,
       terminal = p.terminal, dispatched_at = p.dispatched_at, delivered_at = p.delivered_at,
       bounced_at = p.bounced_at, complained_at = p.complained_at, suppressed_at = p.suppressed_at,
       {next_version},
       updated_at = now()::timestamp
  FROM projected AS p
 WHERE d.id = p.id
   AND (p.pointer
        OR (d.terminal, d.dispatched_at, d.delivered_at, d.bounced_at, d.complained_at, d.suppressed_at)
           IS DISTINCT FROM
           (p.terminal, p.dispatched_at, p.delivered_at, p.bounced_at, p.complained_at, p.suppressed_at))
""".replace("{next_version}", NEXT_VERSION).replace("{credible}", CREDIBLE)

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


def project(tx: Transaction, events: Sequence[LinkedEvent]) -> int:
    """Bring deliveries up to date with *events*, and return how many rows changed.

    Each delivery's row should be locked by the caller's transaction. `lock_version` and `updated_at` move when,
    and only when, something else did. A type outside `OWN_TYPES` and `PROVIDER_TYPES` moves nothing. What handlers
    run on is put into their outbox here, because everything that reaches a delivery comes this way.
    """
    outbox.add(tx, [event for event in events if event.type in tx.hook_types])
    handled.warn_of_left_out(tx, {event.type for event in events} - tx.hook_types)
    return tx.execute(_PROJECT, parameters(events)).rowcount


def parameters(events: Sequence[LinkedEvent]) -> dict[str, object]:
    """Return *events* as the parameters of a statement that projects them."""
    return {
        "delivery_ids": array_literal(event.delivery_id for event in events),
        "types": array_literal(event.type for event in events),
        "occurred_at": array_literal(event.occurred_at for event in events),
        "arrived_at": array_literal(event.arrived_at for event in events),
        "standing": [*OWN_TYPES, *PROVIDER_TYPES],
        "own": len(OWN_TYPES),
        "terminal": list(TERMINAL_TYPES),
    }


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


def broadcast(events: Sequence[LinkedEvent], publish: Callable[[Sequence[tuple[str, str, str]]], Outcome]) -> Outcome:
    """Publish committed *events*: hand *publish* a `(tenant id, delivery id, payload)` for each, in order."""
    return publish([(event.tenant_id, event.delivery_id, payload(event)) for event in events])
