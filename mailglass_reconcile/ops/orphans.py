"""Open orphans one by one, for those who want to look at them in Python; nothing here writes."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.store.borrowing import borrowed
from mailglass_reconcile.store.callers import connection_of
from mailglass_reconcile.store.model import Open
from mailglass_reconcile.sweep import examination, match
from mailglass_reconcile.sweep.match import Decision

logger = logging.getLogger(__name__)

_OPEN = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at, o.provider, o.recipient, o.rule, o.recipient_lost,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position) AS ids
  FROM {schema}.mailglass_open_orphans AS o
 WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
   AND arrived_at <= now()::timestamp - make_interval(secs => :grace_seconds)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
 ORDER BY arrived_at, o.event_id LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An open orphan.

    Attributes:
        event_id: Its id in the ledger.
        tenant_id: Its tenant.
        arrived_at: When the ledger took it, in UTC.
        provider: Its provider, or None if it names none that can be used.
        candidate_ids: The message ids under which its delivery may be stored, in order.
        recipient: Whom it is about, if known.
        recipient_lost: Whether it had a recipient that is not known any more; then it stays ambiguous.
    """

    event_id: UUID
    tenant_id: str
    arrived_at: dt.datetime
    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None = field(repr=False)
    recipient_lost: bool = False


def find_orphans(
    connection: sa.Connection | Session,
    *,
    tenant_id: str | None = None,
    limit: int = 100,
    max_age_minutes: int = 10_080,
) -> list[Orphan]:
    """Return open orphans past the grace and within the maximum age, oldest first; write nothing.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        tenant_id: Of this tenant only; None is all tenants.
        limit: At most this many.
        max_age_minutes: Minutes after which an orphan is expired.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    settings = runtime.get_settings()
    bounds = {
        "tenant_id": tenant_id,
        "limit": limit,
        "max_age_minutes": max_age_minutes,
        "grace_seconds": settings.grace_seconds,
    }
    runtime.load_imports(to_read=True)
    with database_errors(), borrowed(connection_of(connection), settings) as tx:
        rows = tx.execute(_OPEN, bounds).all()
        found = [
            Open(
                row.event_id,
                row.tenant_id,
                "",
                Keys(row.provider, tuple(row.ids), row.recipient, row.rule, row.recipient_lost),
            )
            for row in rows
        ]
        without = [orphan for orphan in found if not orphan.keys.candidate_ids]
        computed = examination.keys_of_events(tx, without, raw_webhooks=False, complain=logger.error)
    return [_orphan(row, computed.get(orphan.event_id, orphan.keys)) for row, orphan in zip(rows, found, strict=True)]


def _orphan(row: sa.Row[Any], keys: Keys) -> Orphan:
    return Orphan(
        UUID(row.event_id),
        row.tenant_id,
        row.arrived_at.replace(tzinfo=dt.UTC),
        keys.provider,
        keys.candidate_ids,
        keys.recipient,
        keys.lost,
    )


def attempt_link(connection: sa.Connection | Session, orphan: Orphan) -> Decision:
    """Return what *orphan* would link to, or why it would not; write nothing.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        orphan: One that `find_orphans` returned.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    wanted = Keys(orphan.provider, orphan.candidate_ids, orphan.recipient, lost=orphan.recipient_lost)
    with database_errors(), borrowed(connection_of(connection), runtime.get_settings()) as tx:
        return match.decide(tx, orphan.tenant_id, wanted)
