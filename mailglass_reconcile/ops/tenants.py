"""A tenant that nothing has, and which one was probably meant."""

from __future__ import annotations

import difflib
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.store.reading import reading
from mailglass_reconcile.sweep import windows
from mailglass_reconcile.sweep.result import shown

LOOKED_AT = 1_000
"""Tenants that are compared: each is one probe of an index."""

_IS_THERE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_deliveries WHERE tenant_id = :tenant_id)
       OR EXISTS (SELECT FROM {schema}.mailglass_events WHERE tenant_id = :tenant_id)
"""

_TENANTS = """
WITH RECURSIVE t AS (
  (SELECT tenant_id FROM {schema}.mailglass_deliveries ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
           WHERE d.tenant_id > t.tenant_id ORDER BY d.tenant_id LIMIT 1)
    FROM t WHERE t.tenant_id IS NOT NULL
)
SELECT left(tenant_id, 512) FROM t WHERE tenant_id IS NOT NULL LIMIT :size
"""

_OF_EVENT = "SELECT tenant_id FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid)"


def of_event(engine: sa.Engine, event_id: UUID) -> str | None:
    """Return the tenant of an event, or None if the ledger has no such event.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with reading(engine, runtime.get_settings(), probes_only=True) as tx:
        found: str | None = tx.execute(_OF_EVENT, {"event_id": str(event_id)}).scalar_one_or_none()
    return found


def nearest(engine: sa.Engine, tenant_id: str) -> str | None:
    """Return a sentence if no event and no delivery has this tenant, with the tenant that was probably meant.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    if not windows.can_be(tenant_id):
        return f"no event or delivery can have tenant {shown(tenant_id)!r}"
    with reading(engine, runtime.get_settings(), probes_only=True) as tx:
        if tx.execute(_IS_THERE, {"tenant_id": tenant_id}).scalar_one():
            return None
        known = tx.execute(_TENANTS, {"size": LOOKED_AT}).scalars().all()
    meant = difflib.get_close_matches(tenant_id[:100], known, n=1)
    hint = f"; did you mean {shown(meant[0])!r}?" if meant else ""
    return f"no event or delivery has tenant {shown(tenant_id)!r}{hint}"
