"""Open orphans that are open for the same reason: by state, tenant and provider, and whose messages they name."""

from __future__ import annotations

from typing import Any, NamedTuple

from mailglass_reconcile.ops import history
from mailglass_reconcile.ops.orphans import EXPIRED, WAITING, Filters
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.matching import TENANT_MISMATCH
from mailglass_reconcile.store import window
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.listing import Cause

READ_AT_MOST = 5_000
"""The newest open orphans, among which those of other tenants are looked for."""
TIMEOUT_MS = 10_000
LOOKED_AT = 5
"""Of each tenant and provider."""

_THEIRS = """
WITH newest AS MATERIALIZED (
  SELECT event_id, tenant_id, provider, state FROM {schema}.mailglass_open_orphans
   ORDER BY arrived_at DESC, event_id DESC LIMIT :read_at_most
), sampled AS (
  SELECT *, row_number() OVER (PARTITION BY tenant_id, provider) AS place FROM newest WHERE state = 'tenant_mismatch'
)
SELECT DISTINCT left(s.tenant_id, 1000) AS tenant_id, s.provider, left(d.tenant_id, 1000) AS theirs
  FROM sampled AS s
 CROSS JOIN LATERAL (SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
                      WHERE k.event_id = s.event_id ORDER BY k.position LIMIT :looked_at) AS i
 CROSS JOIN LATERAL (SELECT tenant_id FROM {schema}.mailglass_deliveries
                      WHERE hashtextextended(provider_message_id, 0) = hashtextextended(i.candidate_id, 0)
                        AND provider_message_id = i.candidate_id LIMIT :looked_at) AS d
 WHERE s.place <= :looked_at AND d.tenant_id <> s.tenant_id
 ORDER BY 1, 2, 3
"""


class Counted(NamedTuple):
    """Open orphans as the last full sweep counted them: how many pass a filter, and by cause, the most first."""

    orphans: int
    causes: list[Cause]


def of_groups(tx: Transaction, groups: list[dict[str, Any]]) -> list[Cause]:
    """Return what a sweep has counted as causes; with the tenant whose deliveries orphans match, of some of them.

    The tenant of small groups together is an empty string.
    """
    theirs: dict[tuple[str, str | None], str] = {}
    if any(group["state"] == TENANT_MISMATCH for group in groups):
        for row in tx.execute(_THEIRS, {"read_at_most": READ_AT_MOST, "looked_at": LOOKED_AT}):
            theirs.setdefault((row.tenant_id, row.provider), row.theirs)
    return [
        Cause(
            group["state"],
            group["tenant_id"] or "",
            group["provider"],
            theirs.get((group["tenant_id"], group["provider"])) if group["state"] == TENANT_MISMATCH else None,
            group["orphans"],
        )
        for group in groups
    ]


def of_last_sweep(database: Database, filters: Filters) -> Counted | None:
    """Return how many orphans pass, if the last full sweep has counted them by what the filter is about.

    That is by state, tenant and provider, at a cost that does not depend on what is open; those in their grace are
    counted now. `orphans.page` counts by any filter, in one pass over the open orphans.
    """
    uncounted = (filters.type, filters.older, filters.newer, filters.message_id, filters.recipient)
    if filters.state == EXPIRED or any(one is not None for one in uncounted):
        return None
    provider = providers.canonical(filters.provider) if filters.provider else None
    with database.reading(TIMEOUT_MS) as tx:
        groups = history.read(tx).groups
        if groups is None:
            return None
        if filters.tenant_id and any(group["tenant_id"] is None for group in groups):  # small ones together
            return None
        wanted = [
            group
            for group in groups
            if filters.state in (None, group["state"])
            and filters.tenant_id in (None, group["tenant_id"])
            and provider in (None, group["provider"])
        ]
        in_grace = filters.state in (None, WAITING) and provider is None
        waiting = window.waiting(tx, filters.tenant_id) if in_grace else 0
        return Counted(waiting + sum(group["orphans"] for group in wanted), of_groups(tx, wanted))
