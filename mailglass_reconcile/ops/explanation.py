"""Why one event is linked or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import origins
from mailglass_reconcile.ops.explained import Explanation
from mailglass_reconcile.ops.origins import Origins
from mailglass_reconcile.rules import addresses, providers, states
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.rules.states import EventState
from mailglass_reconcile.store import eligible, runs
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Named, Open
from mailglass_reconcile.store.reading import reading
from mailglass_reconcile.store.runs import RunAt
from mailglass_reconcile.sweep import examination, match
from mailglass_reconcile.sweep.match import Decision
from mailglass_reconcile.sweep.result import shown

logger = logging.getLogger(__name__)

# Times in ISO 8601 without a zone, which is UTC; infinity stays infinity.
_LEDGER_ROW = """
SELECT e.id::text, e.tenant_id, left(e.type, 512) AS type, e.delivery_id::text, e.needs_reconciliation,
       r.id::text AS reconciled_by, r.delivery_id::text AS linked_to, to_json(r.inserted_at) #>> '{}' AS linked_at,
       o.event_id IS NOT NULL AS open, o.arrived_at::text, o.provider, o.recipient, o.rule, o.recipient_lost, o.refused,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = e.id ORDER BY k.position) AS ids,
       to_json(a.arrived_at) #>> '{}' AS arrived,
       to_json(a.arrived_at + make_interval(secs => :grace_seconds)) #>> '{}' AS eligible,
       to_json(a.arrived_at + make_interval(mins => :max_age_minutes)) #>> '{}' AS expires,
       a.arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) AS expired,
       a.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) AS in_grace
  FROM {schema}.mailglass_events AS e
  LEFT JOIN {schema}.mailglass_events AS r
    ON r.idempotency_key = 'reconciled:' || e.id AND r.type = 'reconciled' AND r.tenant_id = e.tenant_id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = e.id
 CROSS JOIN LATERAL (SELECT coalesce(o.arrived_at, e.inserted_at) AS arrived_at) AS a
 WHERE e.id = CAST(:event_id AS uuid)
"""

NO_KEYS = Keys(None, (), None)


def explain(engine: sa.Engine, event_id: UUID) -> Explanation:
    """Say why an event is linked or not, in a read-only transaction.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports(to_read=True)
    settings = runtime.get_settings()
    bounds = {
        "event_id": str(event_id),
        "max_age_minutes": settings.max_age_minutes,
        "grace_seconds": settings.grace_seconds,
    }
    with reading(engine, settings, snapshot=True) as tx:
        row = tx.execute(_LEDGER_ROW, bounds).one_or_none()
        if row is None:
            return Explanation(str(event_id), "unknown", states.why("unknown"))
        settled = _settled_state(row)
        read = origins.of_event(tx, row.id)
        if settled:
            linking = runs.linking_at(tx, row.linked_at, shown(row.tenant_id)) if settled == "linked" else []
            return _of_settled(row, settled, read, linking)
        raw_webhooks = eligible.survey(tx, settings).raw_webhooks
        wanted = _keys(tx, row, raw_webhooks=raw_webhooks)
        decision = match.decide(tx, row.tenant_id, wanted)
    return _of_open(row, read, wanted, decision)


def _settled_state(row: sa.Row[Any]) -> EventState | None:
    if not row.needs_reconciliation or row.delivery_id:
        return "no_orphan"
    if row.reconciled_by:
        return "linked" if row.linked_to else "settled"
    if not row.open and not row.expired:
        return "missing"
    return None


def _keys(tx: Transaction, row: sa.Row[Any], *, raw_webhooks: bool) -> Keys:
    """Return the keys of an orphan, open or not, as a sweep would have them."""
    kept = Keys(row.provider, tuple(row.ids), row.recipient, row.rule, bool(row.recipient_lost))
    if kept.candidate_ids and examination.is_current(kept):
        return kept
    orphan = Open(row.id, row.tenant_id, row.arrived_at or "", kept)
    return examination.keys_of_events(tx, [orphan], raw_webhooks=raw_webhooks, complain=logger.error)[row.id]


def _of_settled(row: sa.Row[Any], state: EventState, read: Origins, linking: Sequence[RunAt]) -> Explanation:
    return Explanation(
        row.id,
        state,
        states.why(state),
        row.tenant_id,
        row.linked_to or row.delivery_id,
        type=row.type,
        provider=read.provider,
        arrived_at=utc(row.arrived),
        rule=read.rule,
        reads=_reads(read),
        remedy=states.remedy(state),
        linked_at=utc(row.linked_at) if row.linked_to else None,
        linked_during=tuple(run._asdict() for run in linking),
        reconciled_by=row.reconciled_by,
    )


def _of_open(row: sa.Row[Any], read: Origins, wanted: Keys, decision: Decision) -> Explanation:
    state: EventState = "expired" if row.expired else "waiting" if row.in_grace else decision.state
    return Explanation(
        row.id,
        state,
        states.why(state, provider=wanted.provider, recipient_lost=wanted.lost),
        row.tenant_id,
        decision.delivery_id,
        wanted.candidate_ids,
        tuple(_named(each, row.tenant_id, wanted) for each in decision.named),
        type=row.type,
        provider=wanted.provider,
        arrived_at=utc(row.arrived),
        rule=read.rule,
        reads=_reads(read),
        tried=tuple(_tried(id_, read, decision) for id_ in wanted.candidate_ids),
        recipient_known=wanted.recipient is not None,
        verdict=decision.state,
        remedy=states.remedy(state, decision.state, recipient_lost=wanted.lost),
        eligible_at=None if row.expired else utc(row.eligible),
        expires_at=utc(row.expires),
        refused=row.refused or 0,
    )


def utc(time: str) -> str:
    """Return a time as Postgres writes it in JSON, with its zone."""
    return time if time.endswith("infinity") else f"{time}Z"


def _reads(read: Origins) -> tuple[dict[str, str | None], ...]:
    return tuple({"path": path, "holds": kind} for path, kind in read.reads)


def _tried(candidate: str, read: Origins, decision: Decision) -> dict[str, Any]:
    found = sum(each.candidate_id == candidate for each in decision.named)
    return {"id": candidate, "read_from": read.places.get(candidate), "deliveries": found}


def _named(delivery: Named, tenant_id: str, wanted: Keys) -> dict[str, Any]:
    """Return what may be shown of a delivery: no address."""
    known = delivery._asdict()
    recipient = known.pop("recipient")
    return {
        **known,
        "own": delivery.tenant_id == tenant_id,
        "fitting": delivery.provider is None or providers.canonical(delivery.provider) == wanted.provider,
        "addressed": wanted.recipient is None or addresses.address(recipient) == addresses.address(wanted.recipient),
    }
