"""A tenant that no event and no delivery has, probably a mistyped one."""

from __future__ import annotations

from mailglass_reconcile.rules.humanize import sanitize_tenant
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries import selection

TIMEOUT_MS = 24_000

# Of the ledger, only events that were stored without a delivery are in the order of tenants.
_IS_THERE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_deliveries WHERE tenant_id = :tenant_id)
       OR EXISTS (SELECT FROM {schema}.mailglass_events WHERE tenant_id = :tenant_id AND needs_reconciliation)
"""


def describe_unknown(database: Database, tenant_id: str) -> str | None:
    """Return a sentence if no event and no delivery has this tenant; None if one has."""
    if not selection.is_storable_tenant(tenant_id):
        return f"no event or delivery can have tenant {sanitize_tenant(tenant_id)!r}"
    with database.reading(TIMEOUT_MS) as tx:
        if tx.execute(_IS_THERE, {"tenant_id": tenant_id}).scalar_one():
            return None
    return f"no event or delivery has tenant {sanitize_tenant(tenant_id)!r}"
