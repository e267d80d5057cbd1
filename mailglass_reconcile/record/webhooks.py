"""Writing the events of a webhook: each to its delivery, or as an orphan that a sweep will link.

Everything happens in the caller's transaction, under a savepoint of ours. No address goes into the ledger, which can
never be erased: a recipient is kept with the open orphan, and is erased with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.projector import Attached
from mailglass_reconcile.pubsub import Message
from mailglass_reconcile.record import sessions, validation
from mailglass_reconcile.record.drafts import Draft, WebhookEvent, draft
from mailglass_reconcile.record.sends import RecordedDelivery
from mailglass_reconcile.store import candidates, ledger
from mailglass_reconcile.store.callers import connection_of, session_of
from mailglass_reconcile.store.database import Transaction, borrowed
from mailglass_reconcile.store.ledger import Entry
from mailglass_reconcile.store.model import Keys, Report
from mailglass_reconcile.sweep import match
from mailglass_reconcile.sweep.match import Event


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an event.

    Attributes:
        event_id: Its id, or None if it was recorded before.
        delivery_id: Its delivery, or None if it is an orphan.
        message: What `broadcast` is to publish; None if there is nothing, or if a Session publishes it by itself.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    message: Message | None = field(default=None, repr=False)


def record_webhook(
    connection: sa.Connection | Session,
    *,
    tenant_id: str | None = None,
    provider: str,
    events: Iterable[WebhookEvent],
    strict: bool = False,
) -> list[Recorded]:
    """Record a webhook's events: each goes to its delivery, which is brought up to date, or stays an orphan.

    A delivery is found by the same rule as by a sweep. An event that comes again, in whatever batch, is recorded once.
    What was attached is broadcast after the commit: by itself with a Session, by `broadcast` with a Connection.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which decides whether any of it is kept. Its
            settings are as before afterwards, also after an error.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.
        provider: The provider's name, in any known spelling; it is stored in one.
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
    recorded = [_outcome(entry) if entry.id in inserted else Recorded(None, None) for entry in entries]
    session = session_of(connection)
    if session is None:
        return recorded
    sessions.publish_after_commit(session, _messages(recorded))
    return [replace(each, message=None) for each in recorded]


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Tell subscribers of what a writer attached or linked on a plain Connection; call it after the commit.

    A Redis that does not answer costs at most a second and raises nothing. With a Session there is nothing left to
    do: it broadcasts by itself when it has committed.

    Args:
        recorded: What `record_webhook` or `record_send` returned.

    Raises:
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
    """
    for_each = (each.messages if isinstance(each, RecordedDelivery) else _messages([each]) for each in recorded)
    sessions.publish(list(chain.from_iterable(for_each)))


def _messages(recorded: Iterable[Recorded]) -> list[Message]:
    return [each.message for each in recorded if each.message]


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
    attached = [(e.delivery_id, e.type, e.occurred_at) for e, _ in recorded if e.delivery_id is not None]
    if attached:
        projector.project(tx, [Report(*each, arrived_at=projector.NOW) for each in attached])


def _outcome(entry: Entry) -> Recorded:
    if entry.delivery_id is None:
        return Recorded(UUID(entry.id), None)
    told = Attached(entry.id, entry.delivery_id, entry.tenant_id, entry.type, entry.occurred_at)
    message = (entry.tenant_id, entry.delivery_id, projector.payload(told))
    return Recorded(UUID(entry.id), UUID(entry.delivery_id), message)
