"""A tenant that nothing has, and which one was probably meant."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules import humanize
from mailglass_reconcile.rules.humanize import sanitize_tenant
from mailglass_reconcile.store import window
from mailglass_reconcile.store.database import Database

READ_AT_MOST = 1_000
"""Tenants of either table that are compared."""
TIMEOUT_MS = 24_000

# Of the ledger, only events that were stored without a delivery are in the order of tenants.
_IS_THERE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_deliveries WHERE tenant_id = :tenant_id)
       OR EXISTS (SELECT FROM {schema}.mailglass_events WHERE tenant_id = :tenant_id AND needs_reconciliation)
"""

_TENANTS = """
(SELECT left(tenant_id, 512) FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1('') LIMIT :size)
 UNION ALL
(SELECT left(tenant_id, 512) FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1('') LIMIT :size)
"""


class UnknownTenant(NamedTuple):
    """A sentence about a tenant without events and deliveries, and a similar tenant, if there is one."""

    sentence: str
    suggestion: str | None = None


def find_unknown(database: Database, tenant_id: str) -> UnknownTenant | None:
    """Return a sentence and a suggestion if no event and no delivery has this tenant; None if one has."""
    if not window.is_storable_tenant(tenant_id):
        return UnknownTenant(f"no event or delivery can have tenant {sanitize_tenant(tenant_id)!r}")
    with database.reading(TIMEOUT_MS) as tx:
        if tx.execute(_IS_THERE, {"tenant_id": tenant_id}).scalar_one():
            return None
        tenants = tx.execute(_TENANTS, {"size": READ_AT_MOST}).scalars().all()
    return UnknownTenant(
        f"no event or delivery has tenant {sanitize_tenant(tenant_id)!r}", humanize.find_closest(tenant_id, tenants)
    )


def suggest(database: Database, tenant_id: str) -> str | None:
    """Return a sentence if no event and no delivery has this tenant, with a similar tenant if there is one."""
    unknown = find_unknown(database, tenant_id)
    if unknown is None or unknown.suggestion is None:
        return unknown and unknown.sentence
    return f"{unknown.sentence}; did you mean {sanitize_tenant(unknown.suggestion)!r}?"
