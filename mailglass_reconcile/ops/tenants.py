"""A tenant that nothing has, and which one was probably meant."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules import humanize
from mailglass_reconcile.rules.humanize import shown_tenant
from mailglass_reconcile.store import windows
from mailglass_reconcile.store.database import Database

LOOKED_AT = 1_000
"""Tenants of either table that are compared."""
TIMEOUT_MS = 24_000

_IS_THERE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_deliveries WHERE tenant_id = :tenant_id)
       OR EXISTS (SELECT FROM {schema}.mailglass_events WHERE tenant_id = :tenant_id)
"""

# Each step of a walk is one probe of an index: the next tenant after the last one.
_TENANTS = """
WITH RECURSIVE of_deliveries AS (
  (SELECT tenant_id FROM {schema}.mailglass_deliveries ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
           WHERE d.tenant_id > t.tenant_id ORDER BY d.tenant_id LIMIT 1)
    FROM of_deliveries AS t WHERE t.tenant_id IS NOT NULL
), of_events AS (
  (SELECT tenant_id FROM {schema}.mailglass_events ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM of_events AS t WHERE t.tenant_id IS NOT NULL
)
(SELECT left(tenant_id, 512) FROM of_deliveries WHERE tenant_id IS NOT NULL LIMIT :size)
 UNION
(SELECT left(tenant_id, 512) FROM of_events WHERE tenant_id IS NOT NULL LIMIT :size)
"""


class Unknown(NamedTuple):
    """A sentence about a tenant that nothing has, and the one that was probably meant, if any is like it."""

    sentence: str
    meant: str | None = None


def unknown(database: Database, tenant_id: str) -> Unknown | None:
    """Return what to say if no event and no delivery has this tenant; None if one has.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    if not windows.is_possible(tenant_id):
        return Unknown(f"no event or delivery can have tenant {shown_tenant(tenant_id)!r}")
    with database.reading(TIMEOUT_MS) as tx:
        if tx.execute(_IS_THERE, {"tenant_id": tenant_id}).scalar_one():
            return None
        known = tx.execute(_TENANTS, {"size": LOOKED_AT}).scalars().all()
    return Unknown(f"no event or delivery has tenant {shown_tenant(tenant_id)!r}", humanize.nearest(tenant_id, known))


def nearest(database: Database, tenant_id: str) -> str | None:
    """Return a sentence if no event and no delivery has this tenant, with the tenant that was probably meant.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    found = unknown(database, tenant_id)
    if found is None or found.meant is None:
        return found and found.sentence
    return f"{found.sentence}; did you mean {shown_tenant(found.meant)!r}?"
