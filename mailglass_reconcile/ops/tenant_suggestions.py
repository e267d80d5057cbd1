"""A tenant that nothing has, and which one was probably meant."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules import humanize
from mailglass_reconcile.rules.humanize import sanitize_tenant
from mailglass_reconcile.store import window
from mailglass_reconcile.store.database import Database

LOOKED_AT = 1_000
"""Tenants of either table that are compared."""
TIMEOUT_MS = 24_000

_IS_THERE = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_deliveries WHERE tenant_id = :tenant_id)
       OR EXISTS (SELECT FROM {schema}.mailglass_events WHERE tenant_id = :tenant_id)
"""

_OF_DELIVERIES = """
SELECT left(tenant_id, 512) FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1('') LIMIT :size
"""

_OF_EVENTS = """
SELECT left(tenant_id, 512) FROM {schema}.mailglass_reconcile_tenants_of_events_v1('') LIMIT :size
"""


class Unknown(NamedTuple):
    """A sentence about a tenant that nothing has, and the one that was probably meant, if any is like it."""

    sentence: str
    meant: str | None = None


def unknown(database: Database, tenant_id: str) -> Unknown | None:
    """Return what to say if no event and no delivery has this tenant; None if one has."""
    if not window.is_storable_tenant(tenant_id):
        return Unknown(f"no event or delivery can have tenant {sanitize_tenant(tenant_id)!r}")
    with database.reading(TIMEOUT_MS) as tx:
        if tx.execute(_IS_THERE, {"tenant_id": tenant_id}).scalar_one():
            return None
        statements = (_OF_DELIVERIES, _OF_EVENTS)
        known = [one for statement in statements for one in tx.execute(statement, {"size": LOOKED_AT}).scalars()]
    return Unknown(
        f"no event or delivery has tenant {sanitize_tenant(tenant_id)!r}", humanize.find_closest(tenant_id, known)
    )


def nearest(database: Database, tenant_id: str) -> str | None:
    """Return a sentence if no event and no delivery has this tenant, with the tenant that was probably meant."""
    found = unknown(database, tenant_id)
    if found is None or found.meant is None:
        return found and found.sentence
    return f"{found.sentence}; did you mean {sanitize_tenant(found.meant)!r}?"
