"""Why one event is linked or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.store.model import LAST_EVENT, Keys, Place, Slice
from mailglass_reconcile.sweep import keys, match
from mailglass_reconcile.sweep.match import Decision

_LEDGER_ROW = """
SELECT e.id::text, e.tenant_id, e.type, e.delivery_id::text, e.needs_reconciliation,
       r.id::text AS reconciled_by, r.delivery_id::text AS linked_to, o.event_id IS NOT NULL AS open,
       (o.arrived_at - interval '1 microsecond')::text AS before, o.arrived_at::text,
       coalesce(o.arrived_at, e.inserted_at) <= now()::timestamp - make_interval(mins => :max_age_minutes) AS expired,
       coalesce(o.arrived_at, e.inserted_at) > now()::timestamp - make_interval(secs => :grace_seconds) AS in_grace,
       o.provider, o.candidate_ids, o.recipient
  FROM {schema}.mailglass_events AS e
  LEFT JOIN {schema}.mailglass_events AS r ON r.idempotency_key = 'reconciled:' || e.id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = e.id
 WHERE e.id = CAST(:event_id AS uuid)
"""

SENTENCES = {
    "matched": "its delivery is there: the next sweep links it",
    "unmatched": "no delivery has any of its ids yet",
    "unmatchable": "it has no provider, or no id that can be used",
    "ambiguous": "its id names several deliveries, and it does not say which recipient it is about",
    "tenant_mismatch": (
        "its id names deliveries of another tenant only: if the tenant is `default`, Mailglass lacks"
        " resolve_webhook_tenant"
    ),
    "recipient_mismatch": "its id names deliveries of other recipients only",
    "waiting": "it arrived within the grace: a later sweep looks at it",
    "expired": "it is older than the maximum age, and no sweep looks at it any more",
    "linked": "it is linked",
    "settled": "an event with its key settled it, and names no delivery",
    "no_orphan": "it is no orphan: it was stored with its delivery, or asks for none",
    "missing": "it is an orphan that the open set lacks: `mailglass-reconcile prune` mends that",
    "unknown": "the ledger has no event with this id",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event is linked or not.

    Attributes:
        event_id: The event.
        state: One of the states of the sweep, or `linked`, `waiting`, `expired`, `settled`, `missing`,
            `no_orphan`, `unknown`.
        sentence: The same for a person.
        tenant_id: The event's tenant.
        delivery_id: What it is, or would be, linked to.
        candidate_ids: The ids tried, in order; known while it is open.
        named: The deliveries that they name.
    """

    event_id: str
    state: str
    sentence: str
    tenant_id: str | None = None
    delivery_id: str | None = None
    candidate_ids: tuple[str, ...] = ()
    named: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `explain --json` prints them."""
        return asdict(self)


def explain(engine: sa.Engine, event_id: UUID) -> Explanation:
    """Say why an event is linked or not, in a read-only transaction.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    bounds = {
        "event_id": str(event_id),
        "max_age_minutes": settings.max_age_minutes,
        "grace_seconds": settings.grace_seconds,
    }
    with database_errors(), connect(engine) as connection, transaction(connection, settings, read_only=True) as tx:
        row = tx.execute(_LEDGER_ROW, bounds).one_or_none()
        if row is None:
            return Explanation(str(event_id), "unknown", SENTENCES["unknown"])
        settled = _settled_state(row)
        if settled:
            return _explanation(row, settled, row.linked_to or row.delivery_id)
        wanted = _open_keys(tx, row)
        decision = match.decide(tx, row.tenant_id, wanted)
    state = "expired" if row.expired else "waiting" if row.in_grace else decision.state
    return _explanation(row, state, decision.delivery_id, wanted.candidate_ids, decision)


def _settled_state(row: sa.Row[Any]) -> str | None:
    if not row.needs_reconciliation or row.delivery_id:
        return "no_orphan"
    if row.reconciled_by:
        return "linked" if row.linked_to else "settled"
    if not row.open:
        return "expired" if row.expired else "missing"
    return None


def _open_keys(tx: Transaction, row: sa.Row[Any]) -> Keys:
    if row.candidate_ids is not None:
        return Keys(row.provider, tuple(row.candidate_ids), row.recipient)
    piece = Slice(Place(row.before, LAST_EVENT), Place(row.arrived_at, row.id), row.tenant_id)
    values = open_orphans.read_values(tx, piece, keys.reads())
    return next(keys.keys_of(value) for value in values if value.event_id == row.id)


def _explanation(
    row: sa.Row[Any],
    state: str,
    delivery_id: str | None,
    candidate_ids: tuple[str, ...] = (),
    decision: Decision | None = None,
) -> Explanation:
    named = tuple(each._asdict() for each in decision.named) if decision else ()
    return Explanation(row.id, state, SENTENCES[state], row.tenant_id, delivery_id, candidate_ids, named)
