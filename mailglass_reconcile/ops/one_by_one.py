"""Open orphans one by one, for an application: what there is, and what each would be linked to."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store import listing, open_orphans, window
from mailglass_reconcile.store.caller_transaction import borrowed
from mailglass_reconcile.store.listing import Wanted
from mailglass_reconcile.store.open_orphans import FIRST
from mailglass_reconcile.sweep import matcher
from mailglass_reconcile.sweep.matcher import Decision


@dataclass(frozen=True, slots=True)
class Orphan:
    """An open orphan.

    Attributes:
        event_id: Its id in the ledger.
        tenant_id: Its tenant.
        arrived_at: When the ledger took it, in UTC.
        provider: Its provider, or None without a usable one.
        candidate_ids: The message ids under which its delivery may be stored, in order.
        recipient: The recipient it is about, if known.
        recipient_lost: Whether it had a recipient that is no longer known; then it stays ambiguous.
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
) -> list[Orphan]:
    """Return open orphans past the grace and within the maximum age, oldest first; write nothing.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        tenant_id: Of this tenant only; None is all tenants.
        limit: At most this many.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    runtime.load_imports(to_read=True)
    with borrowed(connection, runtime.get_settings()) as tx:
        survey = window.open_window(tx)
        eligible = (survey.after, survey.until)
        within = listing.bounds(tx, eligible, waiting=False, older=None, newer=None)
        rows = listing.next_open(tx, Wanted(tenant_id), within, FIRST, limit)
        found = open_orphans.read(tx, [row.event_id for row in rows if row.type is not None])  # its event is there
        return [_orphan(one, its) for one, its in zip(found, matcher.current_keys(tx, found), strict=True)]


def _orphan(one: open_orphans.Open, its: Keys) -> Orphan:
    return Orphan(
        UUID(one.event_id),
        one.tenant_id,
        dt.datetime.fromisoformat(one.arrived_at).replace(tzinfo=dt.UTC),
        its.provider,
        its.candidate_ids,
        its.recipient,
        its.lost,
    )


def attempt_link(connection: sa.Connection | Session, orphan: Orphan) -> Decision:
    """Return what *orphan*, from `find_orphans`, would link to, or why it would not; write nothing.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        orphan: One that `find_orphans` returned.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    runtime.load_imports(to_read=True)
    wanted = Keys(orphan.provider, orphan.candidate_ids, orphan.recipient, lost=orphan.recipient_lost)
    with borrowed(connection, runtime.get_settings()) as tx:
        return matcher.decide(tx, str(orphan.event_id), orphan.tenant_id, wanted)
