"""Why one event is linked or not."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.store.model import Keys, Named, Open
from mailglass_reconcile.sweep import examination, match
from mailglass_reconcile.sweep.match import Decision

logger = logging.getLogger(__name__)

_LEDGER_ROW = """
SELECT e.id::text, e.tenant_id, e.type, e.delivery_id::text, e.needs_reconciliation,
       r.id::text AS reconciled_by, r.delivery_id::text AS linked_to, o.event_id IS NOT NULL AS open,
       o.arrived_at::text, o.provider, o.recipient, o.rule, o.recipient_lost, o.refused,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = e.id ORDER BY k.position) AS ids,
       coalesce(o.arrived_at, e.inserted_at) <= now()::timestamp - make_interval(mins => :max_age_minutes) AS expired,
       coalesce(o.arrived_at, e.inserted_at) > now()::timestamp - make_interval(secs => :grace_seconds) AS in_grace
  FROM {schema}.mailglass_events AS e
  LEFT JOIN {schema}.mailglass_events AS r
    ON r.idempotency_key = 'reconciled:' || e.id AND r.type = 'reconciled' AND r.tenant_id = e.tenant_id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = e.id
 WHERE e.id = CAST(:event_id AS uuid)
"""

SENTENCES = {
    "matched": "its delivery is there; the next sweep links it",
    "unmatched": "no delivery has any of its ids yet",
    "unmatchable": "it has no provider, or no id that can be used",
    "ambiguous": "its id names several deliveries, and it does not say which recipient it is about",
    "tenant_mismatch": (
        "its id names only another tenant's deliveries; if its tenant is `default`, perhaps Mailglass lacks"
        " resolve_webhook_tenant"
    ),
    "recipient_mismatch": "its id names only deliveries to other recipients",
    "waiting": "it is still in its grace period; a later sweep looks at it",
    "expired": "it is older than the maximum age, so no sweep looks at it any more",
    "linked": "it is linked",
    "settled": "a `reconciled` event without a delivery settled it",
    "no_orphan": "it is no orphan: it was stored with its delivery, or needs none",
    "missing": "it is an orphan, but the table of open orphans lacks it: run `mailglass-reconcile prune`",
    "unknown": "the ledger has no event with this id",
}

LOST = (
    "it was about one recipient, whose address is not known any more, so no delivery is chosen: the address is kept"
    " only while an orphan is open"
)

NO_KEYS = Keys(None, (), None)

MADE_UP = ("mailjet", "sparkpost")
MADE_UP_ID = (
    "if Mailglass sent the message, none will: for this provider its delivery's id is one that Mailglass made up"
    " (mailglass-synthetic-…)"
)


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
    runtime.load_imports()
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
        raw_webhooks = open_orphans.survey(tx, settings).raw_webhooks
        wanted = _keys(tx, row, raw_webhooks=raw_webhooks)
        decision = match.decide(tx, row.tenant_id, wanted)
    state = "expired" if row.expired else "waiting" if row.in_grace else decision.state
    return _explanation(row, state, decision.delivery_id, wanted, decision)


def _settled_state(row: sa.Row[Any]) -> str | None:
    if not row.needs_reconciliation or row.delivery_id:
        return "no_orphan"
    if row.reconciled_by:
        return "linked" if row.linked_to else "settled"
    if not row.open:
        return "expired" if row.expired else "missing"
    return None


def _keys(tx: Transaction, row: sa.Row[Any], *, raw_webhooks: bool) -> Keys:
    """Return the keys of an orphan, open or not, as a sweep would have them."""
    kept = Keys(row.provider, tuple(row.ids), row.recipient, row.rule, bool(row.recipient_lost))
    if kept.candidate_ids:
        return kept
    orphan = Open(row.id, row.tenant_id, row.arrived_at or "", kept)
    return examination.keys_of_events(tx, [orphan], raw_webhooks=raw_webhooks, complain=logger.error)[row.id]


def _explanation(
    row: sa.Row[Any],
    state: str,
    delivery_id: str | None,
    wanted: Keys = NO_KEYS,
    decision: Decision | None = None,
) -> Explanation:
    named = tuple(_deciding(each, row.tenant_id) for each in decision.named) if decision else ()
    sentence = SENTENCES[state]
    if state == match.AMBIGUOUS and wanted.lost:
        sentence = LOST
    if state == match.UNMATCHED and wanted.provider in MADE_UP:
        sentence = f"{sentence}; {MADE_UP_ID}"
    return Explanation(row.id, state, sentence, row.tenant_id, delivery_id, wanted.candidate_ids, named)


def _deciding(delivery: Named, tenant_id: str) -> dict[str, Any]:
    """Return what may be shown of a delivery: no address."""
    known = delivery._asdict()
    del known["recipient"]
    return {**known, "own": delivery.tenant_id == tenant_id}
