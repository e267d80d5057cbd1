"""The table of open orphans: those of the ledger without a `reconciled` event, kept by triggers on it."""

from __future__ import annotations

from collections.abc import Sequence

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import array_literal

# What an orphan waits for since when: its grace, or its delivery if that came later.
_LINKABLE_SINCE = """
SELECT min(greatest(o.arrived_at + make_interval(secs => :grace_seconds),
                    least(d.inserted_at, now()::timestamp)))::text
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS k (event_id, delivery_id)
 CROSS JOIN LATERAL (SELECT arrived_at FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id) AS o
 CROSS JOIN LATERAL (SELECT inserted_at FROM {schema}.mailglass_deliveries WHERE id = k.delivery_id) AS d
"""

_CLOSE = "DELETE FROM {schema}.mailglass_open_orphans WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"

_FORGET_IDS = "DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"

# Only for a moment: what is not linked then, the prune removes again.
_REOPEN = """
INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
SELECT e.id, e.tenant_id, least(e.inserted_at, now()::timestamp)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE e.needs_reconciliation AND e.delivery_id IS NULL
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS r
                    WHERE r.idempotency_key = 'reconciled:' || e.id
                      AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM e.tenant_id)
    ON CONFLICT DO NOTHING
"""

_REFUSE = """
UPDATE {schema}.mailglass_open_orphans AS o SET refused = least(o.refused + 1, 32767)
  FROM (SELECT h.event_id FROM {schema}.mailglass_open_orphans AS h
         WHERE h.event_id = ANY (CAST(:event_ids AS uuid[])) FOR UPDATE SKIP LOCKED) AS held
 WHERE o.event_id = held.event_id
"""


def linkable_since(tx: Transaction, pairs: Sequence[tuple[str, str]], grace_seconds: float) -> str | None:
    """Return since when, in UTC, the first of *pairs* of orphan and delivery that is still open could be linked."""
    parameters = {
        "event_ids": array_literal(event_id for event_id, _ in pairs),
        "delivery_ids": array_literal(delivery_id for _, delivery_id in pairs),
        "grace_seconds": grace_seconds,
    }
    since: str | None = tx.execute(_LINKABLE_SINCE, parameters).scalar_one()
    return since


def close(tx: Transaction, event_ids: Sequence[str], keyed: Sequence[str]) -> None:
    """Take settled orphans out of the open set; *keyed* are those of them that have ids stored."""
    if keyed:
        tx.execute(_FORGET_IDS, {"event_ids": array_literal(keyed)})
    if event_ids:
        tx.execute(_CLOSE, {"event_ids": array_literal(event_ids)})


def refuse(tx: Transaction, event_ids: Sequence[str]) -> None:
    """Note that the database refused to read or link orphans: later sweeps look at them last."""
    tx.execute(_REFUSE, {"event_ids": array_literal(event_ids)})


def reopen(tx: Transaction, event_ids: Sequence[str]) -> None:
    """Put expired orphans back that nothing has reconciled, so that a batch can claim them."""
    tx.execute(_REOPEN, {"event_ids": array_literal(event_ids)})
