"""Open orphans one by one, for those who want to look at them in Python; nothing here writes."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import borrowed
from mailglass_reconcile.store.model import LAST_EVENT, Keys, Place, Slice
from mailglass_reconcile.sweep import keys, match
from mailglass_reconcile.sweep.match import Decision

_OPEN = """
SELECT event_id::text, tenant_id, arrived_at, arrived_at::text AS place, provider, candidate_ids, recipient
  FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
   AND arrived_at <= now()::timestamp - make_interval(secs => :grace_seconds)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
 ORDER BY arrived_at, {schema}.mailglass_open_orphans.event_id LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An open orphan.

    Attributes:
        event_id: Its id in the ledger.
        tenant_id: Its tenant.
        arrived_at: When the ledger took it, in UTC.
        provider: Its provider, or None where it names none that can be used.
        candidate_ids: The message ids under which its delivery may be stored, in order.
        recipient: Whom it is about, if known.
    """

    event_id: UUID
    tenant_id: str
    arrived_at: dt.datetime
    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None = field(repr=False)


def find_orphans(
    connection: sa.Connection,
    *,
    tenant_id: str | None = None,
    limit: int = 100,
    max_age_minutes: int = 10_080,
) -> list[Orphan]:
    """Return open orphans past the grace and within the maximum age, oldest first; write nothing.

    Args:
        connection: In a transaction, whose settings are as before afterwards.
        tenant_id: Of this tenant only; None is all tenants.
        limit: At most this many.
        max_age_minutes: Minutes after which an orphan is expired.

    Raises:
        MailglassReconcileError: The database refused.
    """
    settings = runtime.get_settings()
    bounds = {
        "tenant_id": tenant_id,
        "limit": limit,
        "max_age_minutes": max_age_minutes,
        "grace_seconds": settings.grace_seconds,
    }
    with database_errors(), borrowed(connection, settings) as tx:
        rows = tx.execute(_OPEN, bounds).all()
        if not rows:
            return []
        # A hair before the first: its own place would leave it out.
        first = Place(str(rows[0].arrived_at - dt.timedelta(microseconds=1)), LAST_EVENT)
        piece = Slice(first, Place(rows[-1].place, rows[-1].event_id), tenant_id)
        values = open_orphans.read_values(tx, piece, keys.reads())
        computed = {value.event_id: keys.keys_of(value) for value in values}
    return [_orphan(row, computed.get(row.event_id)) for row in rows]


def _orphan(row: sa.Row[Any], computed: Keys | None) -> Orphan:
    stored = Keys(row.provider, tuple(row.candidate_ids or ()), row.recipient)
    known = computed or stored
    return Orphan(
        UUID(row.event_id),
        row.tenant_id,
        row.arrived_at.replace(tzinfo=dt.UTC),
        known.provider,
        known.candidate_ids,
        stored.recipient or known.recipient,
    )


def attempt_link(connection: sa.Connection, orphan: Orphan) -> Decision:
    """Return what *orphan* would link to, or why it would not; write nothing.

    Args:
        connection: In a transaction, whose settings are as before afterwards.
        orphan: One that `find_orphans` returned.

    Raises:
        MailglassReconcileError: The database refused.
    """
    wanted = Keys(orphan.provider, orphan.candidate_ids, orphan.recipient)
    with database_errors(), borrowed(connection, runtime.get_settings()) as tx:
        return match.decide(tx, orphan.tenant_id, wanted)
