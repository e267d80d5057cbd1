"""Writing the events of a webhook: each to its delivery, or as an orphan that a sweep will link.

Everything happens in the caller's transaction, under a savepoint of ours. No address goes into the ledger, which can
never be erased: a recipient is kept with the open orphan, and is erased with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.projector import Attached
from mailglass_reconcile.record import sessions, validation
from mailglass_reconcile.record.drafts import Draft, draft
from mailglass_reconcile.record.recorded import Look, Recorded
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.store import candidates, ledger
from mailglass_reconcile.store.borrowing import borrowed
from mailglass_reconcile.store.callers import connection_of
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.ledger import Entry
from mailglass_reconcile.store.model import Report
from mailglass_reconcile.sweep import match
from mailglass_reconcile.sweep.match import Event

REPEATED = Recorded(None, None)
"""What becomes of an event that was recorded before."""


def record_webhook(
    connection: sa.Connection | Session,
    *,
    tenant_id: str | None = None,
    provider: str,
    events: Iterable[WebhookEvent],
    strict: bool = False,
) -> list[Recorded]:
    """Record a webhook's events: each is attached to its delivery, or kept as an orphan until the delivery is there.

    Deliveries are found by the sweep's rule, and brought up to date. An event that the provider repeats is recorded
    once. After your commit, the attached events are broadcast, and orphans whose delivery was stored at the same time
    are linked. A Session does that by itself; with a Connection, call `broadcast`.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit. Its settings are restored,
            also after an error.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        events: The webhook's events, in its order.
        strict: Leave out of the ledger every text in metadata that looks like an e-mail address.

    Returns:
        What became of each, in the same order.

    Raises:
        InvalidEventError: An event, the tenant or the provider cannot be recorded; nothing was written.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was written, and the caller's own work is untouched.
        TypeError: *connection* is something else.
    """
    runtime.load_imports()
    settings = runtime.get_settings()
    tenant = validation.name("tenant_id", settings.tenant if tenant_id is None else tenant_id)
    drafts = draft(tenant, provider, events, strict)
    with database_errors(), borrowed(connection_of(connection), settings) as tx:
        entries = _attach(tx, tenant, drafts)
        inserted = ledger.append(tx, entries)
        _remember(tx, tenant, [(e, d.keys) for e, d in zip(entries, drafts, strict=True) if e.id in inserted])
    outcomes = [_outcome(e, d.keys) if e.id in inserted else REPEATED for e, d in zip(entries, drafts, strict=True)]
    return sessions.returned(connection, outcomes)


def _attach(tx: Transaction, tenant_id: str, drafts: Sequence[Draft]) -> list[Entry]:
    """Decide for all events, then lock their deliveries; one that is gone by then leaves an orphan."""
    events = [Event(entry.id, tenant_id, wanted) for entry, wanted in drafts]
    found = [verdict.delivery_id for verdict in match.match(tx, events)]
    locked = projector.lock(tx, {delivery_id for delivery_id in found if delivery_id})
    return [
        entry._replace(delivery_id=delivery_id, needs_reconciliation=False) if delivery_id in locked else entry
        for (entry, _), delivery_id in zip(drafts, found, strict=True)
    ]


def _remember(tx: Transaction, tenant_id: str, recorded: Sequence[tuple[Entry, Keys]]) -> None:
    """Project the events that have a delivery, and keep the others' keys with the open orphan."""
    orphans = {entry.id: wanted for entry, wanted in recorded if entry.delivery_id is None}
    if orphans:
        candidates.remember(tx, tenant_id, orphans)
    attached = [
        Report(e.delivery_id, e.type, e.occurred_at, projector.NOW, e.id)
        for e, _ in recorded
        if e.delivery_id is not None
    ]
    if attached:
        projector.project(tx, attached)


def _outcome(entry: Entry, wanted: Keys) -> Recorded:
    if entry.delivery_id is None:
        look = Look(entry.tenant_id, event_ids=(entry.id,)) if wanted.candidate_ids else None
        return Recorded(UUID(entry.id), None, look=look)
    told = Attached(entry.id, entry.delivery_id, entry.tenant_id, entry.type, entry.occurred_at)
    message = (entry.tenant_id, entry.delivery_id, projector.payload(told))
    return Recorded(UUID(entry.id), UUID(entry.delivery_id), (message,))
